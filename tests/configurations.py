"""Configurations for tests that try one setting after another."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from halfseen.idle import IdleSettings

Config = TypeVar("Config", bound=BaseModel)


def config_of(
    config_class: type[Config], given: Mapping[str, object], chosen: Mapping[str, object] | None = None
) -> Config:
    """`chosen` over `given`, without those of `given` that then have no effect."""
    chosen = chosen or {}
    try:
        return config_class.model_validate({**given, **chosen})
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        idle = given.keys() & set(cause.keys) - chosen.keys() if isinstance(cause, IdleSettings) else set()
        if not idle:
            raise
    return config_of(config_class, {key: given[key] for key in given if key not in idle}, chosen)

"""Every key that a user can set says what it means."""

import importlib
import pkgutil

import pytest
from pydantic import BaseModel

import halfseen


def config_models() -> list[type[BaseModel]]:
    """All pydantic models that the package defines."""
    found: dict[str, type[BaseModel]] = {}
    for info in pkgutil.walk_packages(halfseen.__path__, "halfseen."):
        if info.name == "halfseen.__main__":
            continue
        for value in vars(importlib.import_module(info.name)).values():
            is_model = isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
            if is_model and value.__module__.startswith("halfseen."):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return [found[name] for name in sorted(found)]


MODELS = config_models()


def test_the_walk_finds_the_settings_of_every_part() -> None:
    parts = {model.__module__.split(".")[1] for model in MODELS}
    assert {"data", "engine", "backbones", "methods", "evaluation", "pretraining"} <= parts


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    silent = [name for name, field in model.model_fields.items() if len(field.description or "") < 10]
    assert silent == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_models_are_strict_and_frozen(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True

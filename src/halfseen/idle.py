"""Settings that would do nothing in a run are refused, for whoever wrote one expects something of it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import BaseModel


class Need(NamedTuple):
    """A condition for a setting to do anything.

    Attributes:
        key: the setting.
        met: whether it does.
        otherwise: the setting that keeps it from doing so, as one would write it: "lambda2=0".
    """

    key: str
    met: bool
    otherwise: str


class IdleSettings(ValueError):
    """Settings without effect; the text has a sentence for each, one a line.

    Args:
        sentences: by key of the model that was validated.
    """

    def __init__(self, sentences: Mapping[str, str]) -> None:
        super().__init__("\n".join(sentences.values()))
        self.keys = tuple(sentences)


def refuse_idle(config: BaseModel, needs: Iterable[Need]) -> None:
    """See that every setting that departs from its default does something.

    A default is never refused: the file of a run holds every setting there is.

    Raises:
        IdleSettings: for those that don't.
    """
    sentences: dict[str, str] = {}
    for key, met, otherwise in needs:
        value, default = getattr(config, key), type(config).model_fields[key].default
        if not met and value != default:
            sentences.setdefault(
                key,
                f"{key}: got {_shown(value)}, but it has no effect with {otherwise}. Leave it out (its default is "
                f"{_shown(default)}).",
            )
    if sentences:
        raise IdleSettings(sentences)


def _shown(value: object) -> str:
    """A value as it stands in a file of settings; of a group only the key that tells its kind."""
    if isinstance(value, BaseModel):
        kind = next(iter(type(value).model_fields))
        return f"{{{kind}: {_shown(getattr(value, kind))}{', ...' if value.model_dump(exclude_defaults=True) else ''}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Subjects of evaluation for the tests of all protocols."""

from collections.abc import Callable
from dataclasses import fields

from halfseen.backbones.base import Encoder
from halfseen.evaluation.subject import Subject


def subject_of(
    encoder: Encoder, random_encoder: Callable[[], Encoder] | None, **changes: object
) -> tuple[Subject, dict[str, object]]:
    """A subject with the given attributes, and the other arguments, which are the protocol's."""
    own = {field.name for field in fields(Subject)} & changes.keys()
    known = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "origin": "here"} | {name: changes[name] for name in own}
    return Subject(encoder, random_encoder, **known), {name: changes[name] for name in changes.keys() - own}

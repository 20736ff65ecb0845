"""A sentence about a run that is, or is about to be, ill."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A sign of illness, seen at `step`. `id` names its kind: each kind is said once per run."""

    id: str
    sentence: str
    step: int

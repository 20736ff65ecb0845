"""The run-time checker of annotations that the jaxtyping import hook puts around every function under test.

It is beartype, with one addition: a protocol that the library uses for type checkers only is made checkable first,
since beartype refuses others.
"""

import typing
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is fine for a float, as for every type checker


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which from now on raises when an argument or its result contradicts the annotation."""
    for hint in getattr(function, "__annotations__", {}).values():
        make_protocols_checkable(hint)
    return _check(function)


def make_protocols_checkable(hint: object) -> None:
    """Marks every protocol inside a hint as usable with `isinstance`."""
    if isinstance(hint, type) and getattr(hint, "_is_protocol", False):
        typing.runtime_checkable(hint)
    for part in typing.get_args(hint):
        make_protocols_checkable(part)

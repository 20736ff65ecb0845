"""The run-time checker of annotations that the jaxtyping import hook puts around every function under test.

It is beartype, with two additions: a protocol that the library uses for type checkers only is made checkable first,
since beartype refuses others; and a function inside another, which is made anew in each call, gets the checks that were
made for it the first time, since making them takes a millisecond.
"""

import typing
from collections.abc import Callable, Hashable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is fine for a float, as for every type checker
_made: dict[Hashable, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which from now on raises when an argument or its result contradicts the annotation.

    Args:
        function: made by jaxtyping; it has the signature of a function under test and does nothing itself.
    """
    for hint in getattr(function, "__annotations__", {}).values():
        make_protocols_checkable(hint)
    if "<locals>" not in function.__qualname__:
        return _check(function)
    key = _signature(function)
    try:
        found = _made.get(key)
    except TypeError:  # A default or an annotation that has no hash.
        return _check(function)
    if found is None:
        found = _made[key] = _check(function)
    return found


def _signature(function: Callable[..., Any]) -> Hashable:
    """All that tells one generated function from another."""
    code = function.__code__
    return (
        (function.__module__, function.__qualname__, code.co_code, code.co_varnames, code.co_flags),
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        tuple(function.__annotations__.items()),
        function.__defaults__,
        tuple((function.__kwdefaults__ or {}).items()),
    )


def make_protocols_checkable(hint: object) -> None:
    """Marks every protocol inside a hint as usable with `isinstance`."""
    if isinstance(hint, type) and getattr(hint, "_is_protocol", False):
        typing.runtime_checkable(hint)
    for part in typing.get_args(hint):
        make_protocols_checkable(part)

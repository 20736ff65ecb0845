"""The annotations of the library are checked while its tests run; otherwise all shapes in them were decoration."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped

from halfseen.ops.patches import patchify
from shape_checking import checked


def test_a_wrong_shape_or_kind_of_number_is_noticed() -> None:
    assert patchify(torch.zeros(2, 3, 8, 8), 4).shape == (2, 4, 48)
    with pytest.raises(TypeCheckError):
        patchify(torch.zeros(3, 8, 8), 4)
    with pytest.raises(TypeCheckError):
        patchify(torch.zeros(2, 3, 8, 8, dtype=torch.int64), 4)


def test_functions_inside_others_are_checked_in_every_call() -> None:
    """They are made anew each time, with the checks of the first time."""

    def made(factor: float) -> Callable[..., object]:
        @jaxtyped(typechecker=checked)
        def scaled(tokens: Float[torch.Tensor, "B D"], times: int = 1) -> Float[torch.Tensor, "D"]:
            return (factor * times * tokens).sum(dim=0 if factor > 0 else 1)

        return scaled

    for _ in range(2):
        assert torch.equal(made(2.0)(torch.ones(3, 2)), torch.full((2,), 6.0))
        assert torch.equal(made(3.0)(torch.ones(3, 2), times=2), torch.full((2,), 18.0))
        with pytest.raises(TypeCheckError, match="tokens"):
            made(2.0)(torch.ones(3))
        with pytest.raises(TypeCheckError):
            made(2.0)(torch.ones(3, 2), times="two")
        with pytest.raises(TypeCheckError, match="return"):
            made(-1.0)(torch.ones(3, 2))

"""The annotations of the library are checked while its tests run; otherwise all shapes in them were decoration."""

import pytest
import torch
from jaxtyping import TypeCheckError

from halfseen.ops.patches import patchify


def test_a_wrong_shape_or_kind_of_number_is_noticed() -> None:
    assert patchify(torch.zeros(2, 3, 8, 8), 4).shape == (2, 4, 48)
    with pytest.raises(TypeCheckError):
        patchify(torch.zeros(3, 8, 8), 4)
    with pytest.raises(TypeCheckError):
        patchify(torch.zeros(2, 3, 8, 8, dtype=torch.int64), 4)

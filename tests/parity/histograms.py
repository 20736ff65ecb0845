"""When HOG maps count as the recorded ones."""

import numpy as np
from torch import Tensor

CLOSE, MOVED = 1e-5, 0.02


def assert_same_histograms(ours: Tensor, recorded: np.ndarray, bins: int) -> None:
    """1e-5 everywhere, but one histogram, or 1 % of a map's, may differ by up to 0.02.

    A pixel that lies on the border of two bins to the last bit may change its bin, and that alters all values of one
    histogram: one colour in one cell.

    Args:
        ours: float32 [B, cells, 3 * bins].
        recorded: the same.
    """
    assert ours.shape == recorded.shape
    errors = np.abs(ours.numpy() - recorded).reshape(-1, bins).max(axis=1)
    assert errors.max() < MOVED
    assert (errors > CLOSE).sum() <= max(1, len(errors) // 100)

"""Masks that keep most of a head's attention equal iBOT's recorded ones, bit by bit.

`attention_threshold*.npz`: `attention` [heads, T, T] with the class token first, and `mask_th{share}` [heads, rows,
columns], 1 = kept, of its row without its own column.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.ops.attention_mass import kept_mass
from parity.discovery import load_arrays, parity_files


@pytest.mark.parametrize("path", parity_files("knn_linear", "attention_threshold"))
def test_kept_mass(path: Path) -> None:
    arrays = load_arrays(path)
    attention = torch.from_numpy(arrays["attention"])[:, 0, 1:]
    recorded = [name for name in arrays if name.startswith("mask_th")]
    assert recorded
    for name in recorded:
        found = kept_mass(attention, float(name.removeprefix("mask_th")))
        assert np.array_equal(found.float().view(arrays[name].shape).numpy(), arrays[name]), name

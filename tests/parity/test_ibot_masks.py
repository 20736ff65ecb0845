"""iBOT's block and random masks: seeded ones bit by bit, and the statistics of our own draws."""

import random
from pathlib import Path

import numpy as np
import pytest

from halfseen.masking.block import BlockMask, RandomMask, draw_mask
from halfseen.masking.crops import MASK_KEY, LoaderMasks
from halfseen.ops.randomness import numpy_generator
from parity.discovery import load_arrays, parity_files

SETTINGS: dict[str, BlockMask | RandomMask] = {
    "vit_mix": BlockMask(kind="block", pred_ratio=(0.0, 0.3), pred_ratio_var=(0.0, 0.2)),
    "vit_single": BlockMask(kind="block", pred_ratio=0.3, pred_ratio_var=0.2),
    "vit_fixed": BlockMask(kind="block", pred_ratio=0.4, pred_ratio_var=0.0),
    "swin": BlockMask(kind="block", pred_ratio=(0.0, 0.3), pred_ratio_var=(0.0, 0.2)),
    "rand": RandomMask(kind="random", pred_ratio=0.65, pred_ratio_var=0.05),
}
"""The settings go by the names of the recorded draws; they aren't stored."""

DRAWS = 3000


def recorded_names(arrays: dict[str, np.ndarray]) -> list[str]:
    names = [name.removesuffix("_masks") for name in arrays if name.endswith("_masks")]
    assert names
    return names


@pytest.mark.parametrize("path", parity_files("ibot", "block_masks"))
def test_seeded_masks_are_equal_bit_by_bit(path: Path) -> None:
    arrays = load_arrays(path)
    for name in recorded_names(arrays):
        masks = arrays[f"{name}_masks"]
        assert masks.any(), name
        for seed, mask in zip(arrays[f"{name}_seeds"].tolist(), masks, strict=True):
            drawn = draw_mask(SETTINGS[name], mask.shape, random.Random(seed), np.random.RandomState(seed))
            np.testing.assert_array_equal(drawn, mask, err_msg=f"{name}, seed {seed}")


@pytest.mark.parametrize("path", parity_files("ibot", "block_masks"))
def test_masks_of_the_loader_have_the_original_statistics(path: Path) -> None:
    arrays = load_arrays(path)
    for name in recorded_names(arrays):
        grid = arrays[f"{name}_masks"].shape[1:]
        loader = LoaderMasks((SETTINGS[name],) * 2, grid)
        masks = np.concatenate(
            [loader((), numpy_generator(0, "statistics", image))[MASK_KEY] for image in range(DRAWS // 2)]
        )
        recorded = arrays[f"{name}_count_hist"]
        counts = np.bincount(masks.sum(axis=1), minlength=len(recorded))
        assert len(masks) == DRAWS and len(counts) == len(recorded)
        distance = np.abs(counts.cumsum() / DRAWS - recorded.cumsum() / recorded.sum()).max()
        assert distance < 1.63 * np.sqrt(2 / DRAWS), name
        frequency = masks.mean(axis=0).reshape(grid)
        np.testing.assert_allclose(frequency, arrays[f"{name}_mean_map"], rtol=0, atol=0.08, err_msg=name)

"""HOG targets against maps, gradients, orientations and bins of LocalMIM's original code."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.targets.hog import (
    HOGTarget,
    gradient_magnitude,
    gradient_phase,
    orientation_bins,
    sobel_gradients,
)
from parity.discovery import load_arrays, parity_files
from parity.histograms import assert_same_histograms
from parity.localmim_images import prepare


@pytest.mark.parametrize("path", parity_files("localmim", "hog_targets"))
def test_maps_of_all_scales(path: Path) -> None:
    arrays = load_arrays(path)
    images = prepare(arrays["images_u8_nhwc"])
    pools: dict[tuple[int, int], list[int]] = defaultdict(list)
    for name in arrays:
        if found := re.fullmatch(r"hog_nb(\d+)_bias([01])_pool(\d+)", name):
            bins, bias, pool = map(int, found.groups())
            pools[bins, bias].append(pool)
    assert pools
    for (bins, bias), cells in pools.items():
        targets = {tuple(cells): HOGTarget(cells, bins, bool(bias))}
        targets |= {(cell,): HOGTarget((cell,), bins, bool(bias)) for cell in cells}
        for sizes, target in targets.items():
            if bias:
                constants = np.stack([arrays[f"bias_nb{bins}_pool{pool}"] for pool in sizes])
                target.load_state_dict({"bias": torch.from_numpy(constants)})
            for pool, ours in zip(sizes, target(images), strict=True):
                assert_same_histograms(ours, arrays[f"hog_nb{bins}_bias{bias}_pool{pool}"], bins)


@pytest.mark.parametrize("path", parity_files("localmim", "hog_targets"))
def test_gradients_orientations_and_bins_of_red(path: Path) -> None:
    arrays = load_arrays(path)
    gradients = sobel_gradients(prepare(arrays["images_u8_nhwc"])[:1, :1])
    both = torch.cat(gradients)[:, 0]
    np.testing.assert_allclose(both, arrays["grad_img0_red"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient_magnitude(gradients)[0, 0], arrays["mag_img0_red"], rtol=0, atol=1e-5)
    phase = gradient_phase(gradients)
    turned = (phase[0, 0].numpy() - arrays["phase_img0_red"] + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(turned).max() < 1e-4
    binned = {name: found[1] for name in arrays if (found := re.fullmatch(r"bin(\d+)_img0_red", name))}
    assert binned
    for name, bins in binned.items():
        np.testing.assert_array_equal(orientation_bins(phase, int(bins))[0, 0], arrays[name])

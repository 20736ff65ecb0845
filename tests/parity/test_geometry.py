"""Geometry of patch tokens and labels of patches against recorded numbers of ViNy's diagnostics."""

from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.analysis.geometry import TokenGeometry, similarity_maps
from halfseen.ops.patch_labels import class_fractions, majority_labels, patch_histogram, reference_patches
from parity.discovery import load_arrays, parity_files


@pytest.mark.parametrize("path", parity_files("geometry", "feature_geometry"))
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_variances_similarities_and_maps(path: Path, batch_size: int) -> None:
    arrays = load_arrays(path)
    sets = sorted({name.split("/")[0] for name in arrays})
    assert sets
    for name in sets:
        features = torch.from_numpy(arrays[f"{name}/features"])
        side = round(features.shape[1] ** 0.5)
        geometry = TokenGeometry((side, side))
        for batch in features.split(batch_size):
            geometry.update(batch)
        found = geometry.result()
        assert found.num_images == len(features)
        ours = [found.within, found.across, found.total]
        np.testing.assert_allclose(ours, arrays[f"{name}/variance_within_across_total"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.distances.numpy(), arrays[f"{name}/cos_distance"])
        np.testing.assert_allclose(found.cosines.numpy(), arrays[f"{name}/cos_mean"], rtol=0, atol=1e-5)
        maps = similarity_maps(features[0], torch.from_numpy(arrays[f"{name}/sim_refs"]), (side, side))
        np.testing.assert_allclose(maps.numpy(), arrays[f"{name}/sim_maps"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("geometry", "patch_labels"))
def test_histograms_labels_fractions_and_references(path: Path) -> None:
    arrays = load_arrays(path)
    histogram = patch_histogram(
        torch.from_numpy(arrays["in/seg"]), int(arrays["meta/patch_size"]), arrays["out/histogram"].shape[-1]
    )
    np.testing.assert_array_equal(histogram.numpy(), arrays["out/histogram"])
    np.testing.assert_array_equal(majority_labels(histogram).numpy(), arrays["out/labels"])
    fractions = class_fractions(histogram)
    np.testing.assert_allclose(fractions.numpy(), arrays["out/fractions"], rtol=0, atol=1e-6)
    found = reference_patches(fractions)
    np.testing.assert_array_equal(found.numpy(), arrays["out/ref_bg_corner_fg_interior_boundary"])

"""Labels of patches: counts, ties, ignored pixels, and the patches that stand for object and outline."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ShapeError
from halfseen.ops.patch_labels import class_fractions, majority_labels, patch_histogram, reference_patches


@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    patch=st.integers(1, 5),
    classes=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_histograms_are_those_of_the_single_patches(rows: int, cols: int, patch: int, classes: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, classes, (2, rows * patch, cols * patch))
    found = patch_histogram(torch.from_numpy(drawn), patch, classes)
    assert found.shape == (2, rows * cols, classes)
    for image in range(2):
        for number in range(rows * cols):
            top, left = number // cols * patch, number % cols * patch
            cut = drawn[image, top : top + patch, left : left + patch]
            assert found[image, number].tolist() == np.bincount(cut.flatten(), minlength=classes).tolist()


def test_ties_go_to_the_smallest_class_and_empty_patches_to_none() -> None:
    histogram = torch.tensor([[[2, 2, 0], [0, 2, 2], [1, 0, 3], [2, 1, 1], [0, 0, 0]]])
    assert majority_labels(histogram).tolist() == [[0, 1, 2, 0, -1]]


def test_ignored_pixels_count_nowhere() -> None:
    mask = torch.tensor([[[255, 255], [255, 1]]], dtype=torch.uint8)
    histogram = patch_histogram(mask, 2, 3)
    assert histogram.tolist() == [[[0, 1, 0]]]
    assert majority_labels(histogram).tolist() == [[1]]
    assert class_fractions(histogram).tolist() == [[[0.0, 1.0, 0.0]]]
    assert class_fractions(torch.zeros_like(histogram)).tolist() == [[[0.0, 0.0, 0.0]]]


def test_sides_that_are_no_multiples_of_the_patch_are_refused() -> None:
    with pytest.raises(ShapeError, match="multiples of the patch size"):
        patch_histogram(torch.zeros(1, 10, 8, dtype=torch.uint8), 4, 2)


def test_reference_patches_follow_the_rules() -> None:
    def refs(*fractions: tuple[float, float, float]) -> list[int]:
        return reference_patches(torch.tensor([fractions])).tolist()[0]

    # The purest patch may not have too much outline; of equals the first is taken.
    assert refs((0.0, 1.0, 0.0), (0.7, 0.0, 0.3), (0.6, 0.3, 0.1), (0.6, 0.4, 0.0)) == [0, 2, 1]
    # Nothing of the object anywhere: the first patch that fits.
    assert refs((0.0, 0.5, 0.5), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)) == [0, 1, 0]
    # No patch fits: the most foreground of all.
    assert refs((0.1, 0.4, 0.5), (0.4, 0.2, 0.4), (0.4, 0.0, 0.6)) == [0, 1, 2]


def test_references_need_their_classes() -> None:
    with pytest.raises(ShapeError, match="boundary class 2, but there are the classes 0 to 1"):
        reference_patches(torch.ones(1, 4, 2))
    assert reference_patches(torch.tensor([[[0.2, 0.8], [0.1, 0.9]]]), foreground=1, boundary=0).tolist() == [[0, 1, 0]]

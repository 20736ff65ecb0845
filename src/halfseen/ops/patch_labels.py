"""Labels of pixels seen patch by patch: how many of each class, which one prevails, which patches show a class best."""

from typing import Literal

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from halfseen.errors import ShapeError
from halfseen.ops.patches import patch_grid

ReferencePatch = Literal["bg_corner", "fg_interior", "boundary"]
"""Patches whose similarity to all others is shown: the first one, one within the object, one on its outline."""

MOST_BOUNDARY = 0.2
"""Share of boundary pixels up to which a patch may stand for the inside of an object."""


def patch_histogram(masks: Integer[Tensor, "B H W"], patch_size: int, num_classes: int) -> Int64[Tensor, "B N K"]:
    """Pixels of each class in each patch.

    Args:
        masks: class of each pixel, 0 to K - 1; a pixel with any other value (255: to be ignored) counts nowhere.
    Returns:
        int64 [B, N, K], N row-major; a patch sums to patch_size**2 less its ignored pixels.
    Raises:
        ShapeError: sides that are not multiples of the patch size.
    """
    B, H, W = masks.shape
    rows, cols = patch_grid(H, W, patch_size)
    labels = masks.reshape(B, rows, patch_size, cols, patch_size).transpose(2, 3).long()
    # One bin more than classes in each patch, for pixels of no class.
    labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    bins = torch.arange(B * rows * cols, device=masks.device) * (num_classes + 1)
    places = labels.reshape(B * rows * cols, patch_size**2) + bins[:, None]
    counts = torch.zeros(len(bins) * (num_classes + 1), dtype=torch.int64, device=masks.device)
    counts.scatter_add_(0, places.flatten(), torch.ones_like(places.flatten()))  # bincount would wait for a GPU.
    return counts.reshape(B, rows * cols, num_classes + 1)[..., :num_classes]


def majority_labels(histogram: Int64[Tensor, "B N K"]) -> Int64[Tensor, "B N"]:
    """The class with most pixels in each patch, the smallest of those that tie; -1 where a patch has no pixel at all.

    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (spatial objective and patch probe).
    """
    # argmax promises nothing on ties, so the class becomes part of what is compared: a larger one weighs less.
    K = histogram.shape[-1]
    ranks = torch.arange(K - 1, -1, -1, device=histogram.device)
    labels = (histogram * K + ranks).argmax(dim=-1)
    return torch.where(histogram.sum(dim=-1) > 0, labels, -1)


def class_fractions(histogram: Int64[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
    """Share of each class among the pixels of a patch: float32 in [0, 1]; all 0 where every pixel is to be ignored."""
    return histogram.float() / histogram.sum(dim=-1, keepdim=True).clamp(min=1)


def reference_patches(
    fractions: Float[Tensor, "B N K"], foreground: int = 0, boundary: int = 2
) -> Int64[Tensor, "B 3"]:
    """The patches that similarity maps are drawn for, in the order of `ReferencePatch`.

    `bg_corner` is patch 0. `fg_interior` has the largest share of foreground among patches with at most a fifth of
    boundary (which may be none at all: then the first of these), or, where there is no such patch, the largest share
    of all. `boundary` has the largest share of boundary. The first of those that tie.

    Args:
        fractions: shares of the classes in each patch, see `class_fractions`.
        foreground, boundary: the classes' numbers; Oxford-IIIT Pet's by default.
    Raises:
        ShapeError: classes that aren't there.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (diagnostics).
    """
    K = fractions.shape[-1]
    if not (0 <= foreground < K and 0 <= boundary < K):
        raise ShapeError(
            f"reference patches: got foreground class {foreground} and boundary class {boundary}, but there are the "
            f"classes 0 to {K - 1}."
        )
    inside, edge = fractions[..., foreground], fractions[..., boundary]
    fits = edge <= MOST_BOUNDARY
    fits = fits | ~fits.any(dim=1, keepdim=True)
    return torch.stack(
        [
            torch.zeros(len(fractions), dtype=torch.int64, device=fractions.device),
            _first_largest(torch.where(fits, inside, -1.0)),
            _first_largest(edge),
        ],
        dim=1,
    )


def _first_largest(values: Float[Tensor, "B N"]) -> Int64[Tensor, " B"]:
    """Position of the largest entry of each row; the first one of those that tie, on every device."""
    places = torch.arange(values.shape[1], device=values.device)
    is_largest = values == values.amax(dim=1, keepdim=True)
    return torch.where(is_largest, places, values.shape[1]).amin(dim=1)

"""From one decoded image to the uint8 views that a method asked for.

All views are cut from the same decoded array: crop, resize, flip, then `photometric` where colours are to change.
Resizing runs on uint8 with torch's vectorised kernels. With antialias they follow Pillow to within one level (two in
less than one value of 500, when small pictures are enlarged); rows are resampled first, as in the Pillow of the
original papers - later ones start with the columns where that is cheaper, which bicubic overshoots show. Without
antialias they do what torchvision's v2 does.
(Crop and bilinear resize of a 500x375 photograph to 224 px: 0.21 ms; Pillow's `resize(box=...)` takes 1.0 ms.)
"""

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from halfseen.data.photometric import Changes, apply_changes, draw_changes
from halfseen.types import ViewPlan, ViewSpec

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["crop", "squash"]

CROP_ATTEMPTS = 10
"""Draws of a crop before the centre is taken, as in torchvision."""

REDUCING_GAP = 2.0
"""How many times larger than needed a reduced decode must stay, so that the difference can't be seen."""

_FLIPS = {(False, False): None, (True, False): 0, (False, True): 1, (True, True): -1}
"""OpenCV's codes for (upside down, mirrored)."""

LONGEST_ASPECT = 4
"""A picture longer than this many times its shorter side is cut to it around its centre before it is resized."""


class CropBox(NamedTuple):
    """A rectangle of whole pixels inside an image."""

    top: int
    left: int
    height: int
    width: int


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> CropBox:
    """A crop with the distribution of torchvision's `RandomResizedCrop`.

    Its area is uniform in `scale` times the image's area, the logarithm of width/height uniform in that of `ratio`, its
    place uniform. After ten draws that don't fit: the largest centre crop whose ratio is allowed.
    """
    area = height * width
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area_draw, ratio_draw = generator.random(2).tolist()
        target_area = area * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(log_low + (log_high - log_low) * ratio_draw)
        crop_width = round(math.sqrt(target_area * aspect))
        crop_height = round(math.sqrt(target_area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            down, right = generator.random(2).tolist()
            top = int(down * (height - crop_height + 1))
            left = int(right * (width - crop_width + 1))
            return CropBox(top, left, crop_height, crop_width)
    return _largest_centre_box(height, width, ratio)


def clamped_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> CropBox:
    """The crop of `random_crop_box` in a single draw, its sides cut to the image's where they are longer.

    Source: MAE, arXiv 2111.06377, linear probing (after TensorFlow's crop).
    """
    area_draw, ratio_draw, down, right = generator.random(4).tolist()
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(log_low + (log_high - log_low) * ratio_draw)
    crop_width = min(max(1, round(math.sqrt(area * aspect))), width)
    crop_height = min(max(1, round(math.sqrt(area / aspect))), height)
    top = int(down * (height - crop_height + 1))
    left = int(right * (width - crop_width + 1))
    return CropBox(top, left, crop_height, crop_width)


def _crop_box(height: int, width: int, spec: ViewSpec, generator: np.random.Generator) -> CropBox:
    match spec.crop:
        case "random":
            return random_crop_box(height, width, spec.crop_scale, spec.crop_ratio, generator)
        case "clamped":
            return clamped_crop_box(height, width, spec.crop_scale, spec.crop_ratio, generator)
        case "whole":
            return CropBox(0, 0, height, width)


def _largest_centre_box(height: int, width: int, ratio: tuple[float, float]) -> CropBox:
    """The largest box in the middle whose width/height lies within `ratio`; at least one pixel on each side."""
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        crop_width = max(1, min(width, round(height * ratio[1])))
    return CropBox((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int, interpolation: Interpolation, antialias: bool
) -> UInt8[np.ndarray, "height width 3"]:
    """The whole of a uint8 [H, W, 3] array (any strides) resampled to uint8 [height, width, 3]."""
    pixels = torch.from_numpy(image.copy())  # One copy of the crop: torch wants it writable and in one piece.
    resized = F.interpolate(
        pixels[None].permute(0, 3, 1, 2), size=(height, width), mode=interpolation, antialias=antialias
    )
    result: np.ndarray = resized[0].permute(1, 2, 0).numpy()
    return result


def cut_views(
    image: UInt8[np.ndarray, "H W 3"], plan: ViewPlan, generator: np.random.Generator
) -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """All views of one image, in the plan's order.

    Each view draws its crop (two numbers per attempt, two for the place; none for the whole image), then two for the
    flips, whether or not they are wanted, and, if its kind has `colour`, ten for that. Whatever is drawn beside, for
    `ViewSpec.change` and `ViewPlan.extras`, comes after the last of them, so adding it moves no crop.

    Args:
        image: uint8 [H, W, 3].
        plan: the views that the method wants.
        generator: the sample's own generator.
    Returns:
        uint8 [size, size, 3] for each view; a spec with count n gives n of them.
    """
    # All crops before all colours: with two global and ten local views the image then stays in the processor's cache.
    specs = [spec for spec in plan.views for _ in range(spec.count)]
    cut = [_cut_view(image, spec, generator) for spec in specs]
    coloured = [view if changes is None else apply_changes(view, changes) for view, changes in cut]
    return tuple(
        view if spec.change is None else spec.change(view, generator)
        for view, spec in zip(coloured, specs, strict=True)
    )


def _cut_view(
    image: UInt8[np.ndarray, "H W 3"], spec: ViewSpec, generator: np.random.Generator
) -> tuple[UInt8[np.ndarray, "S S 3"], Changes | None]:
    """A view with its own colours, and what is to be done to them."""
    box = _crop_box(image.shape[0], image.shape[1], spec, generator)
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    view = resize(crop, spec.size, spec.size, spec.interpolation, spec.antialias)
    mirror, turn_over = generator.random(2).tolist()
    flip = _FLIPS[turn_over < spec.vflip, mirror < spec.hflip]
    if flip is not None:
        view = cv2.flip(view, flip)
    return view, None if spec.colour is None else draw_changes(spec.colour, generator)


def deterministic_view(
    image: UInt8[np.ndarray, "H W 3"],
    size: int,
    resize_how: Resize = "crop",
    *,
    crop_ratio: float = 0.875,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
) -> UInt8[np.ndarray, "S S 3"]:
    """The view that evaluations and pictures use.

    Args:
        image: uint8 [H, W, 3].
        size: side of the view.
        resize_how: "crop" resizes the shorter side to size / crop_ratio and cuts out the centre; "squash" resizes to
            the square and lets the aspect ratio go (KAMIM's evaluations).
        crop_ratio: side of the centre crop over the resized shorter side, in (0, 1]; 224/256 in most protocols.
        interpolation: resampling filter.
        antialias: filter with the full support when shrinking.
    Returns:
        uint8 [size, size, 3].
    """
    if resize_how == "squash":
        return resize(image, size, size, interpolation, antialias)
    image = _without_far_ends(image)
    height, width = image.shape[:2]
    shorter = resized_shorter_side(size, crop_ratio)
    if width <= height:
        new_height, new_width = int(shorter * height / width), shorter
    else:
        new_height, new_width = shorter, int(shorter * width / height)
    resized = resize(image, new_height, new_width, interpolation, antialias)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return resized[top : top + size, left : left + size]


def resized_shorter_side(size: int, crop_ratio: float) -> int:
    """To how many pixels the shorter side is resized before a centre crop of `size`: 256 for 224 at 0.875."""
    return int(size / crop_ratio + 1e-6)


def _without_far_ends(image: np.ndarray) -> np.ndarray:
    """The middle of a very long or tall picture, which resized as a whole could fill the memory."""
    height, width = image.shape[:2]
    limit = LONGEST_ASPECT * min(height, width)
    top, left = max(0, height - limit) // 2, max(0, width - limit) // 2
    return image[top : height - top, left : width - left]


def smallest_crop_side(spec: ViewSpec, shorter_side: float) -> float:
    """The shortest side, in pixels, that a crop of this view can have in an image with this shorter side."""
    if spec.crop == "whole":
        return shorter_side
    steepest = max(spec.crop_ratio[1], 1.0 / spec.crop_ratio[0])
    return shorter_side * math.sqrt(spec.crop_scale[0] / steepest)


def decode_floor(plan: ViewPlan) -> int | None:
    """How far a decoder may shrink an image before it is handed to `cut_views`: the least shorter side, in pixels.

    Even the smallest crop then has twice the pixels it needs along each side. None, i.e. decode at full size, where a
    view is point-sampled: there shrinking would take away the aliasing that belongs to the method.
    """
    if not all(spec.antialias for spec in plan.views):
        return None
    return max(math.ceil(REDUCING_GAP * spec.size / smallest_crop_side(spec, 1.0)) for spec in plan.views)

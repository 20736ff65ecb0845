"""Random erasing: a rectangle of an image replaced by noise, after normalisation."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from halfseen.ops.blending import box_mask
from halfseen.ops.randomness import torch_generator

AREA = (0.02, 1 / 3)
LEAST_ASPECT = 0.3
ATTEMPTS = 10


def draw_erasures(
    count: int, height: int, width: int, generator: np.random.Generator, probability: float
) -> Int64[np.ndarray, "n 4"]:
    """Rectangles to erase, one per image: int64 [count, 4] top, bottom, left, right, ends excluded; all 0 = none.

    2 to 33 % of the image, with height over width from 0.3 to 1 / 0.3; a rectangle as high or wide as the image is
    drawn anew, ten times at most.

    Source: random erasing, arXiv 1708.04896, by the rules of timm's `RandomErasing` with one rectangle per image.
    """
    erased = generator.random(count) < probability
    draws = generator.random((4, count, ATTEMPTS))
    area = (AREA[0] + draws[0] * (AREA[1] - AREA[0])) * height * width
    aspect = np.exp(math.log(LEAST_ASPECT) * (1 - 2 * draws[1]))
    high, wide = (np.rint(np.sqrt(area * ratio)).astype(np.int64) for ratio in (aspect, 1 / aspect))
    fits = (high < height) & (wide < width)
    first = fits.argmax(axis=1)  # [n]
    every = np.arange(count)
    high, wide = high[every, first], wide[every, first]
    top = (draws[2][every, first] * (height - high + 1)).astype(np.int64)
    left = (draws[3][every, first] * (width - wide + 1)).astype(np.int64)
    boxes = np.stack([top, top + high, left, left + wide], axis=1)
    boxes[~(erased & fits.any(axis=1))] = 0
    return boxes


def erase(
    images: Float[Tensor, "B C H W"], boxes: Int64[np.ndarray, "B 4"], *key: int | str, first_row: int = 0
) -> Float[Tensor, "B C H W"]:
    """Normal noise in each image's rectangle: timm's mode "pixel".

    Args:
        images: normalised.
        boxes: of `draw_erasures`.
        key: names the stream of the noise; an image's noise is a function of it and of its row.
        first_row: row of the first image in the step's whole batch.
    """
    rows = np.flatnonzero(boxes.any(axis=1)).tolist()
    if not rows:
        return images
    channels = images.shape[1]
    noise = []
    for row in rows:  # A few small rectangles; drawn one by one, they don't depend on how the batch is shared out.
        top, bottom, left, right = boxes[row].tolist()
        size = channels * (bottom - top) * (right - left)
        noise.append(torch.randn(size, generator=torch_generator(*key, first_row + row)))
    filling = torch.cat(noise).to(images.device, images.dtype, non_blocking=True)
    inside = box_mask(boxes, images.shape[-2], images.shape[-1], images.device)
    return images.masked_scatter(inside.expand_as(images), filling)

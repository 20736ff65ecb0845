"""Noise that is confined to a band of frequencies: what a network needs to recognise an image, coarse or fine."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from halfseen.errors import ShapeError

HALF_WIDTH = 0.2
"""Of a band, in radians per pixel: the official code's; the paper's text says 0.1 pi."""


def sign_noise(images: int, side: int, eps: float, generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Noise of +eps or -eps, each as likely, for every value of square pictures."""
    noise: Tensor = eps * torch.randn(images, 3, side, side, generator=generator).sign()
    return noise


def band_noise(
    noise: Float[Tensor, "B C H W"], frequency: float, half_width: float = HALF_WIDTH
) -> Float[Tensor, "B C H W"]:
    """The part of some noise within a square ring of the Fourier plane around a frequency.

    The ring is a centred square of side 2 int((f + s) H / 2 pi) without one of side 2 int((f - s) H / 2 pi), both cut
    to the plane.

    Args:
        noise: square pictures of an even side.
        frequency: f, in radians per pixel along one axis, from 0 to pi.
        half_width: s, in radians per pixel.
    Raises:
        ShapeError: pictures that aren't square, or of an odd side.
    Source: How Do Vision Transformers Work?, arXiv 2202.06709, official code.
    """
    side = noise.shape[-1]
    if noise.shape[-2] != side or side % 2:
        raise ShapeError(
            f"band-limited noise needs square images of an even side, got {noise.shape[-2]}x{side}. Resize them."
        )
    ring = _square(side, frequency + half_width) & ~_square(side, frequency - half_width)
    spectrum = torch.fft.fft2(noise) * torch.fft.ifftshift(ring).to(noise.device)
    filtered: Tensor = torch.fft.ifft2(spectrum).real
    return filtered


def nearest_class(
    known: Float[Tensor, "n D"], labels: Int64[Tensor, " n"], queries: Float[Tensor, "m D"]
) -> Int64[Tensor, " m"] | None:
    """The class whose mean direction is nearest to each query, of images that are not among the queries.

    Args:
        known: features of images with labels; those with label -1 don't count.
    Returns:
        None where fewer than two classes are known.
    """
    classes = torch.unique(labels[labels >= 0])
    if len(classes) < 2:
        return None
    units = F.normalize(known.float(), dim=1)
    means = torch.stack([units[labels == label].mean(dim=0) for label in classes])
    nearest: Tensor = classes[(F.normalize(queries.float(), dim=1) @ F.normalize(means, dim=1).T).argmax(dim=1)]
    return nearest


def _square(side: int, frequency: float) -> Tensor:
    """bool [side, side]: the frequencies up to one, as a centred square of the shifted Fourier plane."""
    half = min(max(int(frequency * side / (2 * torch.pi)), 0), side // 2)
    line = torch.zeros(side, dtype=torch.bool)
    line[side // 2 - half : side // 2 + half] = True
    return line[:, None] & line

"""Spectra of tokens: over the image plane (Fourier), over directions (singular values), and their plain variance.

Pure functions of patch tokens float [B, N, D] without prefix tokens, row-major. What is averaged over images is given
image by image, so that batches of any size can be added up.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from halfseen.errors import ShapeError

AMPLITUDE_EPS = 1e-6
SINGULAR_EPS = 1e-12
SILENT = 1e-4
"""Singular values below this share of the largest are rounding noise of float32 tokens."""


def log_amplitudes(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float64[Tensor, "B K"]:
    """Log amplitude of each image's tokens along the diagonal of the Fourier plane, mean over features.

    log(|F| + 1e-6) of the unnormalised transform over the grid at the frequencies (f, f), f_k = 2 pi k / g, k = 0 ..
    ceil(g/2) - 1. Only the diagonal is computed, as a product with 2K waves: a full transform costs ten times as much.

    Returns:
        natural logarithms; subtract the first column for what `relative_log_amplitude` says.
    Raises:
        ShapeError: a grid that isn't square, or of another number of tokens.
    Source: How Do Vision Transformers Work?, arXiv 2202.06709; diagonal as in its official code.
    """
    rows, columns = grid
    if rows != columns:
        raise ShapeError(f"the Fourier diagonal needs a square grid, got {rows}x{columns}.")
    if tokens.shape[1] != rows * columns:
        raise ShapeError(f"tokens: got {tokens.shape[1]}, but the grid has {rows}x{columns} patches.")
    phase = torch.arange(rows).repeat_interleave(columns) + torch.arange(columns).repeat(rows)  # [N]: row + column
    frequencies = torch.arange((rows + 1) // 2)
    angle = 2 * torch.pi * frequencies[:, None].double() * phase / rows
    waves = torch.cat([angle.cos(), angle.sin()]).to(tokens.device, torch.float32)  # [2 K, N]
    cosines, sines = (waves @ tokens.float()).chunk(2, dim=1)  # [B, K, D] each
    return _wide(torch.log(torch.hypot(cosines, sines) + AMPLITUDE_EPS)).mean(dim=-1)


def relative_log_amplitude(amplitudes: Float64[Tensor, "*S K"]) -> Float64[Tensor, "*S K"]:
    """Log amplitudes over that of frequency 0; the last is the "high-frequency log amplitude"."""
    return amplitudes - amplitudes[..., :1]


def feature_variance(tokens: Float[Tensor, "B N D"]) -> Float64[Tensor, " B"]:
    """Unbiased variance over the patches of each image, mean over features; NaN for a single patch.

    Source: How Do Vision Transformers Work?, arXiv 2202.06709.
    """
    # By hand four times as fast as `var` over an axis that isn't the last.
    apart = tokens.float() - tokens.float().mean(dim=1, keepdim=True)
    return _wide(apart.square().sum(dim=1).mean(dim=-1)) / (tokens.shape[1] - 1 or float("nan"))


def token_singular_values(tokens: Float[Tensor, "B N D"]) -> Float64[Tensor, "B S"]:
    """Singular values of each image's tokens, centred over the image, falling; S = min(N, D)."""
    tokens = _wide(tokens)
    return _singular_values(tokens - tokens.mean(dim=1, keepdim=True))


def image_singular_values(means: Float[Tensor, "n D"]) -> Float64[Tensor, " S"]:
    """Singular values of the images' mean tokens, centred over the images, falling; S = min(n, D)."""
    means = _wide(means)
    return _singular_values((means - means.mean(dim=0))[None])[0]


class SpectrumChange(NamedTuple):
    """What attention does to the singular values of an image's tokens.

    Attributes:
        delta: float64 [R], mean over images of log(after) - log(before), R = min(N - 1, D): centring takes a rank.
        reliable: bool [R], ranks where before and after are above rounding noise in every image.
    """

    delta: Tensor
    reliable: Tensor


def spectrum_change(before: Float64[Tensor, "n S"], after: Float64[Tensor, "n S"], num_patches: int) -> SpectrumChange:
    """The change of singular values from before to after attention, rank by rank, see `SpectrumChange`."""
    ranks = min(num_patches - 1, before.shape[1])
    before, after = before[:, :ranks], after[:, :ranks]
    delta = ((after + SINGULAR_EPS).log() - (before + SINGULAR_EPS).log()).mean(dim=0)
    loud = [(values >= SILENT * values[:, :1]).all(dim=0) for values in (before, after)]
    return SpectrumChange(delta, loud[0] & loud[1])


def _singular_values(matrices: Float64[Tensor, "B n D"]) -> Float64[Tensor, "B S"]:
    """Square roots of the smaller Gram matrix's eigenvalues: several times faster than a decomposition.

    They are off by up to 1e-8 of the largest, which is below what float32 tokens can tell.
    """
    turned = matrices.transpose(1, 2)
    gram = matrices @ turned if matrices.shape[1] <= matrices.shape[2] else turned @ matrices
    values: Tensor = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0).sqrt()
    return values


def _wide(values: Tensor) -> Tensor:
    """float64, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()

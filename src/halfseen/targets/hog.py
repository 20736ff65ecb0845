"""HOG targets: histograms of oriented gradients of square cells, at several cell sizes, from normalised pictures.

Each colour is a picture of its own; unsigned orientation, hard bins, each cell's histogram divided by its own length,
no blocks of cells. One pass finds the gradients of all colours; coarse cells are sums of fine ones.

Sources: Masked Feature Prediction, arXiv 2112.09133; Masked Image Modeling with Local Multi-Scale Reconstruction, arXiv
2303.05251 (official code).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.losses import cell_mse
from halfseen.ops.patches import gather_tokens, patchify, repeat_cells
from halfseen.targets.pixels import PixelConfig

COLOURS = 3
_LENGTH_FLOOR = 1e-12
_BIAS_BOUND = 1 / 3

_Bins = Annotated[int, Field(ge=1, le=180, description="orientations of a histogram, each 180 / bins degrees wide, n")]
_Bias = Annotated[
    bool,
    Field(
        description="add two random constants, fixed for the run, to the gradients of each scale (hog_bias), which "
        "shifts both length and orientation"
    ),
]
_Fp32 = Annotated[
    bool,
    Field(
        description="find gradients in single precision whatever the run's; false rounds them and their angles to half "
        "precision where the run has it, as the official LocalMIM code does",
    ),
]


class HOGConfig(BaseModel):
    """Histograms of oriented gradients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hog"] = Field("hog", description="the target: hog = histograms of oriented gradients")
    bins: _Bins = 9
    bias: _Bias = False
    fp32: _Fp32 = True


class PatchHOGConfig(BaseModel):
    """Histograms of oriented gradients of the square cells within each hidden patch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hog"] = Field("hog", description="the target: hog = histograms of oriented gradients")
    bins: _Bins = 9
    bias: _Bias = False
    cell_size: int = Field(
        8, ge=1, description="side of a cell in pixels; the side of the squares that are predicted must be a multiple"
    )


PatchTarget = Annotated[PixelConfig | PatchHOGConfig, Field(discriminator="kind")]
"""What is predicted of each hidden patch: a part that SimMIM and MAE can use alike."""


class Gradients(NamedTuple):
    """Sobel responses: float32 [B, C, H, W] each.

    Attributes:
        horizontal: left minus right, weighed 1, 2, 1 over three rows (g0).
        vertical: above minus below, weighed 1, 2, 1 over three columns (g1).
    """

    horizontal: Tensor
    vertical: Tensor


def sobel_gradients(images: Float[Tensor, "B C H W"]) -> Gradients:
    """Gradients of each channel, the border reflected.

    Pixel differences are taken first and weighed afterwards, so they are exactly zero where neighbours are equal, and
    such a gradient's orientation doesn't depend on the order of a sum.

    Raises:
        ShapeError: a side of a single pixel, which can't be reflected.
    """
    H, W = images.shape[-2:]
    if min(H, W) < 2:
        raise ShapeError(f"a picture of {H}x{W} pixels has no gradients: both sides need at least 2 pixels.")
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = padded[..., :-2] - padded[..., 2:]  # [B, C, H + 2, W]
    down = padded[..., :-2, :] - padded[..., 2:, :]  # [B, C, H, W + 2]
    return Gradients(
        horizontal=(across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2),
        vertical=(down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2),
    )


def gradient_magnitude(gradients: Gradients) -> Float[Tensor, "*B"]:
    """Length of the gradients, at least 0."""
    # Half the time of torch.hypot on a CPU; squares of differences of normalised pixels don't overflow.
    return (gradients.horizontal * gradients.horizontal).addcmul_(gradients.vertical, gradients.vertical).sqrt_()


def gradient_phase(gradients: Gradients) -> Float[Tensor, "*B"]:
    """Angle atan2(horizontal, vertical) in [-pi, pi]."""
    return torch.atan2(gradients.horizontal, gradients.vertical)


def orientation_bins(phase: Float[Tensor, "*B"], bins: int) -> Int64[Tensor, "*B"]:
    """Bin floor(phase / pi * bins) mod bins, in [0, bins): opposite directions share one.

    0 and +-pi fall into bin 0, +-pi/2 into bin bins // 2, on every device.
    """
    return _signed_bins(phase.clone(), bins).long().remainder_(bins)


def _signed_bins(phase: Tensor, bins: int) -> Tensor:
    """floor(phase / pi * bins) in [-bins, bins], in place of `phase`.

    float32(pi) / float32(pi) is exactly 1, and so is the product with the reciprocal that some devices compute instead:
    the borders at multiples of pi / 2 are exact.
    """
    return phase.div_(math.pi).mul_(bins).floor_()


class HOGTarget(nn.Module):
    """HOG of whole pictures at one or several cell sizes.

    Args:
        cells: sides of the cells in pixels, one for each scale; sizes may repeat. All histograms are first taken over
            the largest cells that divide them all, so sizes that are multiples of each other are cheap.
        bins: orientations, n.
        bias: add two constants to the gradients of each scale, drawn from U(-1/3, 1/3) and never trained.
        generator: draws the constants; None takes torch's own.
        fp32: whether an autocast of the caller leaves no trace; else gradients and angles have its precision, as if
            the convolution of the original ran in it.
    Attributes:
        bias: float32 [K, 2], constants of the horizontal and vertical gradient of each scale; None without.
    """

    bias: Tensor | None
    rows: Tensor

    def __init__(
        self,
        cells: Sequence[int],
        bins: int = 9,
        bias: bool = False,
        generator: torch.Generator | None = None,
        fp32: bool = True,
    ) -> None:
        super().__init__()
        self.cells = tuple(cells)
        self.bins = bins
        self.fp32 = fp32
        constants = None
        if bias:
            constants = torch.empty(len(self.cells), 2).uniform_(-_BIAS_BOUND, _BIAS_BOUND, generator=generator)
        self.register_buffer("bias", constants)
        # Row i is the histogram of one pixel in signed bin i - bins, so that the modulo is part of a look-up.
        self.register_buffer("rows", torch.eye(bins).repeat(3, 1)[: 2 * bins + 1], persistent=False)

    @property
    def channels(self) -> int:
        """Values of a cell: the bins of red, then green, then blue."""
        return COLOURS * self.bins

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "B 3 H W"], start: int = 0
    ) -> tuple[Float32[Tensor, "B cells values"], ...]:
        """Histograms of each scale, added up in float32 whatever the autocast of the caller.

        Args:
            images: normalised with the data's mean and std; finite.
            start: number of the first scale that is wanted; those before it cost nothing.
        Returns:
            For each cell size c [B, (H / c) * (W / c), 3 * bins]: cells row-major; each colour's histogram has
            length 1, or is 0 where the cell is flat.
        Raises:
            ShapeError: cells that don't divide the picture.
        """
        cells = self.cells[start:]
        H, W = images.shape[-2:]
        misfits = [cell for cell in cells if H % cell or W % cell]
        if misfits:
            raise ShapeError(
                f"HOG cells of {', '.join(map(str, misfits))} px don't divide a picture of {H}x{W} pixels: both sides "
                "must be multiples of each cell size."
            )
        unit = math.gcd(*cells)
        dtype = torch.float32 if self.fp32 else _precision(images.device.type)
        with torch.autocast(images.device.type, enabled=False):
            gradients = sobel_gradients(images.to(dtype).float())
            horizontal, vertical = (cut_cells(part, unit) for part in gradients)
            if self.bias is None:
                fine = self._histograms(Gradients(horizontal, vertical), dtype)
                return tuple(_pool(fine, cell, unit) for cell in cells)
            scales = []
            for cell, (b0, b1) in zip(cells, self.bias[start:].to(dtype).float(), strict=True):
                fine = self._histograms(Gradients(horizontal + b0, vertical + b1), dtype)
                scales.append(_pool(fine, cell, unit))
            return tuple(scales)

    def _histograms(self, gradients: Gradients, dtype: torch.dtype) -> Tensor:
        """Lengths of the gradients in each smallest cell, added up by bin: [B, C, h, w, u * u] to [B, C, h, w, bins].

        A weighted sum of rows picked from a table is a histogram without a map of all bins for every pixel: on a CPU a
        fifth of the time of comparing with each bin, and on a GPU in a fixed order, unlike scattered additions.
        """
        gradients = Gradients(*(part.to(dtype) for part in gradients))
        index = _signed_bins(gradient_phase(gradients), self.bins).add_(self.bins).to(torch.int32)
        weights = gradient_magnitude(Gradients(*(part.float() for part in gradients)))
        sums = F.embedding_bag(index.flatten(0, -2), self.rows, mode="sum", per_sample_weights=weights.flatten(0, -2))
        return sums.view(*index.shape[:-1], self.bins)


def _precision(device: str) -> torch.dtype:
    """What an autocast of the caller computes convolutions in; float32 without one."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def cut_cells(maps: Float[Tensor, "B C H W"], cell: int) -> Float[Tensor, "B C h w p"]:
    """The pixels of each square cell, row by row, side by side in memory: p = cell^2."""
    B, C, H, W = maps.shape
    return maps.reshape(B, C, H // cell, cell, W // cell, cell).transpose(3, 4).flatten(4)


def _pool(fine: Float[Tensor, "B C h w n"], cell: int, unit: int) -> Float[Tensor, "B cells values"]:
    """Add up histograms of `unit` px cells to those of `cell` px and give each length 1, colours side by side."""
    B, C, h, w, n = fine.shape
    k = cell // unit
    # Rows before columns: the long inner axis makes the first sum, most of the work, a fast one.
    rows = fine.view(B, C, h // k, k, w * n).sum(3)
    sums = rows.view(B, C, h // k, w // k, k, n).sum(4)
    # The original averages over a cell's pixels before it divides; here the floor is scaled instead.
    normed = F.normalize(sums, dim=-1, eps=_LENGTH_FLOOR * cell**2)
    return normed.permute(0, 2, 3, 1, 4).reshape(B, -1, C * n)


class PatchHOG(nn.Module):
    """HOG of the cells within each patch, as a target of patch vectors and the loss that goes with it.

    Args:
        config: bins, cells, bias.
        patch_size: side of a predicted patch in pixels.
        generator: draws the bias.
    Attributes:
        cells_per_side: cells along one axis of a patch, k.
        channels: values of a cell.
    Raises:
        ConfigError: cells that don't divide the patch.
    """

    def __init__(self, config: PatchHOGConfig, patch_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if patch_size % config.cell_size:
            fitting = [size for size in range(2, patch_size + 1) if patch_size % size == 0]
            raise ConfigError(
                f"method.target.cell_size: {config.cell_size} px cells don't divide a predicted patch of {patch_size} "
                f"px. Cells that fit: {', '.join(map(str, fitting))}."
            )
        self.hog = HOGTarget((config.cell_size,), config.bins, config.bias, generator)
        self.cell_size = config.cell_size
        self.cells_per_side = patch_size // config.cell_size
        self.channels = self.hog.channels

    def forward(self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B n"]) -> Float32[Tensor, "B n P"]:
        """What must be predicted of some patches: P = k^2 * channels values, cell by cell, row-major.

        Args:
            images: normalised.
            ids: row-major numbers of the wanted patches.
        """
        (cells,) = self.hog(images)
        B, _, values = cells.shape
        picture = cells.view(B, images.shape[-2] // self.cell_size, -1, values).permute(0, 3, 1, 2)
        return gather_tokens(patchify(picture, self.cells_per_side, "channels_last"), ids)

    def mse(
        self,
        prediction: Float[Tensor, "B n P"],
        target: Float[Tensor, "B n P"],
        weights: Float[Tensor, "B n l l"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error over hidden cells; a cell that is hidden in part counts by that part.

        Args:
            prediction, target: as from `forward`.
            weights: hidden parts of the patches, in [0, 1], on a grid of any size l; None where they are all hidden.
        """
        B, n, _ = target.shape
        shape = (B, n * self.cells_per_side**2, self.channels)
        hidden = None
        if weights is not None:
            fine = math.lcm(weights.shape[-1], self.cells_per_side)
            weights = repeat_cells(weights, fine // weights.shape[-1])
            hidden = F.avg_pool2d(weights, fine // self.cells_per_side).reshape(shape[:2])
        return cell_mse(prediction.reshape(shape), target.reshape(shape), hidden)

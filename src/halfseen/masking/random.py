"""Random masks of patches and of larger cells, for a whole batch at once from uniform noise.

Noise comes in as a tensor (see `ops.randomness.step_noise`), so a mask is a function of where the run stands. Sorting
noise gives every row a uniform subset of exactly the wanted size without a loop over the batch.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.losses import patch_weights
from halfseen.ops.patches import mask_from_ids, repeat_cells

Rounding = Literal["ceil", "floor"]


class RandomSplit(NamedTuple):
    """Which patches are seen and which are hidden.

    Attributes:
        visible_ids: int64 [B, N_vis], in shuffled order: ascending noise, *not* ascending position.
        hidden_ids: int64 [B, N - N_vis], the rest, in shuffled order.
        ids_restore: int64 [B, N]; gathering cat(visible, hidden) tokens by it brings back raster order.
        mask: bool [B, N], True = hidden, raster order.
    """

    visible_ids: Tensor
    hidden_ids: Tensor
    ids_restore: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "RandomSplit":
        """The same split on another device."""
        return RandomSplit(*(part.to(device, non_blocking=True) for part in self))


def count_visible(num_patches: int, mask_ratio: float) -> int:
    """How many patches MAE keeps: int(N (1 - ratio)), truncating the float64 product (N 196, ratio 0.9 keeps 19).

    Raises:
        ConfigError: if nothing would be visible, or nothing hidden.
    """
    visible = int(num_patches * (1 - mask_ratio))
    if not 0 < visible < num_patches:
        raise ConfigError(
            f"method.mask_ratio: {mask_ratio} of {num_patches} patches leaves {visible} visible; between 1 and "
            f"{num_patches - 1} must be. Choose another ratio, a smaller patch size or a larger image."
        )
    return visible


def count_hidden(num_cells: int, mask_ratio: float, rounding: Rounding) -> int:
    """How many cells are hidden: the float64 product cells * ratio, rounded up (official SimMIM) or down (ViNy)."""
    product = num_cells * mask_ratio
    return math.ceil(product) if rounding == "ceil" else math.floor(product)


def random_visible_ids(noise: Float[Tensor, "B N"], num_visible: int) -> RandomSplit:
    """Keep the `num_visible` patches of smallest noise in each row, in ascending order of noise.

    Source: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377 (LocalMIM draws in the same way).
    """
    B, N = noise.shape
    if not 0 < num_visible <= N:
        raise ShapeError(f"got num_visible={num_visible}, expected 1 to {N}, the number of patches.")
    ids_shuffle = noise.argsort(dim=1)
    ranks = torch.arange(N, device=noise.device).expand(B, N)
    # The inverse permutation by scattering: cheaper than a second sort.
    ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, ranks)
    return RandomSplit(
        visible_ids=ids_shuffle[:, :num_visible],
        hidden_ids=ids_shuffle[:, num_visible:],
        ids_restore=ids_restore,
        mask=ids_restore >= num_visible,
    )


def hidden_by_topk(noise: Float[Tensor, "B N"], num_hidden: int) -> Int64[Tensor, "B n"]:
    """Ids of the `num_hidden` largest noise values of each row, in descending order of noise.

    Source: the SimMIM of Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (ViNy).
    """
    N = noise.shape[1]
    if not 0 < num_hidden <= N:
        raise ShapeError(f"got num_hidden={num_hidden}, expected 1 to {N}, the number of patches.")
    return noise.topk(num_hidden, dim=1).indices


def count_hidden_localmim(num_patches: int, mask_ratio: float, exact_ratio: bool = False) -> int:
    """How many patches LocalMIM hides from a Swin: int(N r) + 1, or int(N r) with `exact_ratio`.

    The official code compares ranks with <= (49 patches, ratio 0.75: 37 are hidden, 12 visible).

    Raises:
        ConfigError: if nothing would be hidden, or nothing visible.
    """
    hidden = int(num_patches * mask_ratio) + (not exact_ratio)
    if not 0 < hidden < num_patches:
        raise ConfigError(
            f"method.mask_ratio: {mask_ratio} of {num_patches} patches hides {hidden}; between 1 and "
            f"{num_patches - 1} must be. Choose another ratio or a larger image."
        )
    return hidden


def mask_by_rank(ranks: Int64[Tensor, "*B N"], num_hidden: int) -> Bool[Tensor, "*B N"]:
    """Hide the patches of the `num_hidden` lowest ranks; `ranks` holds every number from 0 to N - 1 in each row.

    Source: the one mask that a batch shares in Masked Image Modeling with Local Multi-Scale Reconstruction, arXiv
    2303.05251, official Swin code.
    """
    return ranks < num_hidden


@dataclass(frozen=True)
class CellGrid:
    """Square mask cells on a square image: a fixed number is hidden, each covers whole model patches.

    Attributes:
        side: cells along one axis.
        patches_per_cell: model patches along one axis of a cell.
        num_hidden: hidden cells of an image.
    """

    side: int
    patches_per_cell: int
    num_hidden: int

    @classmethod
    def of(
        cls, image_size: int, cell_size: int, patch_size: int, mask_ratio: float, rounding: Rounding = "ceil"
    ) -> "CellGrid":
        """The grid of `cell_size` pixel cells on an image of `image_size` pixels with patches of `patch_size`.

        Raises:
            ConfigError: cells that don't divide the image or aren't made of whole patches, or a ratio that hides all
                cells or none.
        """
        fitting = [size for size in range(patch_size, image_size, patch_size) if image_size % size == 0]
        allowed = f"Cells that fit: {', '.join(map(str, fitting))}." if fitting else "No cell size fits this image."
        if image_size < 2 * cell_size:
            raise ConfigError(
                f"method.mask_cell_size: {cell_size} px cells on an image of {image_size} px leave nothing to choose; "
                f"at least 2 cells per side are needed. {allowed}"
            )
        if image_size % cell_size or cell_size % patch_size:
            raise ConfigError(
                f"method.mask_cell_size: {cell_size} px cells must divide the image side ({image_size} px) and be a "
                f"multiple of the patch size ({patch_size} px). {allowed}"
            )
        side = image_size // cell_size
        num_hidden = count_hidden(side**2, mask_ratio, rounding)
        if not 0 < num_hidden < side**2:
            raise ConfigError(
                f"method.mask_ratio: {mask_ratio} of {side**2} mask cells hides {num_hidden}; between 1 and "
                f"{side**2 - 1} must be hidden. Choose another ratio, smaller mask cells or a larger image."
            )
        return cls(side, cell_size // patch_size, num_hidden)

    @property
    def num_cells(self) -> int:
        """Cells of an image."""
        return self.side**2

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Model patches along both axes of an image."""
        return (self.side * self.patches_per_cell,) * 2

    @property
    def num_hidden_patches(self) -> int:
        """Hidden model patches of an image, the same for every image."""
        return self.num_hidden * self.patches_per_cell**2

    def hide(self, noise: Float[Tensor, "B cells"]) -> Int64[Tensor, "B n"]:
        """Draw the hidden cells of each image: those of largest noise, in descending order of noise."""
        return hidden_by_topk(noise, self.num_hidden)

    def patch_mask(self, hidden_cells: Int64[Tensor, "B n"]) -> Bool[Tensor, "B N"]:
        """The mask on the model's patch grid, row-major, that hides the given cells."""
        cells = mask_from_ids(hidden_cells, self.num_cells).reshape(-1, self.side, self.side)
        return repeat_cells(cells, self.patches_per_cell).flatten(1)

    def tokens_in_loss(self, hidden_cells: Int64[Tensor, "B n"], patches_per_token: int) -> "LossTokens":
        """Which output tokens must be decoded, and how much each part of them counts.

        Args:
            hidden_cells: from `hide`.
            patches_per_token: model patches along one axis of an output token (1 for a ViT, 8 for a four-stage Swin).
        Returns:
            Where cells are made of whole tokens, just the hidden ones, cell by cell in the order of `hidden_cells`.
            Otherwise all tokens, with 1 for their hidden parts and 0 for the others.
        """
        tokens_per_cell, rest = divmod(self.patches_per_cell, patches_per_token)
        if rest == 0:
            return LossTokens(self._unit_ids(hidden_cells, tokens_per_cell), None)
        num_tokens = (self.side * self.patches_per_cell // patches_per_token) ** 2
        every = torch.arange(num_tokens, device=hidden_cells.device).expand(len(hidden_cells), -1)
        cells = mask_from_ids(hidden_cells, self.num_cells).float().reshape(-1, self.side, self.side)
        return LossTokens(every, patch_weights(cells, self.patches_per_cell, patches_per_token))

    def _unit_ids(self, cells: Int64[Tensor, "B n"], units_per_cell: int) -> Int64[Tensor, "B m"]:
        """Row-major ids of the units in the given cells, each cell cut into `units_per_cell` units per axis."""
        if units_per_cell == 1:
            return cells
        step = torch.arange(units_per_cell, device=cells.device)
        inside = (step[:, None] * (self.side * units_per_cell) + step).reshape(-1)
        corner = (cells // self.side * self.side * units_per_cell + cells % self.side) * units_per_cell
        return (corner.unsqueeze(-1) + inside).flatten(1)


class LossTokens(NamedTuple):
    """Output tokens that enter a loss.

    Attributes:
        ids: int64 [B, n], row-major.
        weights: float32 [B, n, k, k], 1 for hidden and 0 for visible parts of the tokens; None if all is hidden.
    """

    ids: Tensor
    weights: Tensor | None


def legacy_cell_order(generator: np.random.RandomState, num_cells: int) -> np.ndarray:
    """One draw of the originals' cell permutation, int64 [num_cells]: its first entries are the hidden cells.

    The originals call `numpy.random.permutation` after `numpy.random.seed(s)`, which is what `RandomState(s)` gives
    without touching the global state. For reproducing their masks; training draws from `step_noise`.
    """
    return generator.permutation(num_cells)


def legacy_masks(grid: CellGrid, generator: np.random.RandomState, count: int) -> Bool[Tensor, "count N"]:
    """`count` successive masks of the official SimMIM generator, as KAMIM uses it too."""
    draws = np.stack([legacy_cell_order(generator, grid.num_cells)[: grid.num_hidden] for _ in range(count)])
    return grid.patch_mask(torch.from_numpy(draws))

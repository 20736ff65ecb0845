"""Pictures cut into patches and put together again; patch grids, patch masks and gathering of tokens.

Patches are row-major everywhere. The order of the values *inside* a patch is said here and nowhere else:

* "channels_first": (colour, row, column), the order of a pixel-shuffle decoder (SimMIM's official code, KAMIM);
* "channels_last": (row, column, colour), the order of MAE and of ViNy.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from halfseen.errors import ShapeError

PixelOrder = Literal["channels_first", "channels_last"]


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """(rows, cols) of the patches of a picture.

    Raises:
        ShapeError: a side that is not a multiple of the patch size.
    """
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ShapeError(
            f"a picture of {height}x{width} pixels can't be cut into patches of {patch_size}: both sides must be "
            f"multiples of the patch size. {_nearest_sides(height, patch_size)}"
        )
    return height // patch_size, width // patch_size


def _nearest_sides(side: int, unit: int) -> str:
    if unit < 1:
        return "Choose a patch size of at least 1."
    below = side // unit * unit
    choices = [str(value) for value in (below, below + unit) if value > 0]
    return f"Sides near {side} that fit: {', '.join(choices)}."


def whole_patches(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B C H2 W2"]:
    """The top left part of pictures that whole patches fill: a border on the right and below is cut off.

    Raises:
        ShapeError: a side shorter than one patch.
    Source: how Masked Siamese Networks, arXiv 2204.07141, see 96 pixels in patches of 7; official code.
    """
    H, W = images.shape[-2:]
    if min(H, W) < patch_size:
        raise ShapeError(f"a picture of {H}x{W} pixels holds no patch of {patch_size}. Enlarge it.")
    return images[..., : H // patch_size * patch_size, : W // patch_size * patch_size]


def patchify(
    images: Float[Tensor, "B C H W"], patch_size: int, order: PixelOrder = "channels_last"
) -> Float[Tensor, "B N P"]:
    """Cut pictures into row-major patches; P = C * patch_size**2 values each, in `order`.

    Raises:
        ShapeError: a side that is not a multiple of the patch size.
    """
    B, C, H, W = images.shape
    rows, cols = patch_grid(H, W, patch_size)
    cut = images.reshape(B, C, rows, patch_size, cols, patch_size)
    if order == "channels_first":
        cut = cut.permute(0, 2, 4, 1, 3, 5)
    else:
        cut = cut.permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(B, rows * cols, C * patch_size**2)


def unpatchify(
    patches: Float[Tensor, "B N P"],
    grid: tuple[int, int],
    patch_size: int,
    order: PixelOrder = "channels_last",
) -> Float[Tensor, "B C H W"]:
    """Put patches together again: the inverse of `patchify` for a picture of `grid` patches.

    Raises:
        ShapeError: a number of patches or of values per patch that does not go with the grid and the patch size.
    """
    rows, cols = grid
    B, N, P = patches.shape
    C, rest = divmod(P, patch_size**2)
    if rows * cols != N or rest or C < 1:
        raise ShapeError(
            f"{N} patches of {P} values don't make a picture of {rows}x{cols} patches of {patch_size} pixels: there "
            f"must be {rows * cols} patches with a multiple of {patch_size**2} values."
        )
    if order == "channels_first":
        cut = patches.reshape(B, rows, cols, C, patch_size, patch_size).permute(0, 3, 1, 4, 2, 5)
    else:
        cut = patches.reshape(B, rows, cols, patch_size, patch_size, C).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(B, C, rows * patch_size, cols * patch_size)


def gather_tokens(tokens: Float[Tensor, "B N *D"], ids: Int64[Tensor, "B n"]) -> Float[Tensor, "B n *D"]:
    """The tokens at `ids`, in the order of `ids`; a token may have any shape."""
    index = ids.reshape(*ids.shape, *[1] * (tokens.ndim - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


def repeat_cells(cells: Tensor, times: int) -> Tensor:
    """Enlarge [..., h, w] to [..., h * times, w * times]: every entry repeated along both axes (any dtype)."""
    if times == 1:
        return cells
    return cells.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


def pixel_mask(mask: Bool[Tensor, "B N"], grid: tuple[int, int], patch_size: int) -> Bool[Tensor, "B 1 H W"]:
    """A patch mask as a mask of pixels, True = hidden."""
    return repeat_cells(mask.reshape(-1, *grid), patch_size).unsqueeze(1)


def mask_from_ids(ids: Int64[Tensor, "B n"], num_patches: int) -> Bool[Tensor, "B N"]:
    """True at `ids`, False elsewhere."""
    mask = torch.zeros(ids.shape[0], num_patches, dtype=torch.bool, device=ids.device)
    return mask.scatter_(1, ids, True)

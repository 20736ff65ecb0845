"""A Swin transformer that sees the visible patches only, for one mask that all images of a batch share.

Nothing is computed for hidden patches: every layer of a Swin works on single tokens or inside one window, and one
mask for the whole batch makes the windows' contents a function of the mask alone. Windows are worked out on the host,
packed into groups of equal size, and attention runs group by group with a mask between windows.

Tokens are *patch-major*: the patches of the mask (one per token of the deepest stage) in raster order, inside each its
tokens in raster order. Weights, and the order in which four tokens are merged, are timm's.

Source: Green Hierarchical Vision Transformer for Masked Image Modeling, arXiv 2205.13515, as LocalMIM, arXiv
2303.05251, uses it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, WindowAttention
from torch import Tensor

from halfseen.backbones.blocks import Heads, attend, normed, run_mlp
from halfseen.backbones.masked import cut_patches, project_patches
from halfseen.backbones.swin import SwinEncoder
from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.recompute import checkpointed

Coords = Literal["reference", "fixed"]
"""Where a visible token is taken to lie, which decides its window and its relative positions.

"fixed": where it lies in the image, so the encoder is a Swin in which hidden tokens can't be attended to. "reference":
as the official code has it, the first stage aside: token j of the patch-major list is put where the *raster* list has
its token j, so windows of the middle stages gather tokens from different places.
"""


class TapShape(NamedTuple):
    """Size of one map: `side` tokens along both axes of the image, each `width` wide."""

    side: int
    width: int


class VisibleTap(NamedTuple):
    """The visible tokens after one stage and the patch merging that follows it, before any norm.

    Attributes:
        tokens: float [B, n, C], patch-major.
        visible_ids: int64 [1, n], row-major places of `tokens` in the map, in their order.
        hidden_ids: int64 [1, m], places of the other tokens, patch-major too.
        shape: of the whole map, n + m = side^2.
    """

    tokens: Tensor
    visible_ids: Tensor
    hidden_ids: Tensor
    shape: TapShape


class Grouping(NamedTuple):
    """Windows of one stage packed into groups of equal size.

    Attributes:
        places: int64 [n], the slot (group * size + position) of each visible token; None if all are one group.
        pairs: int64 [groups, size, size], row of the bias table for each pair of slots; for slots of different windows
            the row after the last. Empty slots count as one window.
    """

    places: Tensor | None
    pairs: Tensor

    def to(self, device: torch.device) -> "Grouping":
        """The same grouping on another device."""
        return Grouping(None if self.places is None else _to(self.places, device), _to(self.pairs, device))


def tap_shapes(encoder: SwinEncoder) -> tuple[TapShape, ...]:
    """The maps that `encode_visible` gives, one per stage: the last two have the same shape."""
    stages = encoder.trunk.layers
    side = encoder.image_size // encoder.patch_size
    below = [min(number + 1, len(stages) - 1) for number in range(len(stages))]
    return tuple(TapShape(side // 2**stage, encoder.mask_dim * 2**stage) for stage in below)


def mask_grid(encoder: SwinEncoder) -> tuple[int, int]:
    """Sides of the grid on which `encode_visible` takes a mask: that of the deepest stage."""
    side = encoder.image_size // encoder.stride
    return side, side


def check_visible(encoder: SwinEncoder) -> None:
    """See that an encoder can run on visible tokens.

    Raises:
        ConfigError: windows that stick out of a stage's grid.
    """
    if encoder.pads_windows:
        raise ConfigError(
            f"model.window_size: the windows don't tile every stage at {encoder.image_size} px, and padding can't be "
            "left out with the hidden tokens. Leave model.window_size and model.pad_windows out, or choose another "
            "image size."
        )


def encode_visible(
    encoder: SwinEncoder,
    images: Float[Tensor, "B 3 H W"],
    mask: Bool[Tensor, "N"],
    coords: Coords = "reference",
) -> tuple[VisibleTap, ...]:
    """The maps after each stage, for visible patches only.

    Args:
        images: float, normalised, of the side that the encoder was built for.
        mask: bool on the grid of `mask_grid`, raster order, True = hidden; on the CPU, where windows are worked out.
        coords: see `Coords`.
    Returns:
        one `VisibleTap` per stage, of the shapes in `tap_shapes`.
    Raises:
        ShapeError: images of another size, a mask of another grid or device, or one that hides everything.
    """
    side, _ = mask_grid(encoder)
    _check_inputs(encoder, images, mask)
    device = images.device
    stages = encoder.trunk.layers
    visible = mask.logical_not().nonzero().squeeze(1)
    inner_sides = [2 ** (len(stages) - 1 - stage) for stage in range(len(stages))]
    groupings = [
        {
            window: group_windows(*_positions(visible, side, inner, coords if number else "fixed"), *window).to(device)
            for window in dict.fromkeys(map(_window, stage.blocks))
        }
        for number, (stage, inner) in enumerate(zip(stages, inner_sides, strict=True))
    ]
    hidden = mask.nonzero().squeeze(1)
    places = {
        inner: (_row_major(visible, side, inner, device), _row_major(hidden, side, inner, device))
        for inner in inner_sides[1:] or inner_sides
    }

    with encoder.gradient(0):
        x = _embed(encoder, images, _to(visible, device))
    taps: list[VisibleTap] = []
    number = 0
    for stage, inner, windows, shape in zip(stages, inner_sides, groupings, tap_shapes(encoder), strict=True):
        for block in stage.blocks:
            number += 1
            with encoder.gradient(number):
                x = checkpointed(partial(_run_block, block, windows[_window(block)]), x)
        if inner > 1:
            with encoder.gradient(number):
                x = _merge(stages[len(taps) + 1].downsample, x, inner)
        taps.append(VisibleTap(x, *places[max(1, inner // 2)], shape))
    return tuple(taps)


def group_windows(rows: Int64[Tensor, "n"], columns: Int64[Tensor, "n"], window: int, shift: int) -> Grouping:
    """Pack the windows that tokens at these places fall into.

    Up to 2 window^2 tokens make one group. More are packed, window by window, into groups of at most window^2 slots:
    largest windows first, each into the first group with room for it, which leaves few slots empty.

    Args:
        rows, columns: of each token on its stage's grid.
        window: side of a window in tokens.
        shift: by how many tokens the windows' borders are shifted.
    """
    offset = (window - shift) % window
    down, right = (rows + offset) // window, (columns + offset) // window
    _, owner, counts = torch.unique(down * (right.max() + 1) + right, return_inverse=True, return_counts=True)
    n = len(rows)
    if n <= 2 * window**2:
        return Grouping(None, _pairs(rows[None], columns[None], owner[None], window))
    group = torch.tensor(_first_fit(counts.tolist(), window**2))[owner]
    filled = group.bincount()
    size = int(filled.max())
    order = group.argsort(stable=True)
    starts = (filled.cumsum(0) - filled).repeat_interleave(filled)
    places = torch.empty_like(order)
    places[order] = group[order] * size + torch.arange(n) - starts
    slots = torch.zeros(3, len(filled) * size, dtype=torch.int64)
    slots[2] = -1
    slots[:, places] = torch.stack([rows, columns, owner])
    rows, columns, owner = slots.reshape(3, len(filled), size)
    return Grouping(places, _pairs(rows, columns, owner, window))


def _first_fit(counts: Sequence[int], capacity: int) -> list[int]:
    """The group of each window: largest first, each into the first group that has room for it."""
    room = [capacity] * len(counts)
    groups = [0] * len(counts)
    for window in sorted(range(len(counts)), key=lambda window: -counts[window]):
        group = next(group for group, free in enumerate(room) if free >= counts[window])
        room[group] -= counts[window]
        groups[window] = group
    return groups


def _pairs(rows: Tensor, columns: Tensor, owner: Tensor, window: int) -> Tensor:
    """Rows of the bias table for pairs of slots: from int64 [G, P] to int64 [G, P, P]."""
    span = 2 * window - 1
    down = rows[:, :, None] - rows[:, None, :] + window - 1
    right = columns[:, :, None] - columns[:, None, :] + window - 1
    return torch.where(owner[:, :, None] == owner[:, None, :], down * span + right, span**2)


def _window(block: SwinTransformerBlock) -> tuple[int, int]:
    """Side and shift of a block's windows."""
    return block.window_size[0], block.shift_size[0]


def _positions(visible: Tensor, side: int, inner: int, coords: Coords) -> tuple[Tensor, Tensor]:
    """Row and column of each visible token, where every visible patch holds inner x inner tokens."""
    cell = torch.arange(inner**2)
    if coords == "reference":
        ids = (visible[:, None] * inner**2 + cell).flatten()
        return ids // (side * inner), ids % (side * inner)
    rows = (visible // side * inner)[:, None] + cell // inner
    columns = (visible % side * inner)[:, None] + cell % inner
    return rows.flatten(), columns.flatten()


def _row_major(patches: Tensor, side: int, inner: int, device: torch.device) -> Tensor:
    """Row-major places [1, n] of the tokens of some patches of the mask, each of inner x inner tokens."""
    rows, columns = _positions(patches, side, inner, "fixed")
    return _to(rows * (side * inner) + columns, device)[None]


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` that the host doesn't wait for, which takes pinned memory where the device is another."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _embed(encoder: SwinEncoder, images: Tensor, visible: Tensor) -> Tensor:
    """Patch embedding of the visible patches of the mask, each of which is a small image of its own: [B, n, C]."""
    B = len(images)
    cells = cut_patches(images, encoder.stride, visible.expand(B, -1))  # [B, v, 3, stride, stride]
    embedding = encoder.trunk.patch_embed
    tokens = project_patches(cells.flatten(0, 1), embedding.proj)
    out: Tensor = embedding.norm(tokens.reshape(B, -1, tokens.shape[-1]))
    return out


def _run_block(block: SwinTransformerBlock, grouping: Grouping, x: Tensor) -> Tensor:
    """One Swin block on visible tokens [B, n, C]."""
    x = x + block.drop_path1(_group_attention(block.attn, block.norm1(x), grouping))
    with normed(block.norm2, x) as second:
        out: Tensor = x + block.drop_path2(run_mlp(block.mlp, second))
    return out


def _group_attention(attention: WindowAttention, x: Tensor, grouping: Grouping) -> Tensor:
    """Attention within windows of visible tokens [B, n, C], already normalised."""
    B, _, C = x.shape
    groups, size, _ = grouping.pairs.shape
    if grouping.places is not None:
        # Written and read at distinct places: backward is a read and a write again, without atomic additions.
        x = x.new_zeros(B, groups * size, C).index_copy(1, grouping.places, x)
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(B, groups, size, 3, heads, -1)
    # Groups count as heads, so a bias without a batch axis serves all images.
    parts = Heads(*qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0))  # [B, G * heads, P, d]
    out = attend(parts, attention.scale, _bias(attention.relative_position_bias_table, grouping.pairs))
    out = out.reshape(B, groups, heads, size, -1).transpose(2, 3).reshape(B, groups * size, -1)
    if grouping.places is not None:
        out = out.index_select(1, grouping.places)
    attended: Tensor = attention.proj(out)
    return attended


def _bias(table: Tensor, pairs: Tensor) -> Tensor:
    """Relative position bias, -inf between windows: from [rows, heads] to [1, G * heads, P, P]."""
    closed = torch.cat([table, table.new_full((1, table.shape[1]), float("-inf"))])
    return F.embedding(pairs, closed).permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(0)


def _merge(merging: PatchMerging, x: Tensor, inner: int) -> Tensor:
    """Patch merging in timm's order, (0, 0), (1, 0), (0, 1), (1, 1) by row and column: a quarter of the tokens."""
    B, n, C = x.shape
    half = inner // 2
    cut = x.reshape(B, n // inner**2, half, 2, half, 2, C).permute(0, 1, 2, 4, 5, 3, 6)
    out: Tensor = merging.reduction(merging.norm(cut.reshape(B, n // 4, 4 * C)))
    return out


def _check_inputs(encoder: SwinEncoder, images: Tensor, mask: Tensor) -> None:
    side, _ = mask_grid(encoder)
    size = encoder.image_size
    if tuple(images.shape[-2:]) != (size, size):
        raise ShapeError(
            f"images: got {images.shape[-2]}x{images.shape[-1]} pixels, the windows were laid out for {size}x{size}."
        )
    if mask.shape != (side**2,) or mask.device.type != "cpu":
        raise ShapeError(
            f"mask: got shape {tuple(mask.shape)} on {mask.device.type}, expected ({side**2},) on the cpu: one mask "
            f"for the batch, on the {side}x{side} grid of the deepest stage."
        )
    if bool(mask.all()):
        raise ShapeError("mask: hides every patch; at least one must be visible.")

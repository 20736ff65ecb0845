"""The Swin transformer: timm's SwinTransformer behind the masked forward.

The attention branch is written out here: windows are cut from the projected q, k, v and put back before the output
projection (two copies instead of four), bias and shift mask are added in one step, and images of another size than
the model was built for are padded before the shift, as the iBOT code does (timm pads after it).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from halfseen.backbones.base import BlockView, Encoder, Features, Tokens, WantedRows
from halfseen.backbones.blocks import normed, run_mlp
from halfseen.backbones.masked import check_hiding, check_layers, project_patches, replace_hidden
from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.layer_decay import swin_layer_id
from halfseen.ops.patches import patch_grid
from halfseen.ops.recompute import checkpointed


class SwinEncoder(Encoder):
    """timm's SwinTransformer with patches replaced by a mask token after the patch embedding's norm.

    Args:
        trunk: the timm model, without a classifier.
        image_size: side in pixels for which `trunk` was built; it decides windows and shifts for every input size.
    """

    trunk: SwinTransformer

    def __init__(self, trunk: SwinTransformer, image_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = image_size
        self.embed_dim = trunk.num_features
        self.mask_dim = trunk.patch_embed.proj.out_channels
        self.patch_size = trunk.patch_embed.patch_size[0]
        self.stride = self.patch_size * 2 ** (len(trunk.layers) - 1)
        self.num_prefix_tokens = 0
        self.has_class_token = False
        self.num_layers = sum(len(stage.blocks) for stage in trunk.layers)
        self.num_heads = trunk.layers[-1].blocks[-1].attn.num_heads

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages in order."""
        return [block for stage in self.trunk.layers for block in stage.blocks]

    @property
    def pads_windows(self) -> bool:
        """Whether, at the size it was built for, windows stick out of some stage's grid."""
        sides = [self.image_size // self.patch_size // 2**number for number in range(len(self.trunk.layers))]
        windows = [stage.blocks[0].window_size[0] for stage in self.trunk.layers]
        return any(side % window for side, window in zip(sides, windows, strict=True))

    def freezing_unit(self, name: str) -> int:
        depths = [len(stage.blocks) for stage in self.trunk.layers]
        return min(swin_layer_id(name.removeprefix("trunk."), depths), self.num_layers)

    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        visible_ids: Tensor | None = None,
        layers: Sequence[int] = (),
        attention_layers: Sequence[int] = (),
        attention_rows: WantedRows = "class",
    ) -> Features:
        check_hiding(mask, mask_token, visible_ids)
        check_layers(layers, self.num_layers)
        if attention_layers:
            raise ConfigError(
                "attention_layers: a Swin encoder has no class token, and its tokens attend within windows only. Use a "
                "vit_* model."
            )
        if visible_ids is not None:
            raise ShapeError(
                "visible_ids: a Swin encoder can't drop patches, its windows need the whole grid. Use a method that "
                "replaces them (simmim, kamim) or a vit_* model."
            )
        B = len(images)
        rows, columns = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        with self.gradient(0):
            tokens = self.trunk.patch_embed.norm(project_patches(images, self.trunk.patch_embed.proj))
            if mask is not None and mask_token is not None:
                tokens = replace_hidden(tokens, mask, mask_token)
        x = tokens.reshape(B, rows, columns, -1)  # [B, h, w, C]
        kept = {0: x}
        number = 0
        for stage in self.trunk.layers:
            with self.gradient(number):
                x = stage.downsample(x)
            for block in stage.blocks:
                number += 1
                with self.gradient(number):
                    x = checkpointed(partial(swin_block, block), x)
                if number in layers:
                    kept[number] = x
        raw = tuple(_flat(kept[layer]) for layer in layers)
        final = _flat(self.trunk.norm(x))
        return Features(final.prefix, final.patches, final.grid, raw)

    def block_views(self, images: Tensor) -> Iterator[BlockView]:
        rows, columns = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        tokens = self.trunk.patch_embed.norm(project_patches(images, self.trunk.patch_embed.proj))
        x = tokens.reshape(len(images), rows, columns, -1)  # [B, h, w, C]
        yield BlockView(0, _flat(x))
        number = 0
        for stage in self.trunk.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                number += 1
                first = block.norm1(x)
                out = _window_attention(block, first)
                attended = x + block.drop_path1(out)
                x = _add_mlp(block, attended)
                yield BlockView(number, _flat(x), _flat(attended), _flat(first), _flat(out))


def swin_block(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """One Swin block on float [B, h, w, C]."""
    return _add_mlp(block, x + block.drop_path1(_window_attention(block, block.norm1(x))))


def _add_mlp(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    with normed(block.norm2, x) as second:
        out: Tensor = x + block.drop_path2(run_mlp(block.mlp, second))
    return out


def _flat(x: Tensor) -> Tokens:
    B, rows, columns, C = x.shape
    return Tokens(x.new_zeros(B, 0, C), x.reshape(B, rows * columns, C), (rows, columns))


def _window_attention(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Attention within (shifted) windows of float [B, h, w, C], already normalised."""
    B, h, w, _ = x.shape
    (side, side_w), (shift, shift_w) = block.window_size, block.shift_size
    pad_h, pad_w = -h % side, -w % side_w
    if pad_h or pad_w:
        # Padded tokens are zeros and take part in the attention: their q, k, v are the projection's bias.
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    if shift or shift_w:
        x = x.roll((-shift, -shift_w), dims=(1, 2))
    rows, columns = x.shape[1] // side, x.shape[2] // side_w
    attention = block.attn
    heads, tokens = attention.num_heads, side * side_w
    qkv = attention.qkv(x).reshape(B, rows, side, columns, side_w, 3, heads, -1)
    query, key, value = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, B, rows * columns, heads, tokens, -1).unbind(0)
    bias = _bias(block, x)  # [1 or windows, heads, T, T]
    if x.device.type == "cpu":
        # The bias is trained, so the fused CPU kernel would fall back to plain products anyway.
        logits = (query * attention.scale) @ key.transpose(-2, -1)
        logits += bias.to(logits.dtype)
        out = logits.softmax(dim=-1) @ value
    else:
        merged = B * rows * columns
        bias = bias.expand(rows * columns, -1, -1, -1).repeat(B, 1, 1, 1) if len(bias) > 1 else bias
        query, key, value = (part.reshape(merged, heads, tokens, -1) for part in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    out = out.reshape(B, rows, columns, heads, side, side_w, -1).permute(0, 1, 4, 2, 5, 3, 6)
    out = attention.proj(out.reshape(B, rows * side, columns * side_w, -1))
    if shift or shift_w:
        out = out.roll((shift, shift_w), dims=(1, 2))
    attended: Tensor = out[:, :h, :w] if pad_h or pad_w else out
    return attended


def _bias(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Relative position bias plus shift mask for the padded map `x`: [1 or windows, heads, T, T]."""
    attention = block.attn
    tokens = attention.window_area
    table = attention.relative_position_bias_table[attention.relative_position_index.reshape(-1)]
    bias: Tensor = table.reshape(1, tokens, tokens, -1).permute(0, 3, 1, 2)
    if not any(block.shift_size):
        return bias
    mask = block.attn_mask
    if mask is None or len(mask) != x.shape[1] * x.shape[2] // tokens or x.shape[1] != x.shape[2]:
        mask = block.get_attn_mask(x)
    with_shift: Tensor = bias + mask.unsqueeze(1)
    return with_shift

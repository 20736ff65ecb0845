"""The official SimMIM ViT: timm's Beit with a relative position bias that all blocks share."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor, nn

from halfseen.backbones.base import Encoder, Features
from halfseen.backbones.masked import (
    attention_weights,
    check_hiding,
    check_layers,
    choose_attention,
    project_patches,
    replace_hidden,
    run_blocks,
    split_tokens,
)
from halfseen.errors import ShapeError
from halfseen.ops.patches import patch_grid
from halfseen.ops.positions import PositionRule, resize_positions


class BeitEncoder(Encoder):
    """timm's Beit with patches replaced or dropped.

    The shared bias is gathered once per forward pass, not once per block; with dropped patches its rows and columns
    are those of the visible tokens.

    Args:
        trunk: the timm model, without a classifier.
        image_size: side in pixels for which `trunk`'s tables were built; other sizes are refused.
        position_rule: kept for the absolute positions that some checkpoints carry.
    """

    trunk: Beit

    def __init__(self, trunk: Beit, image_size: int, position_rule: PositionRule = "size") -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = image_size
        self.position_rule: PositionRule = position_rule
        self.embed_dim = self.mask_dim = trunk.embed_dim
        self.patch_size = self.stride = trunk.patch_embed.patch_size[0]
        self.num_prefix_tokens = 1
        self.num_layers = len(trunk.blocks)
        self.num_heads = trunk.blocks[-1].attn.num_heads
        self._has_tables = trunk.rel_pos_bias is not None or trunk.blocks[0].attn.window_size is not None

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order."""
        return list(self.trunk.blocks)

    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        visible_ids: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        check_hiding(mask, mask_token, visible_ids)
        check_layers(layers, self.num_layers)
        grid = self._grid(images)
        tokens = self._embed(images, grid, mask, mask_token, visible_ids)
        choose_attention(self.trunk.blocks, tokens)
        tokens, kept = run_blocks(tokens, self.trunk.blocks, self._block_call(tokens, visible_ids), layers)
        final = split_tokens(self.trunk.norm(tokens), 1, grid)
        raw = tuple(split_tokens(kept[layer], 1, grid) for layer in layers)
        return Features(final.prefix, final.patches, grid, raw)

    def attention(self, images: Float[Tensor, "B 3 H W"], layer: int) -> Float[Tensor, "B heads T T"]:
        """Attention weights of a block (1-based) on fully visible images; the class token comes first."""
        check_layers([layer], self.num_layers)
        tokens = self._embed(images, self._grid(images), None, None, None)
        choose_attention(self.trunk.blocks, tokens)
        before = self.trunk.blocks[: max(layer, 1) - 1]
        tokens, _ = run_blocks(tokens, before, self._block_call(tokens, None), ())
        block = self.trunk.blocks[max(layer, 1) - 1]
        shared = self.trunk.rel_pos_bias
        bias = shared() if shared is not None else None
        if block.attn.window_size is not None:
            bias = block.attn._get_rel_pos_bias()
        return attention_weights(block.attn, block.norm1(tokens), bias)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        if self._has_tables and grid != self.trunk.patch_embed.grid_size:
            raise ShapeError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels: this encoder's relative positions were built "
                f"for {self.image_size} pixels. Load it with image_size={images.shape[-1]} to have them remapped."
            )
        return grid

    def _block_call(self, tokens: Tensor, visible_ids: Tensor | None) -> Callable[[nn.Module, Tensor], Tensor]:
        shared = self.trunk.rel_pos_bias
        if shared is None:
            if visible_ids is not None and self._has_tables:
                raise ShapeError(
                    "visible_ids: patches can be dropped with a shared table of relative positions only; "
                    "set model.relative_positions=shared."
                )
            return lambda block, x: block(x)
        bias = shared()  # [heads, T, T]
        if visible_ids is not None:
            rows = torch.cat([visible_ids.new_zeros(len(visible_ids), 1), visible_ids + 1], dim=1)  # [B, T']
            bias = bias[:, rows[:, :, None], rows[:, None, :]].transpose(0, 1)  # [B, heads, T', T']
        # Cast once: a float32 bias would promote every block's half-precision logits.
        if torch.is_autocast_enabled(tokens.device.type):
            bias = bias.to(torch.get_autocast_dtype(tokens.device.type))
        return lambda block, x: block(x, shared_rel_pos_bias=bias)

    def _embed(
        self,
        images: Tensor,
        grid: tuple[int, int],
        mask: Tensor | None,
        mask_token: Tensor | None,
        visible_ids: Tensor | None,
    ) -> Tensor:
        """Class and patch tokens, with absolute positions where the model has them: [B, T, D]."""
        tokens = project_patches(images, self.trunk.patch_embed.proj, visible_ids)
        if mask is not None and mask_token is not None:
            tokens = replace_hidden(tokens, mask, mask_token)
        class_token = self.trunk.cls_token
        if self.trunk.pos_embed is not None:
            table = resize_positions(self.trunk.pos_embed, grid[0], grid[1], 1, self.position_rule)
            tokens = tokens + (table[:, 1:] if visible_ids is None else table[0, 1:][visible_ids])
            class_token = class_token + table[:, :1]
        tokens = torch.cat([class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        embedded: Tensor = self.trunk.pos_drop(tokens)
        return embedded

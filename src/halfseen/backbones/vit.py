"""The plain vision transformer: timm's VisionTransformer behind the masked forward."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
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
from halfseen.ops.patches import patch_grid
from halfseen.ops.positions import PositionRule, resize_positions, sincos_positions


class ViTEncoder(Encoder):
    """timm's VisionTransformer with patches replaced or dropped.

    Args:
        trunk: the timm model, without a classifier.
        image_size: side in pixels for which `trunk`'s positions were built.
        position_rule: how learned positions are resized when an image has another size.
    """

    trunk: VisionTransformer

    def __init__(self, trunk: VisionTransformer, image_size: int, position_rule: PositionRule = "size") -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = image_size
        self.position_rule: PositionRule = position_rule
        self.embed_dim = self.mask_dim = trunk.embed_dim
        self.patch_size = self.stride = trunk.patch_embed.patch_size[0]
        self.num_prefix_tokens = trunk.num_prefix_tokens
        self.num_layers = len(trunk.blocks)
        self.num_heads = trunk.blocks[-1].attn.num_heads

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order."""
        return list(self.trunk.blocks)

    def use_sincos_positions(self) -> None:
        """Replace the learned positions by the fixed sine-cosine table: kept in the state dict, never trained."""
        side = self.image_size // self.patch_size
        prefix = 0 if self.trunk.no_embed_class else self.num_prefix_tokens
        table = sincos_positions(self.embed_dim, side, side, prefix).float()[None]
        like = self.trunk.patch_embed.proj.weight
        self.trunk.pos_embed = nn.Parameter(table.to(device=like.device, dtype=like.dtype), requires_grad=False)

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
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        tokens = self._embed(images, grid, mask, mask_token, visible_ids)
        choose_attention(self.trunk.blocks, tokens)
        tokens, kept = run_blocks(tokens, self.trunk.blocks, lambda block, x: block(x), layers)
        final = split_tokens(self.trunk.norm(tokens), self.num_prefix_tokens, grid)
        raw = tuple(split_tokens(kept[layer], self.num_prefix_tokens, grid) for layer in layers)
        return Features(final.prefix, final.patches, grid, raw)

    def attention(self, images: Float[Tensor, "B 3 H W"], layer: int) -> Float[Tensor, "B heads T T"]:
        """Attention weights of a block (1-based) on fully visible images; prefix tokens come first, rows sum to 1."""
        check_layers([layer], self.num_layers)
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        tokens = self._embed(images, grid, None, None, None)
        choose_attention(self.trunk.blocks, tokens)
        before = self.trunk.blocks[: max(layer, 1) - 1]
        tokens, _ = run_blocks(tokens, before, lambda block, x: block(x), ())
        block = self.trunk.blocks[max(layer, 1) - 1]
        return attention_weights(block.attn, block.norm1(tokens))

    def _embed(
        self,
        images: Tensor,
        grid: tuple[int, int],
        mask: Tensor | None,
        mask_token: Tensor | None,
        visible_ids: Tensor | None,
    ) -> Tensor:
        """Prefix and patch tokens with their positions: [B, T, D]."""
        tokens = self.trunk.patch_embed.norm(project_patches(images, self.trunk.patch_embed.proj, visible_ids))
        if mask is not None and mask_token is not None:
            tokens = replace_hidden(tokens, mask, mask_token)
        prefix_positions, patch_positions = self._positions(grid)
        if patch_positions is not None:
            kept = patch_positions if visible_ids is None else patch_positions[0][visible_ids]
            tokens = tokens + kept
        prefix = self._prefix(prefix_positions)
        if prefix is not None:
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        embedded: Tensor = self.trunk.norm_pre(self.trunk.pos_drop(tokens))
        return embedded

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Positions of the prefix tokens [1, P, D] (None: they get none) and of the patches [1, N, D]."""
        if self.trunk.pos_embed is None:
            return None, None
        prefix = 0 if self.trunk.no_embed_class else self.num_prefix_tokens
        table = resize_positions(self.trunk.pos_embed, grid[0], grid[1], prefix, self.position_rule)
        return (table[:, :prefix] if prefix else None), table[:, prefix:]

    def _prefix(self, positions: Tensor | None) -> Tensor | None:
        parts = [part for part in (self.trunk.cls_token, self.trunk.reg_token) if part is not None]
        if not parts:
            return None
        prefix = torch.cat(parts, dim=1)
        return prefix if positions is None else prefix + positions

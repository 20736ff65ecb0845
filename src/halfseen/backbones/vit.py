"""The plain vision transformer: timm's VisionTransformer behind the masked forward."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from halfseen.backbones.base import BlockView, Encoder, Features, Selected, Tokens, WantedRows
from halfseen.backbones.blocks import (
    attention_matrix,
    check_attention,
    run_block,
    run_block_for,
    run_block_selected,
    run_transformer,
    view_blocks,
)
from halfseen.backbones.conv_stem import ConvStem
from halfseen.backbones.masked import check_hiding, check_layers, check_selected, project_patches, replace_hidden
from halfseen.ops.layer_decay import vit_freezing_unit
from halfseen.ops.patches import patch_grid, whole_patches
from halfseen.ops.positions import PositionRule, resize_positions, sincos_positions
from halfseen.ops.recompute import checkpointed


class ViTEncoder(Encoder):
    """timm's VisionTransformer with patches replaced or dropped.

    Args:
        trunk: the timm model, without a classifier; its patch embedding is timm's, or a `ConvStem`.
        image_size: side in pixels for which `trunk`'s positions were built.
        position_rule: how learned positions are resized when an image has another size.
        crop_to_patches: cut the border off images that whole patches don't fill, instead of refusing them.
    """

    trunk: VisionTransformer

    def __init__(
        self,
        trunk: VisionTransformer,
        image_size: int,
        position_rule: PositionRule = "size",
        crop_to_patches: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = image_size
        self.position_rule: PositionRule = position_rule
        self.crop_to_patches = crop_to_patches
        self.embed_dim = self.mask_dim = trunk.embed_dim
        self.patch_size = self.stride = trunk.patch_embed.patch_size[0]
        self.num_prefix_tokens = trunk.num_prefix_tokens
        self.has_class_token = trunk.cls_token is not None
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
        like = next(self.trunk.blocks.parameters())
        self.trunk.pos_embed = nn.Parameter(table.to(device=like.device, dtype=like.dtype), requires_grad=False)

    def freezing_unit(self, name: str) -> int:
        return vit_freezing_unit(name.removeprefix("trunk."), self.num_layers)

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
        check_layers(layers, self.num_layers)
        check_attention(attention_layers, attention_rows, self.num_layers, self.has_class_token)
        with self.gradient(0):
            tokens, grid = self._embed(images, mask, mask_token, visible_ids)
        return run_transformer(
            tokens,
            self.trunk.blocks,
            self.trunk.norm,
            self.num_prefix_tokens,
            grid,
            layers=layers,
            attention_layers=attention_layers,
            attention_rows=attention_rows,
            gradient=self.gradient,
        )

    def forward_selected(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        visible_ids: Tensor | None = None,
        selected: Tensor | None = None,
    ) -> Selected:
        """As the contract says; the last block's work is done for the class token and the selected patches only."""
        if not self.has_class_token:
            return super().forward_selected(
                images, mask=mask, mask_token=mask_token, visible_ids=visible_ids, selected=selected
            )
        with self.gradient(0):
            tokens, _ = self._embed(images, mask, mask_token, visible_ids)
        *before, last = self.trunk.blocks
        for number, block in enumerate(before, start=1):
            with self.gradient(number):
                tokens = run_block(block, tokens)
        # Not in `run_block_for`, with which decoders end too: there the loss comes next, here other views do.
        if selected is None:
            row = checkpointed(partial(run_block_for, last, wanted=slice(0, 1)), tokens)[:, 0]
            return Selected(self.trunk.norm(row), row.new_zeros(0, self.embed_dim))
        check_selected(selected)
        run = partial(run_block_selected, last, num_prefix_tokens=self.num_prefix_tokens, selected=selected)
        rows = checkpointed(run, tokens)
        summary, patches = self.trunk.norm(rows).tensor_split([len(tokens)])
        return Selected(summary, patches)

    def encode_layers(self, images: Tensor, layers: Sequence[int]) -> tuple[Tokens, ...]:
        check_layers(layers, self.num_layers)
        tokens, grid = self._embed(images, None, None, None)
        blocks = self.trunk.blocks[: max(layers, default=0)]
        return run_transformer(tokens, blocks, nn.Identity(), self.num_prefix_tokens, grid, layers=layers).layers

    def block_views(self, images: Tensor) -> Iterator[BlockView]:
        tokens, grid = self._embed(images, None, None, None)
        return view_blocks(tokens, self.trunk.blocks, self.num_prefix_tokens, grid)

    def attention(self, images: Float[Tensor, "B 3 H W"], layer: int) -> Float[Tensor, "B heads T T"]:
        """Attention weights of a block (1-based) on fully visible images; prefix tokens come first, rows sum to 1."""
        check_attention([layer], "head_mean", self.num_layers, self.has_class_token)
        return attention_matrix(self._embed(images, None, None, None)[0], self.blocks, layer)

    def _embed(
        self, images: Tensor, mask: Tensor | None, mask_token: Tensor | None, visible_ids: Tensor | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Prefix and patch tokens with their positions [B, T, D], and the grid of all patches."""
        check_hiding(mask, mask_token, visible_ids)
        if self.crop_to_patches:
            images = whole_patches(images, self.patch_size)
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        tokens = self._project(images, visible_ids)
        if mask is not None and mask_token is not None:
            tokens = replace_hidden(tokens, mask, mask_token)
        prefix_positions, patch_positions = self._positions(grid)
        if patch_positions is not None:
            kept = patch_positions if visible_ids is None else patch_positions[0][visible_ids]
            tokens = tokens + kept
        prefix = self._prefix(prefix_positions)
        if prefix is not None:
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.trunk.norm_pre(self.trunk.pos_drop(tokens)), grid

    def _project(self, images: Tensor, visible_ids: Tensor | None) -> Tensor:
        """Patch embeddings [B, n, D]."""
        embedding = self.trunk.patch_embed
        if isinstance(embedding, ConvStem):
            return embedding(images, visible_ids)  # type: ignore[no-any-return]
        projected: Tensor = embedding.norm(project_patches(images, embedding.proj, visible_ids))
        return projected

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

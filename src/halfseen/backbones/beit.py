"""The official SimMIM ViT: timm's Beit with a relative position bias that all blocks share."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor, nn

from halfseen.backbones.base import BlockView, Encoder, Features, WantedRows
from halfseen.backbones.blocks import (
    Biases,
    attention_matrix,
    check_attention,
    no_bias,
    run_transformer,
    view_blocks,
)
from halfseen.backbones.masked import check_hiding, check_layers, project_patches, replace_hidden
from halfseen.errors import ShapeError
from halfseen.ops.layer_decay import vit_freezing_unit
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
        self.has_class_token = True
        self.num_layers = len(trunk.blocks)
        self.num_heads = trunk.blocks[-1].attn.num_heads
        self._has_tables = trunk.rel_pos_bias is not None or trunk.blocks[0].attn.window_size is not None

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order."""
        return list(self.trunk.blocks)

    def freezing_unit(self, name: str) -> int:
        return vit_freezing_unit(name.removeprefix("trunk."), self.num_layers)

    def first_use(self, name: str) -> int:
        return 1 if name.startswith("trunk.rel_pos_bias.") else self.freezing_unit(name)

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
        check_hiding(mask, mask_token, visible_ids)
        grid = self._grid(images)
        with self.gradient(0):
            tokens = self._embed(images, grid, mask, mask_token, visible_ids)
        return run_transformer(
            tokens,
            self.trunk.blocks,
            self.trunk.norm,
            1,
            grid,
            layers=layers,
            attention_layers=attention_layers,
            attention_rows=attention_rows,
            bias=self._biases(tokens, visible_ids),
            gradient=self.gradient,
        )

    def block_views(self, images: Tensor) -> Iterator[BlockView]:
        grid = self._grid(images)
        tokens = self._embed(images, grid, None, None, None)
        return view_blocks(tokens, self.trunk.blocks, 1, grid, self._biases(tokens, None))

    def attention(self, images: Float[Tensor, "B 3 H W"], layer: int) -> Float[Tensor, "B heads T T"]:
        """Attention weights of a block (1-based) on fully visible images; the class token comes first."""
        check_attention([layer], "head_mean", self.num_layers, self.has_class_token)
        tokens = self._embed(images, self._grid(images), None, None, None)
        return attention_matrix(tokens, self.blocks, layer, self._biases(tokens, None))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        if self._has_tables and grid != self.trunk.patch_embed.grid_size:
            raise ShapeError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels: this encoder's relative positions were built "
                f"for {self.image_size} pixels. Load it with image_size={images.shape[-1]} to have them remapped."
            )
        return grid

    def _biases(self, tokens: Tensor, visible_ids: Tensor | None) -> Biases:
        """The relative position bias of each block: the shared one, or the block's own table's."""
        shared = self.trunk.rel_pos_bias
        if shared is None:
            if not self._has_tables:
                return no_bias
            if visible_ids is not None:
                raise ShapeError(
                    "visible_ids: patches can be dropped with a shared table of relative positions only; "
                    "set model.relative_positions=shared."
                )
            return lambda block: block.attn._get_rel_pos_bias().squeeze(0)
        bias: Tensor = shared()  # [heads, T, T]
        if visible_ids is not None:
            rows = torch.cat([visible_ids.new_zeros(len(visible_ids), 1), visible_ids + 1], dim=1)  # [B, T']
            bias = bias[:, rows[:, :, None], rows[:, None, :]].transpose(0, 1)  # [B, heads, T', T']
        # Cast once, not in every block.
        if torch.is_autocast_enabled(tokens.device.type):
            bias = bias.to(torch.get_autocast_dtype(tokens.device.type))
        return lambda block: bias

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

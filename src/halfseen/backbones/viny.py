"""ViNy's small ViT: timm's VisionTransformer with its own patch embedding and wide attention heads."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from halfseen.backbones.base import BlockView, Encoder, Features, WantedRows
from halfseen.backbones.blocks import attention_matrix, check_attention, run_transformer, view_blocks
from halfseen.backbones.masked import check_hiding, check_layers, cut_patches, replace_hidden
from halfseen.ops.layer_decay import vit_freezing_unit
from halfseen.ops.patches import patch_grid
from halfseen.ops.positions import PositionRule, resize_positions


class ViNyPatchEmbed(nn.Module):
    """Patch vectors (row, column, colour), LayerNorm, Linear, LayerNorm."""

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        eps: float = 1e-5,
        **unused: object,
    ) -> None:
        super().__init__()
        side = img_size // patch_size
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (side, side)
        self.num_patches = side * side
        values = in_chans * patch_size**2
        self.pre_norm = nn.LayerNorm(values, eps=eps, device=device, dtype=dtype)
        self.proj = nn.Linear(values, embed_dim, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(embed_dim, eps=eps, device=device, dtype=dtype)

    def forward(self, images: Float[Tensor, "B 3 H W"], visible_ids: Tensor | None = None) -> Float[Tensor, "B n D"]:
        """Embeddings of all patches, or of the visible ones in the order of `visible_ids`."""
        patches = cut_patches(images, self.patch_size[0], visible_ids).permute(0, 1, 3, 4, 2)
        embedded: Tensor = self.norm(self.proj(self.pre_norm(patches.flatten(2))))
        return embedded


def build_viny_trunk(
    image_size: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    head_dim: int,
    mlp_ratio: float,
    norm_eps: float,
    drop_path: float,
    device: torch.device | str | None = None,
) -> VisionTransformer:
    """The timm model with ViNy's three own pieces; initialise it with `initialise.init_viny`."""
    trunk = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        num_classes=0,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=1,
        mlp_ratio=mlp_ratio,
        qkv_bias=False,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        embed_layer=partial(ViNyPatchEmbed, eps=norm_eps),
        device=device,
    )
    for block in trunk.blocks:
        # VisionTransformer can't pass a head width on, so its attention is replaced.
        block.attn = Attention(embed_dim, num_heads, attn_head_dim=head_dim, qkv_bias=False, device=device)
        if num_heads == 1 and head_dim == embed_dim:
            block.attn.proj = nn.Identity()
    return trunk


class ViNyEncoder(Encoder):
    """ViNy's ViT with patches replaced or dropped.

    Args:
        trunk: from `build_viny_trunk`.
        image_size: side in pixels for which positions were built.
        class_token: put the class token before the patches. Off for patch tokens (pre-training, segmentation): it is
            then a parameter that gets no gradient, as in the original.
        position_rule: how positions are resized when an image has another size.
    """

    trunk: VisionTransformer

    def __init__(
        self,
        trunk: VisionTransformer,
        image_size: int,
        class_token: bool = False,
        position_rule: PositionRule = "size",
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = image_size
        self.position_rule: PositionRule = position_rule
        self.embed_dim = self.mask_dim = trunk.embed_dim
        self.patch_size = self.stride = trunk.patch_embed.patch_size[0]
        self.num_prefix_tokens = 1 if class_token else 0
        self.has_class_token = class_token
        self.num_layers = len(trunk.blocks)
        self.num_heads = trunk.blocks[-1].attn.num_heads
        # A parameter that never gets a gradient would stall DistributedDataParallel; it stays in the state dict.
        trunk.cls_token.requires_grad_(class_token)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order."""
        return list(self.trunk.blocks)

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

    def block_views(self, images: Tensor) -> Iterator[BlockView]:
        tokens, grid = self._embed(images, None, None, None)
        return view_blocks(tokens, self.trunk.blocks, self.num_prefix_tokens, grid)

    def attention(self, images: Float[Tensor, "B 3 H W"], layer: int) -> Float[Tensor, "B heads T T"]:
        """Attention weights of a block (1-based) on fully visible images, rows sum to 1."""
        check_attention([layer], "head_mean", self.num_layers, self.has_class_token)
        return attention_matrix(self._embed(images, None, None, None)[0], self.blocks, layer)

    def _embed(
        self, images: Tensor, mask: Tensor | None, mask_token: Tensor | None, visible_ids: Tensor | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens (after the class token, if used) with their positions [B, T, D], and the grid of all patches."""
        check_hiding(mask, mask_token, visible_ids)
        grid = patch_grid(images.shape[-2], images.shape[-1], self.patch_size)
        tokens: Tensor = self.trunk.patch_embed(images, visible_ids)
        if mask is not None and mask_token is not None:
            tokens = replace_hidden(tokens, mask, mask_token)
        table = resize_positions(self.trunk.pos_embed, grid[0], grid[1], 1, self.position_rule)
        tokens = tokens + (table[:, 1:] if visible_ids is None else table[0, 1:][visible_ids])
        if self.num_prefix_tokens:
            first = self.trunk.cls_token + table[:, :1]
            tokens = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens, grid

"""Decoders of pixel targets, thrown away after pre-training. Each predicts only the patches that it is asked for.

The order of the values inside a predicted patch differs (see `ops.patches`): SimMIM and KAMIM have (colour, row,
column), MAE and ViNy (row, column, colour).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from halfseen.backbones.blocks import run_block, run_block_for
from halfseen.backbones.masked import set_norm_eps
from halfseen.ops.patches import gather_tokens, unpatchify
from halfseen.ops.positions import sincos_positions


class PixelShuffleDecoder(nn.Module):
    """SimMIM's head: a 1x1 convolution and a pixel shuffle, computed as a product on the wanted tokens.

    Its weights are named and shaped like the official `decoder.0`: weight [3 * stride^2, D, 1, 1], bias.

    Args:
        embed_dim: width D of the encoder's tokens.
        stride: pixels per token along one axis, s; or cells, if histograms are predicted.
        channels: colours; or values of a cell.
    """

    def __init__(self, embed_dim: int, stride: int, channels: int = 3) -> None:
        super().__init__()
        self.stride = stride
        self.add_module("0", nn.Conv2d(embed_dim, channels * stride**2, kernel_size=1))

    @property
    def projection(self) -> nn.Conv2d:
        """The 1x1 convolution."""
        return self.get_submodule("0")  # type: ignore[return-value]

    def forward(self, tokens: Float[Tensor, "*B D"]) -> Float[Tensor, "*B P"]:
        """Pixels of each token's square: P = channels * stride^2 values in the order (colour, row, column)."""
        return F.linear(tokens, self.projection.weight.flatten(1), self.projection.bias)

    def picture(self, tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The whole picture from row-major tokens of a grid (rows, cols)."""
        return unpatchify(self(tokens), grid, self.stride, "channels_first")


class LinearPatchDecoder(nn.Linear):
    """ViNy's head: one linear layer from a token to its patch vector (row, column, colour).

    Args:
        embed_dim: width D of the encoder's tokens.
        patch_size: side of a patch in pixels, p; or in cells, if histograms are predicted.
        channels: colours; or values of a cell.
    """

    def __init__(self, embed_dim: int, patch_size: int, channels: int = 3) -> None:
        super().__init__(embed_dim, channels * patch_size**2)
        self.patch_size = patch_size

    def picture(self, tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The whole picture from row-major tokens of a grid (rows, cols)."""
        return unpatchify(self(tokens), grid, self.patch_size, "channels_last")


class MAEDecoder(nn.Module):
    """MAE's decoder: a narrow ViT over visible tokens and mask tokens with fixed sine-cosine positions.

    The order of tokens does not matter to a transformer, so nothing is shuffled back: mask tokens, each with the
    position of its hidden patch, follow the visible ones, and predictions are read off the end.

    Args:
        encoder_dim: width of the encoder's tokens.
        grid: (rows, cols) of the patch grid.
        patch_size: side of a patch in pixels, p; or in cells, if histograms are predicted.
        embed_dim, depth, num_heads, mlp_ratio: the decoder's own sizes.
        num_prefix_tokens: class token (and registers) that come with the encoder's output.
        norm_eps: epsilon of its LayerNorms.
        channels: colours; or values of a cell.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        patch_size: int,
        *,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_prefix_tokens: int = 1,
        norm_eps: float = 1e-6,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch_size = patch_size
        self.num_prefix_tokens = num_prefix_tokens
        self.decoder_embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = sincos_positions(embed_dim, *grid, num_prefix_tokens).float()[None]
        # Fixed, but a parameter like the official one, so that it stands in the state dict under the same rules.
        self.decoder_pos_embed = nn.Parameter(table.to(self.mask_token.device), requires_grad=False)
        self.decoder_blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth))
        )
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, channels * patch_size**2)
        set_norm_eps(self, norm_eps)

    def forward(
        self,
        prefix: Float[Tensor, "B P D"],
        patches: Float[Tensor, "B n D"],
        visible_ids: Int64[Tensor, "B n"],
        hidden_ids: Int64[Tensor, "B m"],
    ) -> Float[Tensor, "B m V"]:
        """Predict the hidden patches.

        Args:
            prefix: the encoder's class token (may be empty).
            patches: the encoder's visible tokens, in the order of `visible_ids`.
            visible_ids, hidden_ids: row-major patch numbers; together every patch of the grid once.
        Returns:
            p * p * channels values per hidden patch (row, column, colour), in the order of `hidden_ids`.
        """
        tokens = self._embed(prefix, patches, visible_ids, hidden_ids)
        *before, last = self.decoder_blocks
        for block in before:
            tokens = run_block(block, tokens)
        hidden = run_block_for(last, tokens, slice(-hidden_ids.shape[1], None))
        return self.decoder_pred(self.decoder_norm(hidden))  # type: ignore[no-any-return]

    def predict_all(
        self,
        prefix: Float[Tensor, "B P D"],
        patches: Float[Tensor, "B n D"],
        visible_ids: Int64[Tensor, "B n"],
        hidden_ids: Int64[Tensor, "B m"],
    ) -> Float[Tensor, "B N V"]:
        """Predictions of all patches, visible ones too, in row-major order; arguments as in `forward`."""
        tokens = self._embed(prefix, patches, visible_ids, hidden_ids)
        for block in self.decoder_blocks:
            tokens = run_block(block, tokens)
        tokens = tokens[:, self.num_prefix_tokens :]
        order = torch.cat([visible_ids, hidden_ids], dim=1).argsort(dim=1)
        return gather_tokens(self.decoder_pred(self.decoder_norm(tokens)), order)

    def picture(self, predictions: Float[Tensor, "B N V"]) -> Float[Tensor, "B C H W"]:
        """Row-major predictions of all patches as a picture."""
        return unpatchify(predictions, self.grid, self.patch_size, "channels_last")

    def _embed(self, prefix: Tensor, patches: Tensor, visible_ids: Tensor, hidden_ids: Tensor) -> Tensor:
        """Prefix, visible and hidden tokens with their positions, in this order: [B, P + n + m, D]."""
        positions = self.decoder_pos_embed[0, self.num_prefix_tokens :]
        seen = self.decoder_embed(torch.cat([prefix, patches], dim=1))
        ids = torch.cat([visible_ids, hidden_ids], dim=1)
        waiting = self.mask_token.expand(len(seen), hidden_ids.shape[1], -1)
        start = self.decoder_pos_embed[:, : self.num_prefix_tokens].expand(len(seen), -1, -1)
        return torch.cat([seen, waiting], dim=1) + torch.cat([start, positions[ids]], dim=1)

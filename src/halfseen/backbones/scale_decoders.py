"""LocalMIM's decoders, thrown away after pre-training: one for each depth of the encoder that predicts.

A decoder is one narrow block over visible tokens and mask tokens, and a head that brings each token to the scale of its
target: transposed convolutions with kernel = stride = 2 are linear maps of single tokens, so finer predictions than one
per patch are computed for hidden patches only. Weights are named and shaped like the official ones.

Cells are what is predicted: `scale` x `scale` in each patch, or one for 2 x 2 patches at scale 0.5.

Source: Masked Image Modeling with Local Multi-Scale Reconstruction, arXiv 2303.05251, official code.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from halfseen.backbones.blocks import run_block, run_block_for
from halfseen.backbones.masked import set_norm_eps
from halfseen.errors import ConfigError
from halfseen.ops.patches import gather_tokens, mask_from_ids
from halfseen.ops.positions import sincos_positions

SCALES = (8.0, 4.0, 2.0, 1.0, 0.5)
"""Cells per patch along one axis for which there is a head."""

NORM_EPS = 1e-6


class UpHead(nn.Sequential):
    """From a token to the cells of its patch: log2(scale) doublings, norm and GELU between them, and a 1x1 convolution.

    The layers keep the official shapes and places in the sequence, ConvTranspose2d and Conv2d; here they act on tokens.

    Args:
        width: of the decoder's tokens, a multiple of `scale`.
        scale: 1, 2, 4 or 8 cells along one axis of a patch.
        out_dim: values V of a cell.
    """

    def __init__(self, width: int, scale: int, out_dim: int) -> None:
        layers: list[nn.Module] = []
        for doubling in range(scale.bit_length() - 1):
            if doubling:
                layers += [nn.LayerNorm(width, eps=NORM_EPS), nn.GELU()]
            layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
            width //= 2
        super().__init__(*layers, nn.Conv2d(width, out_dim, kernel_size=1))

    def forward(self, tokens: Float[Tensor, "B n d"]) -> Float[Tensor, "B c V"]:
        """c = n * scale^2 cells, those of one token together: row-major quarters, each cut into quarters again."""
        *before, last = self
        assert isinstance(last, nn.Conv2d)
        if not before:
            return F.linear(tokens, last.weight.flatten(1), last.bias)
        *before, doubling = before
        for layer in before:
            if isinstance(layer, nn.ConvTranspose2d):
                tokens = _quarters(tokens, _of_quarters(layer), _bias(layer).repeat(4))
            else:
                tokens = layer(tokens)
        assert isinstance(doubling, nn.ConvTranspose2d)
        return _quarters(tokens, *_one_map(doubling, last))


class PoolHead(nn.Sequential):
    """The mean of each 2 x 2 tokens, then a 1x1 convolution: one cell for four patches.

    Args:
        width: of the decoder's tokens.
        out_dim: values V of a cell.
    """

    def __init__(self, width: int, out_dim: int) -> None:
        super().__init__(nn.AvgPool2d(2), nn.Conv2d(width, out_dim, kernel_size=1))

    def forward(self, tokens: Float[Tensor, "B N d"]) -> Float[Tensor, "B c V"]:
        """c = N / 4 row-major cells from the row-major tokens of a square grid with an even side."""
        B, N, d = tokens.shape
        half = round(N**0.5) // 2
        pooled = tokens.reshape(B, half, 2, half, 2, d).mean(dim=(2, 4)).flatten(1, 2)
        last = self[1]
        assert isinstance(last, nn.Conv2d)
        return F.linear(pooled, last.weight.flatten(1), last.bias)


def scale_head(width: int, scale: float, out_dim: int) -> UpHead | PoolHead:
    """The head for one of `SCALES`."""
    return PoolHead(width, out_dim) if scale == 0.5 else UpHead(width, int(scale), out_dim)


class ScaleDecoder(nn.Module):
    """The decoder of one depth.

    As in `decoders.MAEDecoder`, tokens are not put back in their order, and the last block runs for wanted tokens only.

    Args:
        encoder_dim: width of the encoder's tokens at this depth.
        side: tokens along one axis of the encoder's map at this depth.
        head: from decoded tokens to cells; a linear layer, for an encoder whose maps have the targets' scales
            already, predicts one cell for each token.
        embed_dim, depth, num_heads: the decoder's own sizes.
        num_prefix_tokens: class token (and registers) that come with the encoder's output.
    Raises:
        ConfigError: a pooling head on a grid that 2 x 2 tokens don't tile.
    """

    def __init__(
        self,
        encoder_dim: int,
        side: int,
        head: UpHead | PoolHead | nn.Linear,
        *,
        embed_dim: int,
        depth: int = 1,
        num_heads: int = 8,
        num_prefix_tokens: int = 1,
    ) -> None:
        super().__init__()
        if isinstance(head, PoolHead) and side % 2:
            raise ConfigError(
                f"method.scales: 0.5 joins 2x2 patches, which don't tile a grid of {side}x{side}. Leave this scale out "
                "with its tap, or choose an image size or patch size that gives an even number of patches a side."
            )
        self.side = side
        self.num_prefix_tokens = num_prefix_tokens
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = sincos_positions(embed_dim, side, side, num_prefix_tokens).float()[None]
        # Fixed, but a parameter like the official one, so that it stands in the state dict under the same rules.
        self.pos_embed = nn.Parameter(table.to(self.mask_token.device), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        set_norm_eps(self, NORM_EPS)
        self.pred = head

    def forward(
        self, tokens: Float[Tensor, "B T D"], visible_ids: Int64[Tensor, "b n"], hidden_ids: Int64[Tensor, "b m"]
    ) -> Float[Tensor, "B c V"]:
        """Predict the cells that `cells` names, in that order.

        Args:
            tokens: prefix and visible tokens after the norm of this depth, T = prefix + n.
            visible_ids, hidden_ids: row-major places of the visible tokens, in the order of `tokens`, and of the hidden
                ones; one row for all images (b = 1) or one for each.
        """
        embedded = self._embed(tokens, visible_ids, hidden_ids)
        *before, last = self.blocks
        for block in before:
            embedded = run_block(block, embedded)
        if isinstance(self.pred, PoolHead):
            # Visible tokens are part of the means, so all are decoded; only cells without hidden patches are of no use,
            # one in 250 at a mask ratio of 0.75.
            decoded = run_block_for(last, embedded, slice(self.num_prefix_tokens, None))
            decoded = _in_raster_order(decoded, visible_ids, hidden_ids)
        else:
            decoded = run_block_for(last, embedded, slice(-hidden_ids.shape[1], None))
        cells: Tensor = self.pred(self.norm(decoded))
        return cells

    def cells(self, hidden_ids: Int64[Tensor, "b m"]) -> Int64[Tensor, "b c"]:
        """Row-major numbers, on the grid of cells, of what `forward` predicts: the hidden ones, or all at scale 0.5."""
        if isinstance(self.pred, PoolHead):
            every = torch.arange((self.side // 2) ** 2, device=hidden_ids.device)
            return every.expand(len(hidden_ids), -1)
        ids, columns = hidden_ids, self.side
        for _ in range(self._doublings):
            ids, columns = _quarter_ids(ids, columns), 2 * columns
        return ids

    def weights(self, hidden_ids: Int64[Tensor, "b m"]) -> Float[Tensor, "b c"] | None:
        """How much of each predicted cell is hidden, 0 to 1; None where it is all of each."""
        if not isinstance(self.pred, PoolHead):
            return None
        half = self.side // 2
        hidden = mask_from_ids(hidden_ids, self.side**2).float()
        return hidden.reshape(-1, half, 2, half, 2).mean(dim=(2, 4)).flatten(1)

    def predict_all(
        self, tokens: Float[Tensor, "B T D"], visible_ids: Int64[Tensor, "b n"], hidden_ids: Int64[Tensor, "b m"]
    ) -> Float[Tensor, "B C V"]:
        """Predictions of all C cells, those of visible patches too, in row-major order; arguments as in `forward`."""
        embedded = self._embed(tokens, visible_ids, hidden_ids)
        for block in self.blocks:
            embedded = run_block(block, embedded)
        decoded = _in_raster_order(embedded[:, self.num_prefix_tokens :], visible_ids, hidden_ids)
        predicted: Tensor = self.pred(self.norm(decoded))
        if isinstance(self.pred, PoolHead):
            return predicted
        order = self.cells(torch.arange(self.side**2, device=tokens.device)[None]).argsort(dim=1)
        return gather_tokens(predicted, order.expand(len(tokens), -1))

    @property
    def _doublings(self) -> int:
        return sum(isinstance(layer, nn.ConvTranspose2d) for layer in self.pred.children())

    def _embed(self, tokens: Tensor, visible_ids: Tensor, hidden_ids: Tensor) -> Tensor:
        """Prefix, visible and hidden tokens with their positions, in this order: [B, P + n + m, d]."""
        table = self.pos_embed[0]
        prefix, positions = table[: self.num_prefix_tokens], table[self.num_prefix_tokens :]
        places = torch.cat([prefix.expand(len(visible_ids), -1, -1), positions[visible_ids]], dim=1)
        waiting = self.mask_token + positions[hidden_ids]
        return torch.cat([self.embed(tokens) + places, waiting.expand(len(tokens), -1, -1)], dim=1)


def _in_raster_order(tokens: Tensor, visible_ids: Tensor, hidden_ids: Tensor) -> Tensor:
    """Visible tokens followed by hidden ones, [B, N, d], brought to row-major order."""
    ids = torch.cat([visible_ids, hidden_ids], dim=1)
    order = torch.empty_like(ids).scatter_(1, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
    return gather_tokens(tokens, order.expand(len(tokens), -1))


def _quarter_ids(ids: Tensor, columns: int) -> Tensor:
    """Row-major numbers of the four quarters of each cell, on the grid of twice as many columns: [b, n] to [b, 4 n]."""
    corner = ids // columns * (4 * columns) + ids % columns * 2
    quarter = torch.arange(4, device=ids.device)
    inside = quarter // 2 * (2 * columns) + quarter % 2
    return (corner.unsqueeze(-1) + inside).flatten(1)


def _quarters(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Four tokens from each: [B, n, C] to [B, 4 n, V], by a weight [4 V, C]."""
    B, n, _ = tokens.shape
    return F.linear(tokens, weight, bias).reshape(B, 4 * n, -1)


def _of_quarters(layer: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution's weight [C, V, 2, 2] as that of a linear layer to four quarters: [4 V, C]."""
    return layer.weight.permute(2, 3, 1, 0).flatten(0, 2)


def _one_map(layer: nn.ConvTranspose2d, last: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a transposed convolution and the 1x1 convolution right after it, as one linear map.

    Nothing stands between the two, so they may be joined before any token passes: a fraction of the work, and the wide
    layer between them never exists. float32, so that half precision rounds once.
    """
    with torch.autocast(layer.weight.device.type, enabled=False):
        out = last.weight.flatten(1).float()
        weight = out @ _of_quarters(layer).float().reshape(4, out.shape[1], -1)
        bias = out @ _bias(layer).float() + _bias(last).float()
        return weight.flatten(0, 1), bias.repeat(4)


def _bias(layer: nn.ConvTranspose2d | nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias

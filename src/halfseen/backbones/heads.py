"""Projection heads of teacher-student methods: iBOT's and DINO's, and MSN's. Thrown away after pre-training."""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from halfseen.backbones.batch_norm import CrossProcessBatchNorm
from halfseen.ops.collectives import sum_over_processes

HeadNorm = Literal["bn", "syncbn", "csyncbn", "ln"]
Activation = Literal["gelu", "relu", "silu"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows have a length of their own: W = g * v / |v|, row by row.

    Args:
        in_features, out_features: d and K.
        trainable_norm: whether g is learned; else it stays 1 and the rows lie on the unit sphere.
    """

    def __init__(self, in_features: int, out_features: int, trainable_norm: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=trainable_norm)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        bound = 1 / in_features**0.5
        nn.init.uniform_(self.weight_v, -bound, bound)

    @property
    def weight(self) -> Float[Tensor, "K d"]:
        """W, float32."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows K"]:
        """rows W^T."""
        return F.linear(rows, self.weight)


class DistillationHead(nn.Module):
    """The head of DINO and iBOT: an MLP to a narrow, normalised vector, then rows of unit length.

    In two parts, so that the wide last layer runs only where it must: `bottleneck` for tokens of either kind, then
    `logits` for class tokens and `patch_logits` for patches. Names in the state dict are the original's.

    Args:
        embed_dim: width D of the tokens.
        out_dim: outputs K for class tokens.
        patch_out_dim: outputs K2 for patches, from a layer of their own; None = patches share the class tokens' layer.
        hidden_dim, bottleneck_dim, num_layers: of the MLP; bottleneck_dim 0 makes its last layer the output itself.
        norm: between its layers: bn (statistics of this process), syncbn (of all processes), csyncbn (a running mean
            of all processes is subtracted, nothing is divided) or ln.
        activation: between its layers.
        norm_last_layer: keep the rows of the last layers at length 1.
    Source: iBOT, arXiv 2111.07832; DINO, arXiv 2104.14294; official code.
    """

    def __init__(
        self,
        embed_dim: int,
        out_dim: int,
        patch_out_dim: int | None = None,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        norm: HeadNorm | None = None,
        activation: Activation = "gelu",
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        narrow = bottleneck_dim or out_dim
        widths = [embed_dim, *[hidden_dim] * (num_layers - 1), narrow]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Linear(before, after))
            if number < num_layers - 1:
                if norm is not None:
                    layers.append(_NORMS[norm](after))
                layers.append(_ACTIVATIONS[activation]())
        self.mlp = nn.Sequential(*layers)
        self.last_layer: WeightNormLinear | None = None
        self.last_layer2: WeightNormLinear | None = None
        if bottleneck_dim:
            self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, not norm_last_layer)
            if patch_out_dim is not None:
                self.last_layer2 = WeightNormLinear(bottleneck_dim, patch_out_dim, not norm_last_layer)
        self.num_outputs = out_dim
        self.num_patch_outputs = out_dim if self.last_layer2 is None else self.last_layer2.weight_v.shape[0]

    def bottleneck(self, tokens: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows d"]:
        """The narrow vectors, L2-normalised; with bottleneck_dim 0 the outputs themselves."""
        narrow: Tensor = self.mlp(tokens)
        return narrow if self.last_layer is None else F.normalize(narrow, dim=-1, eps=1e-12)

    def logits(self, narrow: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows K"]:
        """Outputs of class tokens. Linear: the mean of outputs is the output of the mean."""
        out: Tensor = narrow if self.last_layer is None else self.last_layer(narrow)
        return out

    def patch_logits(self, narrow: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows K2"]:
        """Outputs of patch tokens."""
        out: Tensor = self.logits(narrow) if self.last_layer2 is None else self.last_layer2(narrow)
        return out


class MSNHead(nn.Module):
    """MSN's head: three linear layers, batch norm and GELU after the first two, nothing after the last.

    Args:
        embed_dim: width D of the class token.
        hidden_dim, output_dim: of the layers.
        batch_norm: whether there is any; its statistics are those of all processes.
    Source: Masked Siamese Networks, arXiv 2204.07141, official code.
    """

    def __init__(self, embed_dim: int, hidden_dim: int = 2048, output_dim: int = 256, batch_norm: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.bn1 = CrossProcessBatchNorm(hidden_dim) if batch_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.bn2 = CrossProcessBatchNorm(hidden_dim) if batch_norm else nn.Identity()
        self.fc3 = nn.Linear(hidden_dim, output_dim)

    def forward(self, tokens: Float[Tensor, "B D"]) -> Float[Tensor, "B d"]:
        """Representations, not normalised. In training mode one call is one batch of the batch norms."""
        tokens = F.gelu(self.bn1(self.fc1(tokens)))
        tokens = F.gelu(self.bn2(self.fc2(tokens)))
        representations: Tensor = self.fc3(tokens)
        return representations


class _RowBatchNorm(nn.BatchNorm1d):
    """Batch norm of tokens with any leading axes: all of them are rows."""

    def forward(self, input: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return super().forward(input.flatten(0, -2)).reshape(input.shape)


class _RowSyncBatchNorm(CrossProcessBatchNorm):
    """The same with the statistics of all processes."""

    def forward(self, input: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return super().forward(input.flatten(0, -2)).reshape(input.shape)


class _RowCentering(CrossProcessBatchNorm):
    """Rows minus a running mean, scaled and shifted; the mean then moves towards that of these rows.

    Names in the state dict are batch norm's own; the running variance plays no part and stays 1.
    """

    def forward(self, input: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        centred = torch.addcmul(self.bias, input - self.running_mean, self.weight)
        if self.training:
            with torch.no_grad():
                rows = input.flatten(0, -2).float()
                sums = sum_over_processes(torch.cat([rows.sum(dim=0), rows.new_full((1,), len(rows))]))
                self.running_mean.lerp_(sums[:-1] / sums[-1], self.momentum)
                self.num_batches_tracked.add_(1)
        return centred


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": _RowBatchNorm,
    "syncbn": _RowSyncBatchNorm,
    "csyncbn": _RowCentering,
    "ln": nn.LayerNorm,
}

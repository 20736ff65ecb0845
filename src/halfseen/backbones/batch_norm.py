"""Batch normalisation over the global batch, however many processes share it.

Used by projection heads and convolutional stems, whose outputs must not depend on how a batch is split.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from halfseen.errors import ShapeError
from halfseen.ops.collectives import process_count, sum_over_processes


class CrossProcessBatchNorm(_BatchNorm):
    """BatchNorm1d and BatchNorm2d in one, with the statistics of all processes while training.

    Takes float [B, C] or [B, C, H, W]; names in the state dict are PyTorch's own. Alone, and in eval mode, it is
    PyTorch's kernel. With several processes each may hold another number of rows; all end with the same running
    statistics, and gradients are those of the sum of the processes' losses, as with PyTorch's SyncBatchNorm (which
    knows GPUs only).

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: share of a new batch in the running statistics.
    Raises:
        ShapeError: for input of another number of dimensions.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)

    def forward(self, input: Float[Tensor, "B C *grid"]) -> Float[Tensor, "B C *grid"]:
        """The input normalised per channel, scaled and shifted, in its own dtype."""
        self._check_input_dim(input)
        if not self.training or process_count() == 1:
            return super().forward(input)
        out, mean, variance, count = _NormaliseOverProcesses.apply(input, self.weight, self.bias, self.eps)
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normalised: Tensor = out
        return normalised

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ShapeError(
                f"batch norm: got a tensor of shape {tuple(input.shape)}, expected [B, C] or [B, C, H, W]."
            )


class _NormaliseOverProcesses(torch.autograd.Function):
    """Normalise with the mean and variance over the rows of all processes: one collective each way.

    Sums travel in float64, in which mean(x^2) - mean(x)^2 loses nothing that float32 had.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output, and mean, variance (biased) [C] and number of rows [] without gradient."""
        variance, mean = (part.double() for part in torch.var_mean(_full(x), dim=_rows(x), correction=0))
        own_count = mean.new_full((1,), x.numel() // x.shape[1])
        sums = sum_over_processes(torch.cat([own_count, own_count * mean, own_count * (variance + mean.square())]))
        count = sums[0]
        mean, square = (sums[1:] / count).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        scale = (variance + eps).rsqrt()
        mean, variance, scale = (part.to(weight.dtype) for part in (mean, variance, scale))
        ctx.save_for_backward(x, weight, mean, scale, count)
        out = _per_channel(bias, x) + (x - _per_channel(mean, x)) * _per_channel(scale * weight, x)
        count = count.to(weight.dtype)
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, gradient: Tensor, *statistics: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias; the latter two are this process's own, DDP joins them."""
        x, weight, mean, scale, count = ctx.saved_tensors  # type: ignore[misc]
        normed = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        of_bias, of_weight = _full(gradient).sum(_rows(x)), (gradient * normed).sum(_rows(x))
        shared = sum_over_processes(torch.cat([of_bias, of_weight])) / count.to(weight.dtype)
        shift, tilt = (_per_channel(part, x) for part in shared.chunk(2))
        of_input = (gradient - shift - normed * tilt) * _per_channel(weight * scale, x)
        return of_input.to(x.dtype), of_weight, of_bias, None


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _rows(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [axis for axis in range(x.ndim) if axis != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))

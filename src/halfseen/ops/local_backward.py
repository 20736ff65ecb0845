"""The backward pass of one term of a loss, run as soon as the term is known.

Where a loss is a sum of terms that share an encoder and nothing else, each term's own activations are needed only
between its forward and its backward pass. Running that backward pass at once keeps the activations of one term in
memory instead of those of all; the number of operations stays the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def backward_at_once(
    term: Callable[[Tensor], Float[Tensor, ""]], shared: Float[Tensor, "..."], own: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """`term(shared)`, whose activations are given up before this returns.

    The gradients are those of the plain call but for rounding: they are computed for a factor of 1 and multiplied by
    the true one later. Under float16 autocast the term is computed plainly, because the factor that keeps small
    gradients from vanishing would come too late; so it is where no gradient is asked for.

    Args:
        term: gives a scalar from `shared`; it is called once. What learns in it is in `own`, or learns nothing.
        shared: what other terms use too, e.g. tokens of an encoder.
        own: the parameters of `term`; those that need no gradient are left out. Other terms may use them, too.
    Returns:
        The scalar, with a graph that leads to `shared` and `own`, once: gradients of these gradients are not known.
    """
    learning = [parameter for parameter in own if parameter.requires_grad]
    if not torch.is_grad_enabled() or not (learning or shared.requires_grad) or _half(shared.device.type):
        return term(shared)
    value: Tensor = _AtOnce.apply(term, shared, *learning)
    return value


def _half(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


class _AtOnce(torch.autograd.Function):
    """Keeps gradients from the forward pass to the backward one, instead of activations."""

    @staticmethod
    def forward(ctx: Any, term: Callable[[Tensor], Tensor], shared: Tensor, *own: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = shared.detach().requires_grad_(shared.requires_grad)
            value = term(leaf.view_as(leaf))  # Counters of operations watch a module's inputs, which may be no leaves.
        first: list[Tensor | None] = [] if shared.requires_grad else [None]
        wanted = own if first else (leaf, *own)
        ctx.save_for_backward(*first, *torch.autograd.grad(value, wanted, allow_unused=True))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        (factor,) = factors
        return None, *(None if each is None else each * factor.to(each.dtype) for each in ctx.saved_tensors)

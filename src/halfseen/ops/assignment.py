"""Soft assignments of representations to prototypes, and the losses between them: Masked Siamese Networks.

Inputs keep their dtype (float64 stays float64). Sums over processes come in as a function, so that several processes
can be tested in one.

Source: Masked Siamese Networks, arXiv 2204.07141, and its official code.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from halfseen.ops.collectives import identity

Reduce = Callable[[Tensor], Tensor]


def prototype_log_probs(
    representations: Float[Tensor, "B d"],
    prototypes: Float[Tensor, "K d"],
    temperature: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "B K"]:
    """Logarithm of the assignment of each representation: softmax of its cosines with the prototypes over tau.

    With label smoothing s the assignment p becomes (1 - s) p + s / K, the product with the smoothed label matrix.

    Args:
        representations, prototypes: any length; they are L2-normalised here (norms below 1e-12 count as that).
        temperature: tau > 0.
        label_smoothing: s in [0, 1).
    """
    cosines = F.normalize(representations, eps=1e-12) @ F.normalize(prototypes, eps=1e-12).T
    log_probs = (cosines / temperature).log_softmax(dim=-1)
    if label_smoothing == 0.0:
        return log_probs
    return ((1.0 - label_smoothing) * log_probs.exp() + label_smoothing / len(prototypes)).log()


def sharpen(log_probs: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    """p^(1/T), normalised again: rows sum to 1. T in (0, 1]; smaller is sharper."""
    return (log_probs / temperature).softmax(dim=-1)


def sinkhorn(probs: Float[Tensor, "B K"], iterations: int = 3, total: Reduce = identity) -> Float[Tensor, "B K"]:
    """Balance assignments, so that all prototypes get an equal share of the samples of all processes.

    Per iteration each prototype's assignments are divided by their sum over all samples and by K, then each sample's by
    their sum; the latter comes last, so rows sum to 1.

    Args:
        probs: positive.
        iterations: 3 in MSN.
        total: element-wise sum over the processes.
    """
    B, K = probs.shape
    tiny = torch.finfo(probs.dtype).tiny  # Very sharp targets leave some prototypes with a sum of exactly 0.
    samples = total(probs.new_full((), float(B)))
    balanced = probs / total(probs.sum())
    for _ in range(iterations):
        balanced = balanced / total(balanced.sum(dim=0)).clamp_min(tiny) / K
        balanced = balanced / balanced.sum(dim=1, keepdim=True).clamp_min(tiny) / samples
    return balanced * samples


def view_cross_entropy(log_probs: Float[Tensor, "VB K"], targets: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean over anchor views of -sum_k t_k log p_k. Row `view * B + image` of the anchors belongs to target `image`.

    The targets are the same for all views, so the views' log-probabilities are averaged first.
    """
    B, K = targets.shape
    return -(targets * log_probs.reshape(-1, B, K).mean(dim=0)).sum(dim=-1).mean()


def mean_entropy_gap(probs: Float[Tensor, "VB K"], mean: Reduce = identity) -> Float[Tensor, ""]:
    """me-max: log K - H(p), p the mean assignment of all anchors of all processes; in nats, 0 if all are used alike.

    Args:
        probs: the anchors' assignments, each row sums to 1.
        mean: differentiable mean of a [K] vector over the processes (`collectives.mean_pass_through`).
    """
    average = mean(probs.mean(dim=0))
    negative_entropy: Tensor = torch.special.xlogy(average, average).sum()
    return negative_entropy + math.log(probs.shape[1])


def mean_entropy(log_probs: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean entropy of the assignments, in nats, in [0, log K]."""
    return -(log_probs.exp() * log_probs).sum(dim=-1).mean()

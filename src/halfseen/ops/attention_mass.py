"""Which tokens hold most of an attention map."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kept_mass(attention: Float[Tensor, "heads N"], share: float) -> Bool[Tensor, "heads N"]:
    """The most attended tokens that together hold `share` of each head's attention, the last of them cut off.

    Weights are sorted ascending, scaled to sum to 1 and summed up; True where the sum exceeds 1 - share.

    Args:
        attention: non-negative, e.g. the class token's to all patches, without its own column.
        share: in [0, 1]; 0.6 in DINO's and iBOT's pictures.
    Source: DINO, arXiv 2104.14294, attention visualisation; iBOT, arXiv 2111.07832.
    """
    values, order = attention.float().sort(dim=1)
    summed = (values / values.sum(dim=1, keepdim=True)).cumsum(dim=1)
    return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, order, summed > 1 - share)

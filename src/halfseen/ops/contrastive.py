"""The contrastive term of attention-guided distillation: patches of high score alike, unlike those of low score.

Which tensors the features are is the caller's choice. Of the published code's teacher outputs the term has no gradient.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from halfseen.errors import ConfigError

ContrastiveForm = Literal["reference", "infonce"]


class Pairs(NamedTuple):
    """Patches to compare, by number.

    Attributes:
        positive: int64 [B, k], those of highest score, in descending order.
        negative: int64 [B, k], those of lowest score, in descending order.
    """

    positive: Tensor
    negative: Tensor


def select_pairs(scores: Float[Tensor, "B N"], k: int) -> Pairs:
    """The `k` patches of highest and of lowest score in each row; see `check_pairs` for how large k may be."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Pairs(order[:, :k], order[:, -k:])


def check_pairs(k: int, num_patches: int, key: str) -> None:
    """See that positives and negatives are different patches; `key` names the setting of k.

    Raises:
        ConfigError: 2 k patches are more than there are.
    """
    if not 1 <= k <= num_patches // 2:
        raise ConfigError(
            f"{key}: got {k}, but {k} patches of highest and {k} of lowest score must be different ones of "
            f"{num_patches}. Write 1 to {num_patches // 2}, or choose smaller patches or a larger image."
        )


def contrastive(
    positives: Float[Tensor, "crops B k K"],
    negatives: Float[Tensor, "crops B k K"],
    temperature: float,
    form: ContrastiveForm = "reference",
) -> Float32[Tensor, ""]:
    """How unlike the positives of an image are, over all crops, compared with how like its negatives they are.

    With s_tl the cosine of positives t and l, Z_t = sum over negatives j of exp(s_tj / tau), P = crops * k:

        reference   1 / (P B) sum_b sum_{t != l} [ln(s_tl + Z_t) - s_tl / tau]
        infonce     1 / (P (P - 1) B) sum_b sum_{t != l} [ln(exp(s_tl / tau) + Z_t) - s_tl / tau]

    In the reference's denominator the positive enters without exponential, and the sum isn't divided by the number
    of partners: it grows with k.

    Args:
        positives, negatives: one vector per patch, not normalised; for form "reference" none of their products may be
            negative (probabilities), or the logarithm may not exist.
        temperature: tau > 0.
        form: see above.

    Source: the reference code of a thesis on masking for self-supervision; InfoNCE, arXiv 1807.03748.
    """
    crops, B, k, _ = positives.shape
    count = crops * k
    with torch.autocast(positives.device.type, enabled=False):
        ours, others = (F.normalize(x.float().transpose(0, 1).flatten(1, 2), dim=-1) for x in (positives, negatives))
        alike = ours @ ours.mT  # [B, P, P]
        log_negatives = (ours @ others.mT / temperature).logsumexp(dim=-1, keepdim=True)  # [B, P, 1]
        if form == "reference":
            # ln(s + Z) without Z itself, which overflows at low temperatures.
            denominator = log_negatives + torch.log1p(alike * (-log_negatives).exp())
        else:
            denominator = torch.logaddexp(alike / temperature, log_negatives)
        terms = denominator - alike / temperature
        total = (terms * ~torch.eye(count, dtype=torch.bool, device=terms.device)).sum()
        return total / (count * B if form == "reference" else count * (count - 1) * B)

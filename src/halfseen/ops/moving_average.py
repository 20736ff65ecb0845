"""A teacher as the exponential moving average of its student: by name, for all tensors at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pair(NamedTuple):
    """A teacher's parameter and the student's of the same name."""

    teacher: Tensor
    student: Tensor


def pair_by_name(student: nn.Module, teacher: nn.Module) -> list[Pair]:
    """The parameters that both modules have under the same name, in the teacher's order.

    Names that only one of them has (a student's mask token) are passed over; buffers are not averaged.
    """
    own = dict(student.named_parameters())
    return [Pair(parameter, own[name]) for name, parameter in teacher.named_parameters() if name in own]


@torch.no_grad()
def update_average(pairs: Sequence[Pair], momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in place.

    Args:
        pairs: tensors of equal shape.
        momentum: share of the teacher that stays, m in [0, 1].
    Source: DINO, arXiv 2104.14294; Mean teachers, arXiv 1703.01780.
    """
    if pairs:
        torch._foreach_lerp_([pair.teacher for pair in pairs], [pair.student for pair in pairs], 1.0 - momentum)

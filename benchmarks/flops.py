"""Counting: the floating-point operations of a step's matrix products."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.cases import Contestant

Shape = tuple[int, ...]


def _attention_forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: Any, **___: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's fused attention, which torch's counter doesn't know: two products forward, four backward, as when they are
written out. That the kernel computes one of them a second time is its own affair."""


def count_flops(contestant: Contestant) -> int:
    """Floating-point operations of the matrix products of one step, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        contestant.backward(contestant.forward())
    contestant.update()
    return counter.get_total_flops()

"""Counting the floating-point operations of matrix products."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, ...]


def _attention_forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: Any, **___: Any) -> int:
    return 2 * int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's fused attention, which torch's counter doesn't know: two products forward, four backward, as when they are
written out. That the kernel computes one of them a second time is its own affair."""


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of `work`, backward passes included."""
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        work()
    return int(counter.get_total_flops())

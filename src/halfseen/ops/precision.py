"""Number formats of a forward pass: autocast for fp32, bf16 and fp16.

torch is imported where it is used, so that settings, which name these formats, are read without it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


def autocast(device: "torch.device", precision: Precision) -> AbstractContextManager[object]:
    """The context of a forward pass; nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    import torch

    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])

"""A network's copy that learns nothing by gradient: the start of a moving average."""

from copy import deepcopy
from typing import TypeVar

from timm.layers.drop import DropPath
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def averaged_copy(module: Module, drop_path: bool = False) -> Module:
    """A deep copy without gradients, and without stochastic depth unless `drop_path` keeps it (MSN's target)."""
    copy = deepcopy(module).requires_grad_(False)
    if not drop_path:
        for part in copy.modules():
            if isinstance(part, DropPath):
                part.drop_prob = 0.0
    return copy

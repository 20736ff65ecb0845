"""Sums, means and gathers over the training processes; with one process each of them is the identity.

Mathematics takes such a function as its `reduce=` argument and stays testable in one process. They carry statistics and
numbers for the log and are not differentiable; only `mean_pass_through` is.
"""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def process_count() -> int:
    """Training processes that share the run, over all machines."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process among `process_count()`, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def identity(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The reduction of a run with one process."""
    return values


def sum_over_processes(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The element-wise sum over the processes, in a new tensor, of the same dtype on the same device."""
    if process_count() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def mean_over_processes(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The element-wise mean over the processes of a floating-point tensor."""
    return sum_over_processes(values) / process_count() if process_count() > 1 else values


def max_over_processes(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The element-wise maximum over the processes, in a new tensor."""
    if process_count() == 1:
        return values
    largest = values.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def gather_rows(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
    """The rows of all processes below one another, in the order of the ranks; their numbers may differ."""
    if process_count() == 1:
        return rows
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(process_count())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _MeanPassThrough(torch.autograd.Function):
    """Mean over the processes; backward hands the gradient to this process's values as it is."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return mean_over_processes(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def mean_pass_through(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The element-wise mean over the processes; its backward passes the incoming gradient on, without communication.

    Together with the mean of the gradients that DDP takes, this gives the exact gradient of a function of the mean
    over the processes. Source: Masked Siamese Networks, arXiv 2204.07141, official code.
    """
    if process_count() == 1:
        return values
    mean: Tensor = _MeanPassThrough.apply(values)
    return mean

"""Counting: the floating-point operations of a step's matrix products."""

from benchmarks.cases import Contestant
from halfseen.ops import flops


def count_flops(contestant: Contestant) -> int:
    """Floating-point operations of the matrix products of one step, forward and backward."""
    found = flops.count_flops(lambda: contestant.backward(contestant.forward()))
    contestant.update()
    return found

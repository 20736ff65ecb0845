"""With one process every collective is the identity; two processes are tested in tests/engine/test_distributed.py."""

import torch

from halfseen.ops.collectives import (
    gather_rows,
    identity,
    max_over_processes,
    mean_over_processes,
    process_count,
    process_rank,
    sum_over_processes,
)


def test_alone_nothing_changes() -> None:
    values = torch.randn(3, 2)
    for collective in (identity, sum_over_processes, mean_over_processes, max_over_processes, gather_rows):
        assert torch.equal(collective(values), values)
    assert (process_count(), process_rank()) == (1, 0)

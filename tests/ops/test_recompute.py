"""Activation checkpointing: the same bits, without what is inside of blocks in memory."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halfseen.ops.flops import count_flops
from halfseen.ops.recompute import activation_checkpointing, checkpointed, recomputed, replaying, watching_kept

ROWS, WIDTH, HIDDEN = 5, 8, 64


class Block(nn.Module):
    """A residual MLP with dropout; it notes its runs and what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.inside: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wide(x)
        active = nn.functional.gelu(hidden)
        self.inside += [weakref.ref(hidden), weakref.ref(active)]
        with recomputed(active, lambda: nn.functional.gelu(hidden.detach())):
            out: Tensor = self.narrow(active)
        return x + nn.functional.dropout(out, 0.5)


@pytest.fixture
def blocks() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(3))


def forward(blocks: nn.ModuleList, x: Tensor, asked: bool) -> Tensor:
    torch.manual_seed(1)
    with activation_checkpointing(asked):
        for block in blocks:
            x = checkpointed(block, x)
    return x.square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learning_input", [True, False])
def test_values_and_gradients_keep_every_bit(blocks: nn.ModuleList, dtype: torch.dtype, learning_input: bool) -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=learning_input)
    found = []
    for asked in (False, True):
        blocks.zero_grad()
        x.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = forward(blocks, x, asked)
        loss.backward()
        after = torch.rand(3)  # Nothing draws more random numbers than before.
        found.append(
            [loss.detach(), after, *([x.grad] if learning_input else []), *(p.grad for p in blocks.parameters())]
        )
    plain, ours = found
    assert all(gradient is not None for gradient in plain)
    for one, other in zip(plain, ours, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_inside_of_blocks_is_given_up_where_it_is_asked_for(blocks: nn.ModuleList, asked: bool) -> None:
    loss = forward(blocks, torch.randn(ROWS, WIDTH), asked)
    gc.collect()
    living = [[ref() is not None for ref in block.inside] for block in blocks]
    assert living == [[not asked, False]] * 3  # The activation goes in any case, see `recomputed`.
    loss.backward()
    assert [len(block.inside) for block in blocks] == [4 if asked else 2] * 3


def test_without_gradients_blocks_run_once(blocks: nn.ModuleList) -> None:
    with torch.no_grad():
        forward(blocks, torch.randn(ROWS, WIDTH), asked=True)
    assert [len(block.inside) for block in blocks] == [2, 2, 2]


def test_it_costs_one_forward_pass_more(blocks: nn.ModuleList) -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    once = 2 * 3 * ROWS * WIDTH * HIDDEN * 2
    assert count_flops(lambda: forward(blocks, x, asked=False).backward()) == 3 * once
    assert count_flops(lambda: forward(blocks, x, asked=True).backward()) == 4 * once


@pytest.mark.parametrize("asked", [True, False])
def test_kept_bytes_are_counted_for_blocks_too(blocks: nn.ModuleList, asked: bool) -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with watching_kept(blocks.parameters()) as kept:
        loss = forward(blocks, x, asked)
    row = 4 * ROWS
    inner = row * HIDDEN + row * WIDTH  # Before the activation, and dropout's mask.
    if asked:
        assert kept.living() == row * WIDTH * 4  # Each input, and what is squared in the end.
        assert kept.largest_block == inner + row * HIDDEN
        # Nothing of a block stays while the next ones are counted.
        assert not any(ref() is not None for block in blocks for ref in block.inside)
    else:
        assert (kept.living(), kept.largest_block) == (row * WIDTH * 4 + 3 * inner, 0)
    loss.backward()
    del loss
    gc.collect()
    assert kept.living() == row * WIDTH  # The input lives on.


def test_random_numbers_of_a_device_that_torch_forgets_are_drawn_again(blocks: nn.ModuleList) -> None:
    def gradient(replayed: bool) -> Tensor:
        x = torch.ones(ROWS, WIDTH, requires_grad=True)
        torch.manual_seed(1)
        contexts = {"context_fn": replaying(torch)} if replayed else {}
        out = checkpoint(blocks[0], x, use_reentrant=False, preserve_rng_state=False, **contexts)
        torch.rand(3)
        state = torch.get_rng_state()
        out.sum().backward(retain_graph=replayed)
        assert torch.equal(torch.get_rng_state(), state) == replayed
        if replayed:
            once = x.grad.clone()
            out.sum().backward()
            assert torch.equal(x.grad, 2 * once)
            return once
        return x.grad

    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    torch.manual_seed(1)
    blocks[0](x).sum().backward()
    assert torch.equal(gradient(replayed=True), x.grad)
    assert not torch.equal(gradient(replayed=False), x.grad)


def test_the_switch_is_of_one_thread_and_of_one_context(blocks: nn.ModuleList) -> None:
    def runs(within: Callable[[], Tensor]) -> int:
        for block in blocks:
            block.inside.clear()
        within().backward()
        return len(blocks[0].inside)

    def plain() -> Tensor:
        return checkpointed(blocks[0], torch.randn(ROWS, WIDTH)).sum()

    found: list[int] = []
    with activation_checkpointing(True):
        thread = threading.Thread(target=lambda: found.append(runs(plain)))
        thread.start()
        thread.join()
        with activation_checkpointing(False):
            found.append(runs(plain))
        found.append(runs(plain))
    with pytest.raises(ZeroDivisionError), activation_checkpointing(True):
        raise ZeroDivisionError
    found.append(runs(plain))
    assert found == [2, 2, 4, 2]

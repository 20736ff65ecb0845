"""Memory for time: what a backward pass needs is computed again instead of kept.

`recomputed` does so for one tensor that an elementwise function or a norm gives back, always: it costs next to nothing.
`checkpointed` does so for all that is inside a transformer block, where `activation_checkpointing` asks for it, and
costs one more forward pass of the blocks.

Source: Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174; the work is torch's own checkpoint function's.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint, noop_context_fn

Block = Callable[[Tensor], Tensor]
"""From a block's input to its output; parameters are the function's own affair."""


class KeptBytes:
    """Bytes that autograd keeps for a backward pass.

    Args:
        left_out: addresses of memory that doesn't count, such as that of weights.

    Attributes:
        largest_block: bytes that the greediest of the checkpointed blocks computes again.
    """

    def __init__(self, left_out: Set[int] = frozenset()) -> None:
        self._left_out = left_out
        self._seen: list[weakref.ref[Tensor]] = []
        self.largest_block = 0

    def add(self, tensor: Tensor) -> None:
        """Count a tensor for as long as it lives."""
        self._seen.append(weakref.ref(tensor))

    def living(self) -> int:
        """Bytes of what was added and is still there; views of one memory count once."""
        storages = [tensor.untyped_storage() for ref in self._seen if (tensor := ref()) is not None]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for place, size in sizes.items() if place not in self._left_out)

    def try_block(self, run: Block, tokens: Tensor) -> None:
        """Count a checkpointed block: its input, and apart from that what is inside, by running it for nothing."""
        self.add(tokens)
        inside = KeptBytes(self._left_out | {_address(tokens)})
        with _watched(inside):
            out = _run_inside(run, tokens.detach().requires_grad_())
            self.largest_block = max(self.largest_block, inside.living())
        del out  # Lived until here, and with it what is inside.


class _State(threading.local):
    """Of one thread, because on an accelerator backward passes run in threads of their own.

    Attributes:
        checkpoints: whether blocks are to keep their input only.
        inside: whether such a block is running.
        watcher: who is told what is kept.
    """

    checkpoints = False
    inside = False
    watcher: KeptBytes | None = None


_STATE = _State()


@contextmanager
def activation_checkpointing(asked: bool) -> Iterator[None]:
    """Within, `checkpointed` keeps the inputs of blocks only, if `asked` for."""
    before, _STATE.checkpoints = _STATE.checkpoints, asked
    try:
        yield
    finally:
        _STATE.checkpoints = before


def checkpointed(run: Block, tokens: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`run(tokens)`; within `activation_checkpointing`, autograd keeps `tokens` only and runs it again.

    Values and gradients are those of the plain call bit by bit, random numbers included. `run` must change nothing
    outside (as the statistics of a batch norm), for it would do so twice.
    """
    if not (_STATE.checkpoints and torch.is_grad_enabled()):
        return run(tokens)
    if _STATE.watcher is not None:
        _STATE.watcher.try_block(run, tokens)
    contexts = replaying(torch.mps) if tokens.device.type == "mps" else noop_context_fn
    out: Tensor = checkpoint(_run_inside, run, tokens, use_reentrant=False, context_fn=contexts)
    return out


class Randomness(Protocol):
    """The random state of a device; `torch.mps` and `torch` itself are such."""

    def get_rng_state(self) -> Tensor:
        """A copy of the state."""

    def set_rng_state(self, new_state: Tensor) -> None:
        """Go on from a state."""


class Replay:
    """A context in which a device draws the numbers that it draws from now on; outside, nothing of it is noticed.

    It may be entered again and again.
    """

    def __init__(self, device: Randomness) -> None:
        self._device = device
        self._begun = self._before = device.get_rng_state()

    def __enter__(self) -> None:
        self._before = self._device.get_rng_state()
        self._device.set_rng_state(self._begun)

    def __exit__(self, *_: object) -> None:
        self._device.set_rng_state(self._before)


def replaying(device: Randomness) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For `checkpoint`: contexts of the first run and of the others, which draw the numbers of the first.

    torch sees to this on CPUs and CUDA devices itself, and not on Apple's.
    """
    return lambda: (nullcontext(), Replay(device))


def _run_inside(run: Block, tokens: Tensor) -> Tensor:
    before, _STATE.inside = _STATE.inside, True
    try:
        return run(tokens)
    finally:
        _STATE.inside = before


@contextmanager
def recomputed(tensor: Tensor, again: Callable[[], Tensor]) -> Iterator[None]:
    """Within, autograd doesn't keep `tensor` (nor a reshaped view of it) but calls `again` in the backward pass.

    In a checkpointed block all is computed again anyway, so there it does nothing.
    """
    if _STATE.inside:
        yield
        return
    memory = tensor.untyped_storage()._cdata
    watcher = _STATE.watcher  # torch's own hooks don't reach into these.

    def pack(kept: Tensor) -> Tensor | torch.Size:
        if kept.untyped_storage()._cdata == memory:
            return kept.shape
        if watcher is not None:
            watcher.add(kept)
        return kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else again().reshape(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


@contextmanager
def watching_kept(leaving_out: Iterable[Tensor] = ()) -> Iterator[KeptBytes]:
    """Within, all that autograd keeps is counted, tensors in `leaving_out` aside."""
    kept = KeptBytes({_address(tensor) for tensor in leaving_out})
    with _watched(kept):
        yield kept


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _watched(kept: KeptBytes) -> Iterator[None]:
    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor)
        return tensor

    before, _STATE.watcher = _STATE.watcher, kept
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        _STATE.watcher = before

"""Freezing beside no freezing: the runs that take turns are real ones, and each frozen one does freeze."""

from pathlib import Path

from benchmarks.compare import Variant
from benchmarks.freezing import open_trainer, peak_memory, settings, take_turns

TINY = [
    "--recipe",
    "localmim_small",
    "data.subset_size=32",
    "train.batch_size=8",
    "train.epochs=2",
    "train.lr.warmup_epochs=0",
    "model.embed_dim=32",
    "model.num_heads=2",
    "method.decoder_embed_dim=16",
    "method.decoder_num_heads=2",
    "runtime.threads=1",
    "runtime.precision=fp32",
]
PLAIN, FROZEN = Variant("none", ()), Variant("cubic", ("train.freeze.t0=0.3",))


def test_only_the_frozen_run_freezes_and_both_are_timed(tmp_path: Path) -> None:
    turns = take_turns([settings(TINY, PLAIN), settings(TINY, FROZEN)], tmp_path)
    assert min(turns.steps) > 0 and turns.reading > 0
    assert not turns.events[0] and len(turns.events[1]) >= 3


def test_a_run_that_takes_turns_is_the_run_itself(tmp_path: Path) -> None:
    """Losses depend on (seed, step) alone, not on who else takes steps in this process."""
    alone, beside = (open_trainer(settings(TINY, FROZEN), tmp_path) for _ in range(2))
    other = open_trainer(settings(TINY, PLAIN), tmp_path)
    with alone.batches() as steps:
        for batches in steps:
            alone.train_step(batches)
    with beside.batches() as steps:
        for batches in steps:
            other.train_step(batches)
            beside.train_step(batches)
    weights = beside.bare.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in alone.bare.state_dict().items())


def test_memory_is_read_from_the_step_asked_for(tmp_path: Path) -> None:
    before, peak = peak_memory(settings(TINY, FROZEN), 4, tmp_path)
    assert 0 < before <= peak

"""Batches depend on the seed and the step alone, and a bad file or a lost process never hangs a run."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.data.loader import (
    EvaluationBatch,
    Loader,
    Stack,
    evaluation_batches,
    images_per_job,
    pack,
    results_in_flight,
    stack_images,
    unpack,
)
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import ArraySource, Source, open_source
from halfseen.data.transforms import cut_views, deterministic_view
from halfseen.errors import ConfigError, DataError, TrainingError
from halfseen.ops.randomness import numpy_generator
from halfseen.targets.keypoints import KeypointDensity
from halfseen.types import Batch, Photometric, ViewPlan, ViewSpec

PLAN = ViewPlan((ViewSpec(16, count=2), ViewSpec(8, crop_scale=(0.05, 0.3))))
WORKERS = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.processes)])


def brightness(views: tuple[np.ndarray, ...], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """An extra per sample, with randomness of its own."""
    return {
        "mean": np.array([view.mean() for view in views], np.float32),
        "draw": generator.random(3),
        "bright": np.array([[view.max() > 250 for view in views]]),
    }


def array_source(count: int = 40, size: int = 20) -> ArraySource:
    drawing = np.random.default_rng(5)
    images = drawing.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ArraySource("noise", images, np.arange(count, dtype=np.int64) % 3, ("a", "b", "c"))


def make_loader(
    source: Source,
    *,
    workers: int = 0,
    seed: int = 0,
    plan: ViewPlan = PLAN,
    batch_size: int = 8,
    micro: int | None = None,
) -> Loader:
    sampler = StepSampler(len(source), batch_size, seed, micro_batch_size=micro)
    return Loader(source, plan, sampler, seed, workers=workers)


def content(batch: Batch) -> list[object]:
    tensors = [*batch.views, batch.index, batch.labels, *(batch.extras[name] for name in sorted(batch.extras))]
    return [(tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes()) for tensor in tensors] + [batch.skipped]


def contents(steps: Iterator[list[Batch]]) -> list[list[list[object]]]:
    return [[content(batch) for batch in step] for step in steps]


# ---- what is in a batch


def test_a_batch_holds_the_views_labels_and_extras_of_its_images() -> None:
    source, plan = array_source(), ViewPlan(PLAN.views, brightness)
    loader = make_loader(source, plan=plan, seed=7)
    step = loader.steps_per_epoch + 2
    ((batch,),) = loader.batches(step, step + 1)
    assert [tuple(view.shape) for view in batch.views] == [(8, 3, 16, 16), (8, 3, 16, 16), (8, 3, 8, 8)]
    assert batch.index.tolist() == loader.sampler.indices(step).tolist()
    assert batch.skipped == ()
    for row, index in enumerate(batch.index.tolist()):
        generator = numpy_generator(7, "augment", 1, index)
        views = cut_views(source.read(index), plan, generator)
        for stacked, view in zip(batch.views, views, strict=True):
            np.testing.assert_array_equal(stacked[row].permute(1, 2, 0).numpy(), view)
        assert batch.labels[row] == source.labels[index]
        for name, value in brightness(views, generator).items():
            np.testing.assert_array_equal(batch.extras[name][row].numpy(), value)


def test_each_step_has_its_micro_batches() -> None:
    whole = list(make_loader(array_source(), batch_size=12).batches(0, 3))
    pieces = list(make_loader(array_source(), batch_size=12, micro=4).batches(0, 3))
    assert [len(step) for step in pieces] == [3, 3, 3]
    for (batch,), parts in zip(whole, pieces, strict=True):
        assert torch.equal(batch.views[2], torch.cat([part.views[2] for part in parts]))
        assert torch.equal(batch.index, torch.cat([part.index for part in parts]))


def test_a_large_micro_batch_is_put_together_in_order() -> None:
    source = array_source(count=700, size=8)
    loader = make_loader(source, batch_size=600, plan=ViewPlan((ViewSpec(8),), brightness))
    ((batch,),) = loader.batches(0, 1)
    assert batch.index.tolist() == loader.sampler.indices(0).tolist()
    pieces = make_loader(source, batch_size=600, micro=100, plan=ViewPlan((ViewSpec(8),), brightness))
    small = [part for step in pieces.batches(0, 1) for part in step]
    assert torch.equal(batch.views[0], torch.cat([part.views[0] for part in small]))
    assert torch.equal(batch.extras["draw"], torch.cat([part.extras["draw"] for part in small]))


def test_epochs_and_seeds_give_other_views_of_the_same_image() -> None:
    source = array_source()

    def view_of_image_0(seed: int, epoch: int) -> bytes:
        loader = make_loader(source, seed=seed, batch_size=40)
        ((batch,),) = loader.batches(epoch, epoch + 1)
        return batch.views[0][batch.index.tolist().index(0)].numpy().tobytes()

    seen = {view_of_image_0(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(seen) == 6
    assert view_of_image_0(1, 2) == view_of_image_0(1, 2)


@WORKERS
def test_any_step_can_be_the_first(image_folder: Path, workers: int) -> None:
    source = open_source(str(image_folder))
    unbroken = contents(make_loader(source).batches(0, 7))
    assert contents(make_loader(source, workers=workers).batches(5, 7)) == unbroken[5:]


@pytest.mark.processes
def test_the_number_of_workers_changes_nothing(image_folder: Path) -> None:
    source = open_source(str(image_folder))
    plan = ViewPlan(PLAN.views, KeypointDensity("fast", cell_size=4))
    runs = [contents(make_loader(source, workers=workers, plan=plan, micro=4).batches(0, 6)) for workers in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2]
    assert "float32" in str(runs[0][0][0])


@pytest.mark.processes
def test_global_and_local_views_come_in_order_and_alike_from_any_worker(image_folder: Path) -> None:
    colour = Photometric(
        brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.2
    )
    plan = ViewPlan(
        (
            ViewSpec(16, crop_scale=(0.25, 1.0), colour=colour),
            ViewSpec(16, crop_scale=(0.25, 1.0)),
            ViewSpec(8, count=4, crop_scale=(0.05, 0.25), interpolation="bilinear", colour=colour),
        )
    )
    source = open_source(str(image_folder))
    runs = [contents(make_loader(source, workers=workers, plan=plan, seed=3).batches(0, 5)) for workers in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2]
    ((batch,),) = make_loader(source, plan=plan, seed=3).batches(0, 1)
    assert [tuple(view.shape) for view in batch.views] == [(8, 3, 16, 16)] * 2 + [(8, 3, 8, 8)] * 4
    for row, index in enumerate(batch.index.tolist()):
        views = cut_views(source.read(index), plan, numpy_generator(3, "augment", 0, index))
        for stacked, view in zip(batch.views, views, strict=True):
            np.testing.assert_array_equal(stacked[row].permute(1, 2, 0).numpy(), view)


def test_all_views_weigh_in_the_size_of_a_job() -> None:
    big = ViewSpec(224)
    many = ViewPlan((ViewSpec(224, count=2), ViewSpec(96, count=10, crop_scale=(0.05, 0.25))))
    assert images_per_job(ViewPlan((ViewSpec(28),))) == images_per_job(ViewPlan((big,))) == 256
    assert images_per_job(many) == 40 * 2**20 // (3 * (2 * 224**2 + 10 * 96**2))
    assert images_per_job(ViewPlan((ViewSpec(10_000),))) == 1


def test_a_micro_batch_of_many_views_is_put_together_in_order() -> None:
    source, plan = array_source(count=24, size=8), ViewPlan((ViewSpec(1024), ViewSpec(8, count=2)))
    assert images_per_job(plan) < 24
    ((batch,),) = make_loader(source, batch_size=24, plan=plan).batches(0, 1)
    ((*parts,),) = make_loader(source, batch_size=24, micro=2, plan=plan).batches(0, 1)
    for number in range(3):
        assert torch.equal(batch.views[number], torch.cat([part.views[number] for part in parts]))


def test_two_processes_see_what_one_sees() -> None:
    source = array_source()
    alone = [batch for step in make_loader(source, batch_size=8).batches(0, 6) for batch in step]
    halves = [
        [
            batch
            for step in Loader(source, PLAN, StepSampler(40, 8, 0, rank=rank, world_size=2), 0).batches(0, 6)
            for batch in step
        ]
        for rank in (0, 1)
    ]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert torch.equal(whole.index, torch.cat([first.index, second.index]))
        for number in range(3):
            assert torch.equal(whole.views[number], torch.cat([first.views[number], second.views[number]]))


@WORKERS
def test_global_random_states_are_left_alone(workers: int) -> None:
    def states() -> tuple[object, ...]:
        _, words, position, *_ = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), words.tolist(), position

    before = states()
    list(make_loader(array_source(), workers=workers).batches(0, 3))
    assert states() == before


def test_waiting_is_counted() -> None:
    loader = make_loader(array_source())
    started = time.perf_counter()
    for _ in loader.batches(0, 3):
        time.sleep(0.02)
    assert 0 < loader.wait_seconds < time.perf_counter() - started - 0.06 + 1e-3


# ---- bad files


@WORKERS
def test_a_bad_file_is_replaced_by_the_next_good_one_and_told(image_folder: Path, workers: int) -> None:
    names = sorted(image_folder.rglob("*.png"))
    for broken in (3, 4, len(names) - 1):
        names[broken].write_bytes(b"not a picture")
    source = open_source(str(image_folder))
    loader = make_loader(source, batch_size=20, workers=workers)
    ((batch,),) = loader.batches(0, 1)
    stand_ins = {3: 5, 4: 5, 19: 0}
    assert {file.index: file.replaced_by for file in batch.skipped} == stand_ins
    for file in batch.skipped:
        assert file.path == str(names[file.index])
        assert file.reason
    rows = {index: row for row, index in enumerate(batch.index.tolist())}
    assert sorted(rows) == list(range(20))
    for asked, used in stand_ins.items():
        (view, *_) = cut_views(source.read(used), PLAN, numpy_generator(0, "augment", 0, asked))
        np.testing.assert_array_equal(batch.views[0][rows[asked]].permute(1, 2, 0).numpy(), view)
        assert batch.labels[rows[asked]] == source.labels[used]


@WORKERS
def test_only_bad_files_is_one_sentence(tmp_path: Path, workers: int) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"nothing")
    loader = make_loader(open_source(str(tmp_path)), workers=workers)
    with pytest.raises(DataError, match=r"can't be read .* nor can any of the 7 images after it") as caught:
        list(loader.batches(0, 1))
    assert "Traceback" not in str(caught.value)


# ---- worker processes


@pytest.mark.processes
def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    others = set(multiprocessing.active_children())
    steps = make_loader(array_source(), workers=2).batches(0, 100_000)
    next(steps)
    victim, survivor = (process for process in multiprocessing.active_children() if process not in others)
    victim.kill()
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"ended unexpectedly .*runtime\.workers"):
        for _ in steps:
            pass
    assert time.monotonic() - started < 30
    survivor.join(10)
    assert not survivor.is_alive()


@pytest.mark.processes
def test_leaving_early_ends_the_workers() -> None:
    others = set(multiprocessing.active_children())
    steps = make_loader(array_source(), workers=2).batches(0, 100_000)
    next(steps)
    assert len(set(multiprocessing.active_children()) - others) == 2
    steps.close()
    assert set(multiprocessing.active_children()) <= others


def test_data_that_cannot_be_sent_is_an_error_that_names_the_key() -> None:
    plan = ViewPlan(PLAN.views, lambda views, generator: {})
    with pytest.raises(ConfigError, match=r"runtime\.workers: got 1, but the data can't be sent.*runtime\.workers=0"):
        next(make_loader(array_source(), plan=plan, workers=1).batches(0, 1))


SCRIPT = """
import sys, time
import numpy as np
from halfseen.data.loader import Loader
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import ArraySource
from halfseen.types import ViewPlan, ViewSpec
"""
MAIN = """
source = {source}("noise", np.zeros((40, 8, 8, 3), np.uint8), np.zeros(40, np.int64), ("a",))
loader = Loader(source, ViewPlan((ViewSpec(8),)), StepSampler(40, 8, 0), 0, workers=2)
print("started", flush=True)
"""


@contextlib.contextmanager
def running_script(
    folder: Path, body: str, preamble: str = "", source: str = "ArraySource", guard: bool = False
) -> Iterator["subprocess.Popen[str]"]:
    path = folder / "script.py"
    main = MAIN.format(source=source) + body
    if guard:
        main = "if __name__ == '__main__':\n" + textwrap.indent(main, "    ")
    path.write_text(SCRIPT + preamble + main)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.processes
def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    with running_script(tmp_path, "print(sum(len(step) for step in loader.batches(0, 5)))") as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "started\n5\n", "")


@pytest.mark.slow
@pytest.mark.processes
def test_a_source_from_a_guarded_script_is_found_by_the_workers(tmp_path: Path) -> None:
    preamble = "class Mine(ArraySource):\n    pass\n"
    body = "print(sum(len(step) for step in loader.batches(0, 5)))"
    with running_script(tmp_path, body, preamble, "Mine", guard=True) as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "started\n5\n", "")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("when", ["starting", "running"])
def test_workers_survive_ctrl_c_in_silence(tmp_path: Path, when: str) -> None:
    body = """
import signal
stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
print("ready", flush=True)
count = 0
for step in loader.batches(0, 10**9):
    count += 1
    if count == 1:
        print("running", flush=True)
    if len(stop) == 2 and count > 20:
        break
    time.sleep(0.01)
print("saved", flush=True)
"""
    with running_script(tmp_path, body) as process:
        wait_for_line(process, {"starting": "ready", "running": "running"}[when])
        os.killpg(process.pid, signal.SIGINT)
        if when == "starting":
            wait_for_line(process, "running")
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "saved\n", "")


@pytest.mark.slow
@pytest.mark.processes
def test_workers_end_when_the_training_process_is_killed(tmp_path: Path) -> None:
    body = """
import multiprocessing
steps = loader.batches(0, 10**9)
next(steps)
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
time.sleep(600)
"""
    with running_script(tmp_path, body) as process:
        wait_for_line(process, "started")
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
        deadline = time.monotonic() + 30
        while any(is_running(pid) for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def wait_for_line(process: "subprocess.Popen[str]", wanted: str) -> None:
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.strip() == wanted:
            return
    pytest.fail(process.stderr.read())


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- parcels


def a_stack() -> Stack:
    drawing = np.random.default_rng(0)
    return Stack(
        views=(
            drawing.integers(0, 256, (3, 3, 5, 5), dtype=np.uint8),
            drawing.integers(0, 256, (3, 3, 2, 2), np.uint8),
        ),
        indices=np.array([5, 1, 9]),
        labels=np.array([0, -1, 2]),
        extras={"density": drawing.random((3, 2, 2)).astype(np.float32), "flag": np.array([True, False, True])},
        skipped=(),
    )


@pytest.mark.parametrize("through_shared_memory", [True, False])
def test_a_parcel_gives_back_what_was_packed(through_shared_memory: bool) -> None:
    stack = a_stack()
    batch = unpack(pickle.loads(pickle.dumps(pack(stack, through_shared_memory))))
    for view, original in zip(batch.views, stack.views, strict=True):
        np.testing.assert_array_equal(view.numpy(), original)
    assert batch.index.tolist() == [5, 1, 9]
    assert batch.labels.tolist() == [0, -1, 2]
    assert batch.extras["flag"].dtype == torch.bool
    for name, array in stack.extras.items():
        np.testing.assert_array_equal(batch.extras[name].numpy(), array)


def test_results_fit_into_the_shared_memory_there_is() -> None:
    mebibyte = 2**20
    assert results_in_flight(mebibyte, workers=2, shared_memory=None) == (4, True)
    assert results_in_flight(38 * mebibyte, workers=8, shared_memory=64 * 1024 * mebibyte) == (2, True)
    assert results_in_flight(10 * mebibyte, workers=2, shared_memory=100 * mebibyte) == (1, True)
    assert results_in_flight(38 * mebibyte, workers=4, shared_memory=64 * mebibyte) == (2, False)


def test_stacking_puts_channels_first() -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8) for seed in range(3)]
    np.testing.assert_array_equal(stack_images(images), np.stack(images).transpose(0, 3, 1, 2))


# ---- evaluation


@WORKERS
def test_evaluation_keeps_the_order_and_leaves_bad_files_out(image_folder: Path, workers: int) -> None:
    names = sorted(image_folder.rglob("*.png"))
    for broken in (6, 8, 9, 10):
        names[broken].write_bytes(b"")
    source = open_source(str(image_folder))
    wanted = [7, 6, 5, 8, 9, 10, 0, 19]
    batches = list(evaluation_batches(source, wanted, 24, 3, crop_ratio=0.8, workers=workers))
    assert all(isinstance(batch, EvaluationBatch) for batch in batches)
    assert [batch.indices.tolist() for batch in batches] == [[7, 5], [], [0, 19]]
    assert [[file.index for file in batch.skipped] for batch in batches] == [[6], [8, 9, 10], []]
    assert batches[0].skipped[0].replaced_by is None
    assert batches[1].images.shape == (0, 3, 24, 24)
    for images, indices, _ in batches:
        assert images.dtype == torch.uint8
        for image, index in zip(images, indices.tolist(), strict=True):
            expected = deterministic_view(source.read(index), 24, "crop", crop_ratio=0.8)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_evaluation_can_squash() -> None:
    source = array_source(count=3)
    ((images, _, _),) = evaluation_batches(source, [2], 10, 4, "squash", interpolation="bilinear", antialias=False)
    expected = deterministic_view(source.read(2), 10, "squash", interpolation="bilinear", antialias=False)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), expected)

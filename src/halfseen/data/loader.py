"""From a source and a sampler to the batches of a step, bit-equal whatever the number of worker processes.

A job is a piece of a micro-batch: the positions of its images and the epoch. Its result depends on nothing else, so it
does not matter which process does it. torch's DataLoader carries jobs to the workers and results back in order; around
it, this file cares for what a long run needs: bad files replaced, workers that start quickly, don't die of Ctrl-C,
don't re-run the user's script, fit into the shared memory there is, and end with a sentence if they crash.
"""

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from halfseen.data.decode import BadImage
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import Source
from halfseen.data.transforms import (
    REDUCING_GAP,
    Interpolation,
    Resize,
    cut_views,
    decode_floor,
    deterministic_view,
    resized_shorter_side,
)
from halfseen.errors import ConfigError, DataError, HalfseenError, TrainingError
from halfseen.ops.randomness import numpy_generator
from halfseen.types import Batch, SkippedFile, ViewPlan

NEIGHBOURS = 100
"""How many images after a bad one are tried in its place."""

LARGEST_JOB = 256
"""Images in one job at most; larger micro-batches are put together from several."""

_MEBIBYTE = 2**20

LARGEST_RESULT = 40 * _MEBIBYTE
"""Bytes of views that a job of more than one image gives at most, because each process holds several results ready."""


class Job(NamedTuple):
    """Images that one worker reads and stacks: their positions in the source (int64 [B]) and the epoch."""

    epoch: int
    indices: np.ndarray


class Stack(NamedTuple):
    """A job's result, as arrays. `views[v]` is uint8 [B, 3, S, S]; `indices` are int64 [B]."""

    views: tuple[np.ndarray, ...]
    indices: np.ndarray
    labels: np.ndarray
    extras: dict[str, np.ndarray]
    skipped: tuple[SkippedFile, ...]


class Worker(Protocol):
    """Does jobs; travels to the worker processes by pickle."""

    def __call__(self, job: Job) -> Stack:
        """The stacked samples of a job.

        Raises:
            DataError: where the images can't be had.
        """


@dataclass(frozen=True)
class TrainingWorker:
    """Cuts the random views of a method's plan; a bad file is replaced by the next good one."""

    source: Source
    plan: ViewPlan
    seed: int

    def __call__(self, job: Job) -> Stack:
        """Views with the randomness of (seed, epoch, index), so neither the worker nor the order matters."""
        floor = decode_floor(self.plan)
        stacks = empty_stacks(self.plan, len(job.indices))
        extras: list[dict[str, np.ndarray]] = []
        labels: list[int] = []
        skipped: list[SkippedFile] = []
        for row, index in enumerate(job.indices.tolist()):
            image, used, reason = self._read_or_replace(index, floor)
            if reason is not None:
                skipped.append(SkippedFile(index, self.source.path(index), reason, used))
            generator = numpy_generator(self.seed, "augment", job.epoch, index)
            views = cut_views(image, self.plan, generator)
            for stack, view in zip(stacks, views, strict=True):
                put_planes(view, stack[row])  # At once, while the view is in the cache.
            labels.append(int(self.source.labels[used]))
            if self.plan.extras is not None:
                extras.append(self.plan.extras(views, generator))
        return Stack(
            views=stacks,
            indices=job.indices,
            labels=np.array(labels, dtype=np.int64),
            extras={name: np.stack([extra[name] for extra in extras]) for name in (extras[0] if extras else ())},
            skipped=tuple(skipped),
        )

    def _read_or_replace(self, index: int, floor: int | None) -> tuple[np.ndarray, int, str | None]:
        """The image at `index` or the first good one after it, its position, and the fault of the one asked for."""
        first_fault: str | None = None
        count = len(self.source)
        for distance in range(min(NEIGHBOURS + 1, count)):
            used = (index + distance) % count
            try:
                return self.source.read(used, shrink_to=floor), used, first_fault
            except BadImage as fault:
                first_fault = first_fault or fault.reason
        raise DataError(
            f"data.source: '{self.source.path(index)}' can't be read ({first_fault}), nor can any of the "
            f"{min(NEIGHBOURS, count - 1)} images after it. Run `halfseen data check` on the data and mend or remove "
            f"the bad files."
        )


@dataclass(frozen=True)
class EvaluationWorker:
    """Makes the deterministic view of each image; a bad file is left out."""

    source: Source
    image_size: int
    resize: Resize
    crop_ratio: float
    interpolation: Interpolation
    antialias: bool

    def __call__(self, job: Job) -> Stack:
        """Views without randomness; `indices` of the result are those of the images that could be read."""
        views: list[np.ndarray] = []
        indices: list[int] = []
        skipped: list[SkippedFile] = []
        for index in job.indices.tolist():
            try:
                image = self.source.read(index, shrink_to=self._decode_floor())
            except BadImage as fault:
                skipped.append(SkippedFile(index, self.source.path(index), fault.reason, None))
                continue
            views.append(
                deterministic_view(
                    image,
                    self.image_size,
                    self.resize,
                    crop_ratio=self.crop_ratio,
                    interpolation=self.interpolation,
                    antialias=self.antialias,
                )
            )
            indices.append(index)
        rows = np.array(indices, dtype=np.int64)
        size = self.image_size
        return Stack(
            views=(stack_images(views) if views else np.empty((0, 3, size, size), np.uint8),),
            indices=rows,
            labels=np.asarray(self.source.labels[rows], dtype=np.int64),
            extras={},
            skipped=tuple(skipped),
        )

    def _decode_floor(self) -> int | None:
        if not self.antialias:
            return None
        side = self.image_size if self.resize == "squash" else resized_shorter_side(self.image_size, self.crop_ratio)
        return int(REDUCING_GAP * side)


def empty_stacks(plan: ViewPlan, count: int) -> tuple[UInt8[np.ndarray, "B 3 _ _"], ...]:
    """Room for the views of `count` images: uint8 [count, 3, size, size] for each view of the plan."""
    return tuple(np.empty((count, 3, spec.size, spec.size), np.uint8) for spec in plan.views for _ in range(spec.count))


def put_planes(image: UInt8[np.ndarray, "H W 3"], planes: UInt8[np.ndarray, "3 H W"]) -> None:
    """Copy a picture to its place in a stack, channels first."""
    cv2.split(image, list(planes))  # Five times as fast as a transposed copy.


def stack_images(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "B 3 H W"]:
    """Pictures of one size, channels first."""
    height, width = images[0].shape[:2]
    stacked = np.empty((len(images), 3, height, width), np.uint8)
    for image, planes in zip(images, stacked, strict=True):
        put_planes(image, planes)
    return stacked


def sample_bytes(plan: ViewPlan) -> int:
    """What all views of one image weigh; 0.6 MB for two global and ten local ones."""
    return sum(3 * spec.size**2 * spec.count for spec in plan.views)


def images_per_job(plan: ViewPlan) -> int:
    """Into jobs of how many images a micro-batch is split."""
    return max(1, min(LARGEST_JOB, LARGEST_RESULT // sample_bytes(plan)))


class Loader:
    """The batches of a run, step by step, from any step on.

    Attributes:
        steps_per_epoch: updates in one pass over the data.
        wait_seconds: time for which the consumer has waited for data, over all calls.
    """

    def __init__(
        self,
        source: Source,
        plan: ViewPlan,
        sampler: StepSampler,
        seed: int,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Worker processes begin to start here, so that they load their modules while the model is being built.

        Args:
            source: the images.
            plan: the views to cut from each.
            sampler: the images of each step on this process.
            seed: the run's seed.
            workers: processes that read images; 0 reads in this one. No influence on the batches.
            pin_memory: put batches in page-locked memory (CUDA).
        """
        self.sampler = sampler
        self.steps_per_epoch = sampler.steps_per_epoch
        self.wait_seconds = 0.0
        self._worker = TrainingWorker(source, plan, seed)
        self._job_size = images_per_job(plan)
        self._job_bytes = min(sampler.micro_batch_size, self._job_size) * sample_bytes(plan)
        self._workers = workers
        self._pin_memory = pin_memory
        if workers:
            start_worker_server()

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """For each step of the run from `start_step` to `stop_step` - 1: its micro-batches on this process.

        Raises:
            DataError: neither an image nor its neighbours can be read.
            TrainingError: a worker process died.
        """
        jobs = self._jobs(start_step, stop_step)
        results = run_jobs(self._worker, jobs, self._job_bytes, self._workers, self._pin_memory)
        with contextlib.closing(results):
            for step in range(start_step, stop_step):
                yield [self._micro_batch(results, len(indices)) for indices in self.sampler.micro_batches(step)]

    def _jobs(self, start_step: int, stop_step: int) -> Iterator[Job]:
        for step in range(start_step, stop_step):
            for indices in self.sampler.micro_batches(step):
                for at in range(0, len(indices), self._job_size):
                    yield Job(self.sampler.epoch(step), indices[at : at + self._job_size])

    def _micro_batch(self, results: Iterator[Batch], size: int) -> Batch:
        started = time.perf_counter()
        parts = [next(results) for _ in range(0, size, self._job_size)]
        batch = parts[0] if len(parts) == 1 else _join(parts)
        self.wait_seconds += time.perf_counter() - started
        return batch


class EvaluationBatch(NamedTuple):
    """Images in the order of their indices.

    Attributes:
        images: uint8 [B, 3, S, S].
        indices: int64 [B], positions in the source of the images that could be read.
        skipped: those of this batch that couldn't, left out of `images` and `indices`.
    """

    images: Tensor
    indices: Tensor
    skipped: tuple[SkippedFile, ...]


def evaluation_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    image_size: int,
    batch_size: int,
    resize: Resize = "crop",
    *,
    crop_ratio: float = 0.875,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
    workers: int = 0,
) -> Iterator[EvaluationBatch]:
    """The deterministic views of some images, in the given order, `batch_size` files at a time.

    `resize`, `crop_ratio`, `interpolation` and `antialias` are those of `transforms.deterministic_view`.
    """
    rows = np.asarray(indices, dtype=np.int64)
    worker = EvaluationWorker(source, image_size, resize, crop_ratio, interpolation, antialias)
    jobs = (Job(0, rows[at : at + batch_size]) for at in range(0, len(rows), batch_size))
    with contextlib.closing(run_jobs(worker, jobs, batch_size * 3 * image_size**2, workers)) as results:
        for batch in results:
            yield EvaluationBatch(batch.views[0], batch.index, batch.skipped)


def _join(parts: list[Batch]) -> Batch:
    return Batch(
        views=tuple(torch.cat(same_view) for same_view in zip(*(part.views for part in parts), strict=True)),
        index=torch.cat([part.index for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        extras={name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
        skipped=tuple(file for part in parts for file in part.skipped),
    )


def run_jobs(
    worker: Worker, jobs: Iterator[Job], job_bytes: int, workers: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """The results of `jobs`, in their order, done ahead of time by `workers` processes (0: here, when asked for).

    Args:
        worker: does a job.
        jobs: what is to be done; read a few jobs ahead.
        job_bytes: size of the largest result, from which the number of results held ready is chosen.
        workers: number of processes.
        pin_memory: put results in page-locked memory.
    Raises:
        DataError: from the worker.
        ConfigError: the worker can't be sent to another process.
        TrainingError: a process died.
    """
    if workers:
        return _run_in_processes(worker, jobs, job_bytes, workers, pin_memory)
    return _run_here(worker, jobs, pin_memory)


def _run_here(worker: Worker, jobs: Iterator[Job], pin_memory: bool) -> Generator[Batch, None, None]:
    for job in jobs:
        stack = worker(job)
        arrays = {name: torch.from_numpy(array) for name, array in _named_arrays(stack).items()}
        if pin_memory:
            arrays = {name: array.pin_memory() for name, array in arrays.items()}
        yield _batch(arrays, len(stack.views), stack.skipped)


class Parcel(NamedTuple):
    """A stack on its way between processes: all its arrays in one block, hence one piece of shared memory.

    `block` is uint8 [bytes]: a tensor travels through shared memory, an array through the pipe. `contents` says name,
    dtype, shape and first byte of each array.
    """

    block: Tensor | np.ndarray
    contents: tuple[tuple[str, str, tuple[int, ...], int], ...]
    num_views: int
    skipped: tuple[SkippedFile, ...]


def pack(stack: Stack, through_shared_memory: bool) -> Parcel:
    """Put the arrays of a stack one after the other, each at a multiple of 64 bytes."""
    arrays = _named_arrays(stack)
    contents: list[tuple[str, str, tuple[int, ...], int]] = []
    end = 0
    for name, array in arrays.items():
        contents.append((name, array.dtype.str, array.shape, end))
        end += -(-array.nbytes // 64) * 64
    block = np.empty(end, np.uint8)
    for (_, _, _, first), array in zip(contents, arrays.values(), strict=True):
        block[first : first + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    return Parcel(
        torch.from_numpy(block) if through_shared_memory else block, tuple(contents), len(stack.views), stack.skipped
    )


def unpack(parcel: Parcel) -> Batch:
    """The batch in a parcel, without copying."""
    block = parcel.block if isinstance(parcel.block, Tensor) else torch.from_numpy(parcel.block)
    arrays: dict[str, Tensor] = {}
    for name, dtype, shape, first in parcel.contents:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        array = block[first : first + size].view(kind) if size else torch.empty(0, dtype=kind)
        arrays[name] = array.view(shape)
    return _batch(arrays, parcel.num_views, parcel.skipped)


def _named_arrays(stack: Stack) -> dict[str, np.ndarray]:
    views = {f"view{number}": view for number, view in enumerate(stack.views)}
    extras = {f"extra.{name}": array for name, array in stack.extras.items()}
    return {"index": stack.indices, "labels": stack.labels, **views, **extras}


def _batch(arrays: dict[str, Tensor], num_views: int, skipped: tuple[SkippedFile, ...]) -> Batch:
    return Batch(
        views=tuple(arrays[f"view{number}"] for number in range(num_views)),
        index=arrays["index"],
        labels=arrays["labels"],
        extras={name.removeprefix("extra."): array for name, array in arrays.items() if name.startswith("extra.")},
        skipped=skipped,
    )


# ---- worker processes


class _Postbox(Dataset["Parcel | HalfseenError"]):
    """What the DataLoader sends to each process: the pickled worker, which does the job that it is indexed with."""

    def __init__(self, pickled_worker: bytes, through_shared_memory: bool) -> None:
        self.pickled_worker = pickled_worker
        self.through_shared_memory = through_shared_memory
        self.worker: Worker | None = None

    def __getitem__(self, job: Job) -> Parcel | HalfseenError:
        """The result, or the error to raise in the training process: there it is one sentence, not two tracebacks."""
        if self.worker is None:
            self.worker = ForkingPickler.loads(self.pickled_worker)
            self.pickled_worker = b""
        try:
            return pack(self.worker(job), self.through_shared_memory)
        except HalfseenError as error:
            return error


def _prepare_process(worker_id: int) -> None:
    """One thread per process, deaf to Ctrl-C and SIGTERM (those are for the training process), and gone with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A killed training process tells nobody, and the DataLoader's own watch looks at the forkserver instead."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_method() -> str:
    """forkserver: forks a clean process that has torch loaded but no threads; spawn where that doesn't exist."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def start_worker_server() -> None:
    """Start the process from which workers are forked; it imports torch while this one goes on."""
    if _start_method() != "forkserver":
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(["halfseen.data.loader"])
    resource_tracker.ensure_running()  # First, because starting it would lift the block of Ctrl-C below.
    with _interrupts_blocked():
        forkserver.ensure_running()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside never see Ctrl-C or SIGTERM, not even while they are still importing.

    The forkserver neither: its workers would take its end for that of the training process.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Processes started inside don't run the user's script again.

    multiprocessing imports the parent's main script in each child; a script that calls the library without a
    `__name__` guard would start a second training there.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, getattr(main, "__file__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def results_in_flight(job_bytes: int, workers: int, shared_memory: int | None) -> tuple[int, bool]:
    """How many results each process holds ready, and whether they travel through shared memory.

    Containers often have only 64 MB of shared memory, and running out of it kills a process without a word; half of
    what is free is used at most, and the pipe if that is too little.

    Args:
        job_bytes: size of a result.
        workers: number of processes.
        shared_memory: free bytes, None where there is no limit.
    """
    wanted = 4 if job_bytes < 4 * _MEBIBYTE else 2
    for ready in (wanted, 1):
        if shared_memory is None or 2 * (workers * ready + 2) * job_bytes <= shared_memory:
            return ready, True
    return wanted, False


def _free_shared_memory() -> int | None:
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _run_in_processes(
    worker: Worker, jobs: Iterator[Job], job_bytes: int, workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    try:
        pickled = bytes(ForkingPickler.dumps(worker))
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"runtime.workers: got {workers}, but the data can't be sent to other processes ({error}). "
            f"Write runtime.workers=0."
        ) from error
    ready, through_shared_memory = results_in_flight(job_bytes, workers, _free_shared_memory())
    start_worker_server()
    loader: DataLoader[Parcel | HalfseenError] = DataLoader(
        _Postbox(pickled, through_shared_memory),
        sampler=jobs,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=ready,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_process,
        multiprocessing_context=_start_method(),
        generator=torch.Generator(),  # Its own, because the DataLoader would draw from the global one.
    )
    others = set(multiprocessing.active_children())
    # A class from the user's own script can only be found by importing that script.
    needs_main = b"__main__" in pickled
    with _interrupts_blocked(), contextlib.nullcontext() if needs_main else _main_module_hidden():
        results = iter(loader)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    end = _Ender(processes)
    atexit.register(end)
    try:
        while True:
            result = _next_result(results)
            if result is None:
                return
            if isinstance(result, HalfseenError):
                raise result
            yield unpack(result)
    finally:
        del results
        atexit.unregister(end)
        end()


def _as_it_is(result: Any) -> Any:
    """In the place of the DataLoader's conversion of arrays to tensors."""
    return result


def _next_result(results: Iterator[Any]) -> Parcel | HalfseenError | None:
    """The next result, None after the last."""
    try:
        result: Parcel | HalfseenError | None = next(results, None)
    except (RuntimeError, OSError, EOFError) as error:
        if "in DataLoader worker process" in str(error):  # Raised by our own code there: a fault with its traceback.
            raise
        # Either the DataLoader saw that a process is gone, or a result's memory was asked of a process that is gone.
        raise TrainingError(
            f"A process that reads images ended unexpectedly ({error}). Most often the machine's memory, or a "
            f"container's shared memory, was used up: lower runtime.workers, or write runtime.workers=0 to see the "
            f"fault itself. The run can be resumed."
        ) from error
    return result


class _Ender:
    """Ends processes that are still there, whatever they are doing: they hold nothing that could be lost."""

    def __init__(self, processes: list[multiprocessing.process.BaseProcess]) -> None:
        self.processes = processes

    def __call__(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join()

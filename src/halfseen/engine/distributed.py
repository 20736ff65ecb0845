"""Several processes, one run: started by torchrun or by `launch`, joined only when there is more than one.

Process 0 decides and the others follow. Gradients travel through DDP; decisions (stop, save, an error) travel through
a second, CPU-only group, so that they never wait for the device.
"""

import contextlib
import inspect
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from halfseen.engine.config import DeviceName
from halfseen.errors import ConfigError, HalfseenError, TrainingError

T = TypeVar("T")
LAUNCH_DIR = "HALFSEEN_LAUNCH_DIR"
FAILURE_KEY = "halfseen/failure"
TIMEOUT = timedelta(minutes=30)
PATIENCE = timedelta(days=7)
"""How long processes wait where process 0 measures or writes alone; one that died is noticed at once anyway."""
GRACE_SECONDS = 600


@dataclass(frozen=True)
class Distributed:
    """This process among those of the run.

    Attributes:
        rank: its number over all machines, from 0.
        world_size: number of processes.
        local_rank: its number on this machine.
        control: the CPU group for decisions; None with one process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which decides, writes and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def broadcast_object(self, value: T) -> T:
        """Process 0's value, on every process."""
        if self.control is None:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def total(self, numbers: list[float]) -> list[float]:
        """The sum of each number over the processes, in float64."""
        if self.control is None:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return cast(list[float], tensor.tolist())

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks, on process 0; empty on the others."""
        if self.control is None:
            return [value]
        found: list[T] | None = [value] * self.world_size if self.is_main else None
        dist.gather_object(value, found, dst=0, group=self.control)
        return found or []

    def largest(self, numbers: Sequence[int]) -> "Agreement":
        """Begin to agree on the largest of each number over the processes; `Agreement.wait` gives them."""
        if self.control is None:
            return Agreement(numbers, None)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        return Agreement(tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control, async_op=True))


class Agreement(NamedTuple):
    """Numbers on their way between the processes."""

    numbers: Sequence[int] | torch.Tensor
    work: dist.Work | None

    def wait(self) -> list[int]:
        """The agreed numbers."""
        if self.work is not None:
            self.work.wait()
        return [int(number) for number in self.numbers]


@contextlib.contextmanager
def processes(device: DeviceName) -> Iterator[Distributed]:
    """Join the processes that torchrun or `launch` started; alone, nothing is set up.

    If one process fails within the context, the others end too: it leaves as it failed, they leave quietly with its
    exit code (2 for a `HalfseenError`, else 1), so that one message is seen.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Distributed()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    store = dist.distributed_c10d._get_default_store()
    try:
        control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))
        here = Distributed(rank, world_size, local_rank, control)
        yield here
        here.barrier()
    except BaseException as error:
        first = _first_failure(store, rank, 2 if isinstance(error, HalfseenError) else 1)
        if first is not None and first.rank != rank and isinstance(error, Exception):
            raise SystemExit(first.exit_code) from error
        raise
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def wrap(method: nn.Module, distributed: Distributed, device: torch.device, *, find_idle: bool = True) -> nn.Module:
    """The method as it is, or in DDP where there are several processes.

    `find_idle` is a choice, for two reasons: parameters that get no gradient in a step keep none, so the optimiser
    leaves them alone as with one process; and DDP then keeps its first buckets for good, so sums are taken in the same
    order before and after a resume. It costs a walk through the autograd graph per step. Progressive freezing, which
    is there to save time, does without where a method says that it has no such parameters; then sums of more than two
    processes may be taken in another order in the first step after a resume.
    Buffers are not broadcast: they are constants, or averages that every process computes alike.
    """
    if distributed.world_size == 1:
        return method
    arguments = inspect.signature(DistributedDataParallel.__init__).parameters
    renamed = "forward_sync_buffers" in arguments  # Since torch 2.15.
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        method,
        device_ids=[device.index] if device.type == "cuda" else None,
        **buffers,
        find_unused_parameters=find_idle,
        gradient_as_bucket_view=True,
    )


class LaunchResult(NamedTuple):
    """How a group of processes ended: the exit code to pass on, and the one-line message to show, if any."""

    exit_code: int
    message: str | None


def launch(devices: int, argv: Sequence[str], module: str = "halfseen.cli.main") -> LaunchResult:
    """Run `python -m module *argv` in `devices` processes on this machine, through torch's elastic launcher.

    They meet on localhost. A failure of one ends all; a signal is passed on once, so the run writes a checkpoint, and
    a second one ends it at once.

    Args:
        devices: number of processes (GPUs, or CPU processes).
        argv: the command line after the program's name, without `--devices`.
        module: the program.
    Raises:
        ConfigError: if `devices` is below 1.
    """
    if devices < 1:
        raise ConfigError(f"--devices: got {devices}, expected a number of processes of at least 1.")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of find_unused_parameters, which `wrap` explains.
    with tempfile.TemporaryDirectory(prefix="halfseen-launch-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            rdzv_configs={"timeout": 900},
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # Its own choice is a temporary folder that stays.
            local_addr="localhost",
        )
        os.environ[LAUNCH_DIR] = folder
        try:
            elastic_launch(config, sys.executable)("-m", module, *argv)
        except ChildFailedError as error:
            return _read_failure(Path(folder)) or LaunchResult(_exit_code(error), None)
        except SignalException as error:
            _kill_recorded(Path(folder))
            return _read_failure(Path(folder)) or LaunchResult(128 + int(error.sigval), None)
        finally:
            del os.environ[LAUNCH_DIR]
    return LaunchResult(0, None)


def report_start() -> None:
    """Tell `launch`, if it started this process, that it is there (so that a second signal can end it)."""
    folder = os.environ.get(LAUNCH_DIR)
    if folder is not None:
        (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))


def report_failure(error: HalfseenError) -> bool:
    """Hand an error's message to `launch`, which shows it once; False if nobody waits for it: then print it."""
    folder = os.environ.get(LAUNCH_DIR)
    if folder is None:
        return False
    with contextlib.suppress(FileExistsError), (Path(folder) / "failure.json").open("x", encoding="utf-8") as file:
        json.dump({"message": str(error), "exit_code": 2}, file)
    return True


class _Failure(NamedTuple):
    rank: int
    exit_code: int


def _first_failure(store: "dist.distributed_c10d.Store", rank: int, exit_code: int) -> _Failure | None:
    """Enter this process's failure if it is the first; gives the first one. None if the store is gone."""
    try:
        first = store.compare_set(FAILURE_KEY, "", f"{rank} {exit_code}").decode()
    except Exception:
        return None
    number, code = first.split()
    return _Failure(int(number), int(code))


def _read_failure(folder: Path) -> LaunchResult | None:
    try:
        failure = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return LaunchResult(int(failure["exit_code"]), str(failure["message"]))


def _exit_code(error: Exception) -> int:
    codes = [failure.exitcode for failure in getattr(error, "failures", {}).values() if failure.exitcode > 0]
    return codes[0] if codes else 1


def _kill_recorded(folder: Path) -> None:
    """End processes that outlived the launcher's own attempt (it was interrupted twice)."""
    for path in folder.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def require_same(distributed: Distributed, what: str, value: str) -> None:
    """Check that all processes were given the same thing, e.g. the same data.

    Raises:
        TrainingError: on the processes that differ from process 0.
    """
    agreed = distributed.broadcast_object(value)
    if agreed != value:
        raise TrainingError(
            f"Process {distributed.rank} has another {what} than process 0: '{value}' instead of '{agreed}'. "
            "Give every machine the same files and settings."
        )

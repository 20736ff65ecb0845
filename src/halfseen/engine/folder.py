"""The folder of a run, whatever it trains: which one, kept from other processes, with the record of its machine."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from halfseen.engine.checkpoint import list_checkpoints
from halfseen.engine.config import local_processes
from halfseen.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

RUNS = Path("runs")
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
LOCK = ".lock"
LISTED_PACKAGES = (
    "halfseen", "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "safetensors",
)  # fmt: skip


def check_folder(run_dir: str | Path | None, resume: bool, command: str = "pretrain") -> None:
    """See that the run may go where it is told to, before any work is done; nothing is made yet.

    Args:
        run_dir: the folder; None means that a new one will be made.
        resume: whether a run goes on there.
        command: the sub-command that goes on with such a run by `--resume`.
    Raises:
        ConfigError: a new run into a folder that holds one already, or a file in its place.
        CheckpointError: a run to resume that isn't there.
    """
    if run_dir is None:
        return
    folder = Path(run_dir)
    exists = (folder / CONFIG).is_file()
    if resume and not exists:
        raise CheckpointError(f"'{folder}' is not a run: it has no {CONFIG}. Give a run's folder, e.g. runs/mae-1.")
    if not resume and (exists or list_checkpoints(folder)):
        raise ConfigError(
            f"run_dir: '{folder}' holds a run already. Go on with it by `halfseen {command} --resume {folder}`, or "
            "give another run_dir."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir: '{folder}' is a file. Give a folder.")


def open_folder(run_dir: str | Path | None, what: str, source: str) -> Path:
    """Make the folder of a run: `run_dir`, or a new `runs/<what>-<data>-<number>`.

    Args:
        what: the method or protocol.
        source: where the images are, as the user wrote it.
    Raises:
        ConfigError: it can't be made.
    """
    if run_dir is None:
        return _new_folder(what, source)
    _make(Path(run_dir))
    return Path(run_dir)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder as long as the context lasts.

    The system's own lock on the file `.lock`, not the file, keeps them out, and it ends with this process however that
    ends, so a killed run leaves nothing to clear away. It is a record lock: loader workers, which may outlive a killed
    run by seconds, don't inherit it. The file stays, as deleting it could free a name that somebody waits for.

    Raises:
        ConfigError: another process is at work there, or the folder can't be written.
    """
    path = folder / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run_dir: '{folder}' can't be written ({error.strerror}). Mend its permissions.") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ConfigError(
                    f"run_dir: '{folder}' is in use by {file.read().strip() or 'another process'}, which trains this "
                    "run. Wait until it has ended, or stop it: it writes a checkpoint first."
                ) from None
            logger.warning(
                "'%s' is on a drive without locks (%s): take care that only one process trains this run.",
                folder,
                error.strerror,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def write_environment(folder: Path, command: Sequence[str] | None, threads_from_cores: bool) -> None:
    """Write environment.json: what a result depends on beside the settings.

    A run that goes on keeps the command that began it; the one that resumed it is noted beside.

    Args:
        folder: of the run.
        command: the words of the command line; None takes this process's.
        threads_from_cores: whether nobody chose `runtime.threads`.
    """
    program = Path(sys.argv[0]).name
    words = command if command is not None else ["halfseen" if program == "__main__.py" else program, *sys.argv[1:]]
    line = shlex.join(words)
    began = read_environment(folder)
    content = {
        "command": began.get("command", line),
        **({"resumed_by": line} if began else {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in LISTED_PACKAGES},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": local_processes(),
        "threads_from_cores": threads_from_cores,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
    write_json(folder / ENVIRONMENT, content)


def read_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` has written last; empty if it has not."""
    file = folder / ENVIRONMENT
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def write_whole(path: Path, text: str) -> None:
    """The file appears with all of its text or not at all: half a config.yaml would be read as other settings."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, content: object) -> None:
    """Write plain data as indented json, whole."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _new_folder(what: str, source: str) -> Path:
    data = Path(source).stem if ":" not in source else source.split(":")[1]
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in data)[:40]
    for number in range(1, 100_000):
        folder = RUNS / f"{what}-{stem or 'run'}-{number}"
        with contextlib.suppress(FileExistsError):
            _make(folder, exist_ok=False)
            return folder
    raise ConfigError(f"run_dir: '{RUNS}' holds 99,999 runs of this name. Give a run_dir.")


def _make(folder: Path, exist_ok: bool = True) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise  # The name is taken: try the next one.
    except OSError as error:
        raise ConfigError(
            f"run_dir: '{folder}' can't be made ({error.strerror}). Give a folder you may write."
        ) from None


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()

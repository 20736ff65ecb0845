"""A run's folder: which one, and the small files that tell what ran, on what data, on which machine."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from halfseen.config.load import Loaded, dump_config
from halfseen.data.sources import Source
from halfseen.engine.checkpoint import list_checkpoints
from halfseen.engine.config import local_processes
from halfseen.errors import CheckpointError, ConfigError, DataError
from halfseen.pretraining.config import RunConfig, load_run_config
from halfseen.types import Batch, SkippedFile

logger = logging.getLogger(__name__)

RUNS = Path("runs")
CONFIG, DATA, ENVIRONMENT = "config.yaml", "data.json", "environment.json"
LOCK = ".lock"
LISTED_PACKAGES = (
    "halfseen", "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "safetensors",
)  # fmt: skip


def check_folder(config: RunConfig, resume: bool) -> None:
    """See that the run may go where it is told to, before any work is done; nothing is made yet.

    Raises:
        ConfigError: a new run into a folder that holds one already, or a file in its place.
        CheckpointError: a run to resume that isn't there.
    """
    if config.run_dir is None:
        return
    folder = Path(config.run_dir)
    exists = (folder / CONFIG).is_file()
    if resume and not exists:
        raise _no_run(folder)
    if not resume and (exists or list_checkpoints(folder)):
        raise ConfigError(
            f"run_dir: '{folder}' holds a run already. Go on with it by `halfseen pretrain --resume {folder}`, or give "
            "another run_dir."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir: '{folder}' is a file. Give a folder.")


def open_folder(config: RunConfig) -> Path:
    """Make the folder of a run: the one in `run_dir`, or a new `runs/<method>-<data>-<number>`.

    Raises:
        ConfigError: it can't be made.
    """
    if config.run_dir is None:
        return _new_folder(config)
    _make(Path(config.run_dir))
    return Path(config.run_dir)


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


def write_config(folder: Path, loaded: Loaded[RunConfig]) -> None:
    """Write config.yaml: all settings, each with a comment that says who set it."""
    _write_whole(folder / CONFIG, dump_config(loaded.config, loaded.provenance))


def read_config(folder: Path) -> RunConfig:
    """The settings of a run.

    Raises:
        CheckpointError: the folder is not a run's.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"'{folder}' is not a run: it has no {CONFIG}. Give the folder of a run, e.g. runs/mae-1."
        )
    return load_run_config(None, folder / CONFIG).config


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
    _write_json(folder / ENVIRONMENT, content)


def read_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` has written last; empty if it has not."""
    file = folder / ENVIRONMENT
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


@dataclass
class Diary:
    """What is known of a run's data: written to data.json, and gone through again on resume."""

    folder: Path
    source: Source
    skipped: dict[int, SkippedFile] = field(default_factory=dict)

    def note(self, skipped: Sequence[SkippedFile]) -> None:
        """Remember files that could not be used."""
        for each in skipped:
            self.skipped.setdefault(each.index, each)

    def note_batches(self, batches: list[Batch]) -> None:
        """Remember the skipped files of a step."""
        for batch in batches:
            self.note(batch.skipped)

    def read(self) -> None:
        """Take up what an interrupted run has written.

        Raises:
            DataError: its images were others, so the order of all that is to come would be another one.
        """
        if not (self.folder / DATA).is_file():
            return
        before = json.loads((self.folder / DATA).read_text(encoding="utf-8"))
        if before["fingerprint"] != self.source.fingerprint():
            raise DataError(
                f"data.source: the images of '{self.source.name}' are not those that the run in '{self.folder}' began "
                f"with ({before['images']:,} then, {len(self.source):,} now). A run goes on with the same files and "
                "the same skip list: bring them back, or start a new run."
            )
        self.note([SkippedFile(**each) for each in before["skipped"]])

    def write(self) -> None:
        """Write data.json."""
        content = {
            "source": self.source.name,
            "images": len(self.source),
            "labelled": int((self.source.labels >= 0).sum()),
            "classes": list(self.source.class_names),
            "fingerprint": self.source.fingerprint(),
            "left_out": [each._asdict() for each in self.source.left_out],
            "skipped": [each._asdict() for _, each in sorted(self.skipped.items())],
        }
        _write_json(self.folder / DATA, content)


def _no_run(folder: Path) -> CheckpointError:
    return CheckpointError(f"'{folder}' is not a run: it has no {CONFIG}. Give a run's folder, e.g. runs/mae-1.")


def _new_folder(config: RunConfig) -> Path:
    source = Path(config.data.source).stem if ":" not in config.data.source else config.data.source.split(":")[1]
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in source)[:40]
    for number in range(1, 100_000):
        folder = RUNS / f"{config.method.name}-{stem or 'run'}-{number}"
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


def _write_json(path: Path, content: object) -> None:
    _write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """The file appears with all of its text or not at all: half a config.yaml would be read as other settings."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


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

"""Putting many files into folders so that a kill at any moment leaves whole files only, and a second run goes on.

A file is written beside its place under a hidden name and renamed; links are made in one step anyway. What is in its
place already is recognised by its size, so nothing has to be written down between two runs.
"""

import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import Int64

from halfseen.data.files import PathTable
from halfseen.errors import DataError

Mode = Literal["copy", "move", "symlink", "hardlink"]
OnProgress = Callable[[int, int], None]
"""Called with (done, of)."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Plan:
    """Files, and where they belong.

    Attributes:
        origin: a folder that holds each file under the last part of its target's name, or a plain tar archive.
        dst: the folder that the targets are relative to.
        targets: with forward slashes.
        sizes: int64 [n], bytes of each file.
        offsets: int64 [n], where the file begins in the archive; None for a folder.
        num_placed: files beyond these that lie in their place and have left `origin`.
    """

    origin: Path
    dst: Path
    targets: PathTable
    sizes: Int64[np.ndarray, " n"]
    offsets: Int64[np.ndarray, " n"] | None = None
    num_placed: int = 0

    def __len__(self) -> int:
        return len(self.targets)


def find_unplaced(plan: Plan, mode: Mode = "copy") -> list[int]:
    """The rows of the files that still have to be brought to their place.

    A file of the same size there is taken for the same one; `mode="move"` keeps it in the list, for its source is
    still to go. A link to nowhere counts as nothing.

    Raises:
        DataError: something else is there.
    """
    rows = []
    for row, target in enumerate(plan.targets):
        path = plan.dst / target
        try:
            status = path.stat()
        except FileNotFoundError:
            rows.append(row)
            continue
        except OSError as error:
            raise DataError(f"'{path}' can't be looked at ({error.strerror}). Move away what is in its way.") from None
        size = status.st_size if stat.S_ISREG(status.st_mode) else -1
        if size != plan.sizes[row]:
            what = "is not a file" if size < 0 else f"has {size} bytes, its source {plan.sizes[row]}"
            raise DataError(
                f"'{path}' {what}. It was not put there by this command, which never overwrites: move it away, then "
                "run the command again."
            )
        if mode == "move":
            rows.append(row)
    return rows


def bytes_to_write(plan: Plan, rows: list[int], mode: Mode = "copy") -> int:
    """What the files will take on the target's disk beyond what is taken already; links and renaming take nothing."""
    if mode == "copy" or (mode == "move" and plan.origin.stat().st_dev != _existing(plan.dst).stat().st_dev):
        return int(plan.sizes[rows].sum())
    return 0


def check_room(dst: Path, needed: int) -> None:
    """Asks whether a folder, which need not exist, can be written to and has room for so many bytes.

    Raises:
        DataError: it can't, or hasn't.
    """
    there = _existing(dst)
    if not there.is_dir():
        raise DataError(f"--dst: '{there}' is a file, a folder is expected. Name another folder.")
    disk = shutil.disk_usage(there)
    if not os.access(there, os.W_OK | os.X_OK) or disk.total == 0:  # A system's own folders are on no disk.
        raise DataError(f"--dst: '{there}' can't be written to. Name a writable folder, or get the right to write.")
    free = disk.free
    if needed > free:
        raise DataError(
            f"--dst: {needed / 1e9:.2f} GB have to be written to '{dst}', but only {free / 1e9:.2f} GB are free there. "
            "Free some space, or name a folder on another disk."
        )


def _existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def place(plan: Plan, rows: list[int], mode: Mode = "copy", on_progress: OnProgress | None = None) -> None:
    """Brings the files to their places; an archive's are always copied out.

    Raises:
        DataError: a place that can't be written; what has been placed by then stays.
    """
    made: set[str] = set()
    done = 0
    try:
        plan.dst.mkdir(parents=True, exist_ok=True)
        with _sole_use(plan.dst), _archive(plan) as archive:
            for done, row in enumerate(rows):
                target = plan.dst / plan.targets[row]
                if str(target.parent) not in made:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    made.add(str(target.parent))
                if archive is not None and plan.offsets is not None:
                    _extract(archive, int(plan.offsets[row]), int(plan.sizes[row]), target)
                else:
                    _PLACERS[mode](plan.origin / target.name, target)
                if on_progress is not None:
                    on_progress(done + 1, len(rows))
    except OSError as error:
        raise DataError(_explain(error, plan, mode, done, len(rows))) from None


def _explain(error: OSError, plan: Plan, mode: Mode, done: int, of: int) -> str:
    if error.errno == errno.EXDEV:
        return (
            f"--mode: got '{mode}', but '{plan.origin}' and '{plan.dst}' are on different file systems. Use copy, move "
            "or symlink."
        )
    where = error.filename2 or error.filename or plan.dst
    other = ", or choose another --mode" if mode in ("symlink", "hardlink") else ""
    return (
        f"stopped at '{where}' ({error.strerror}). {done} of {of} files were placed and stay. Free space or get the "
        f"right to write{other}; the same command then goes on from there."
    )


@contextmanager
def _archive(plan: Plan) -> Iterator[BinaryIO | None]:
    if plan.offsets is None:
        yield None
        return
    with plan.origin.open("rb") as file:
        yield file


@contextmanager
def _sole_use(folder: Path) -> Iterator[None]:
    """Two runs at once would rename each other's half-written files."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run of this command is writing to '{folder}'. Wait until it has ended.") from None
        except OSError:  # some network file systems know no such locks
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def _written_beside(target: Path) -> Iterator[BinaryIO]:
    """A file to write into that gets the target's name once it is complete."""
    beside = target.with_name(f".{target.name}.partial")
    beside.unlink(missing_ok=True)  # of a run that was killed
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _extract(archive: BinaryIO, offset: int, size: int, target: Path) -> None:
    archive.seek(offset)
    with _written_beside(target) as file:
        left = size
        while left:
            chunk = archive.read(min(_CHUNK, left))
            if not chunk:
                raise DataError(f"'{archive.name}' ends within '{target.name}'. Copy or download the archive again.")
            file.write(chunk)
            left -= len(chunk)


def _copy(source: Path, target: Path, flush: bool = False) -> None:
    with source.open("rb") as content, _written_beside(target) as file:
        shutil.copyfileobj(content, file, _CHUNK)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def _move(source: Path, target: Path) -> None:
    """Removes the source last, and only when the target holds the same bytes."""
    if target.exists():  # an earlier run placed it in another mode, or was killed before the source was gone
        if not target.samefile(source) and not filecmp.cmp(source, target, shallow=False):
            raise DataError(
                f"'{target}' has as many bytes as '{source}', but other ones. Nothing was overwritten or removed; move "
                "one of the two away, then run the command again."
            )
        if not target.is_symlink():
            source.unlink()
            return
    if source.is_symlink():  # a relative link would lead elsewhere from its new place
        _symlink(source, target)
        source.unlink()
        return
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target, flush=True)
        source.unlink()


def _symlink(source: Path, target: Path) -> None:
    """Relative, so that both folders may move together."""
    real = source.resolve()
    target.unlink(missing_ok=True)  # a link to nowhere
    target.symlink_to(os.path.relpath(real, target.parent.resolve()))


def _hardlink(source: Path, target: Path) -> None:
    real = source.resolve()
    target.unlink(missing_ok=True)
    target.hardlink_to(real)


_PLACERS: dict[Mode, Callable[[Path, Path], None]] = {
    "copy": _copy,
    "move": _move,
    "symlink": _symlink,
    "hardlink": _hardlink,
}

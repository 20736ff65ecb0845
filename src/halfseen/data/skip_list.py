"""The list of files that a run leaves out: written by `halfseen data check`, honoured whenever the data is opened."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from halfseen.errors import DataError

SKIP_LIST_NAME = "halfseen_skip.json"


class SkipEntry(NamedTuple):
    """A file to leave out.

    Attributes:
        path: relative to the data's folder, with forward slashes.
        size: bytes when it was checked; a file of another size has been mended and is used again. None = unknown.
        reason: why, in a short sentence.
    """

    path: str
    size: int | None
    reason: str


def write_skip_list(path: str | os.PathLike[str], entries: Iterable[SkipEntry]) -> None:
    """Writes the list, sorted by path, in one go (a reader never sees half a file).

    Raises:
        DataError: if the file can't be written.
    """
    target = Path(path)
    listed = [entry._asdict() for entry in sorted(entries)]
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps({"version": 1, "files": listed}, indent=1, ensure_ascii=False), "utf-8")
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(
            f"can't write the skip list '{target}' ({error.strerror}). Name a writable place with --skip-list FILE and "
            "give the same path to training as data.skip_list=FILE."
        ) from None


def read_skip_list(path: str | os.PathLike[str]) -> list[SkipEntry]:
    """The list in a file.

    Raises:
        DataError: if it is missing or not such a list.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        return [_parse_entry(entry) for entry in content["files"]]
    except OSError as error:
        raise DataError(
            f"data.skip_list: can't read '{path}' ({error.strerror}). Write one with `halfseen data check DATA`."
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"data.skip_list: '{path}' is not a skip list ({type(error).__name__}: {error}). Delete it or write a new "
            "one with `halfseen data check DATA`."
        ) from None


def _parse_entry(entry: dict[str, object]) -> SkipEntry:
    path, size, reason = entry["path"], entry.get("size"), entry.get("reason", "on the skip list")
    if not isinstance(path, str) or not isinstance(reason, str) or not (size is None or isinstance(size, int)):
        raise TypeError(f"'{path}' has fields of a wrong type")
    return SkipEntry(path, size, reason)

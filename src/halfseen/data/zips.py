"""Images inside a zip archive, read where they lie: nothing is unpacked, so no member can land anywhere.

The table of contents is read once; after that an image is one seek and one read. No file stays open, as loader workers
share the source.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from halfseen.data.decode import BadImage, decode_image, inspect_image
from halfseen.data.files import PathTable
from halfseen.data.sources import Source
from halfseen.errors import DataError

LOCAL_HEADER = 30
"""Bytes before a member's name, at the place that the table of contents names."""


class Members(NamedTuple):
    """The files in an archive, sorted by name.

    Attributes:
        names: with forward slashes.
        places: int64 [n, 5], of each: where its header begins, its size in the archive, its size, how it is packed
            (zipfile's number), its flags.
    """

    names: list[str]
    places: Int[np.ndarray, "n 5"]


def list_members(path: Path) -> Members:
    """The table of contents of an archive.

    Raises:
        DataError: if it isn't a whole zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = sorted((each for each in archive.infolist() if not each.is_dir()), key=lambda each: each.filename)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"data.source: '{path}' is not a whole zip archive ({error}). Fetch it anew.") from None
    rows = [
        (each.header_offset, each.compress_size, each.file_size, each.compress_type, each.flag_bits) for each in found
    ]
    return Members([each.filename for each in found], np.array(rows, dtype=np.int64).reshape(-1, 5))


class ZipSource(Source):
    """Images in a zip archive.

    Args:
        name: what the user wrote.
        archive: the file.
        members: the images.
        labels: int64 [n], -1 = none.
        class_names: in the order of the labels.
        max_pixels: larger pictures are bad.
    """

    def __init__(
        self,
        name: str,
        archive: Path,
        members: Members,
        labels: Int[np.ndarray, " n"],
        class_names: Sequence[str],
        max_pixels: int,
    ) -> None:
        self.name, self.archive, self.max_pixels = name, archive, max_pixels
        self.labels, self.class_names = labels, tuple(class_names)
        self._names, self._places = PathTable(members.names), members.places

    def path(self, index: int) -> str:
        return f"{self.archive}/{self._names[index]}"

    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        return decode_image(self._content(index), self.max_pixels, shrink_to)

    def shorter_side(self, index: int) -> int:
        facts = inspect_image(self._content(index), self.max_pixels)
        return min(facts.width, facts.height)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for name, size in zip(self._names, self._places[:, 2], strict=True):
            digest.update(os.fsencode(name) + b"\0%d\n" % size)
        return digest.hexdigest()

    def _content(self, index: int) -> bytes:
        start, packed, size, how, flags = (int(number) for number in self._places[index])
        if flags & 1 or how not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImage("it is encrypted or packed in an unusual way; unpack the archive")
        if packed > self.archive.stat().st_size or size > 4 * self.max_pixels:
            raise BadImage("the archive's table of contents gives it an impossible size")
        try:
            with self.archive.open("rb") as file:
                file.seek(start)
                header = file.read(LOCAL_HEADER)
                if len(header) < LOCAL_HEADER or header[:4] != b"PK\3\4":
                    raise BadImage("the archive is broken at this place")
                file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
                data = file.read(packed)
            # One byte more than promised is enough to know: a small member can't fill the memory.
            content = data if how == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(data, size + 1)
        except (OSError, zlib.error) as error:
            raise BadImage(f"it can't be unpacked ({error})") from None
        if len(content) != size:
            raise BadImage("it is cut short in the archive, or longer than the table of contents says")
        return content

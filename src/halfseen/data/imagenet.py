"""ImageNet (ILSVRC2012) as it is published, and where each of its images belongs.

The validation images come flat, with a list of class numbers; what a number means stands in the development kit's
meta.mat. The training images come as one archive per class inside an archive. Everything is checked before the first
file is touched: this module only makes plans, `data.placing` carries them out. Source of the layout and of the numbers:
the read-me file of the development kit.
"""

import io
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from halfseen.data.files import PathTable
from halfseen.data.placing import Plan
from halfseen.errors import DataError

OnProgress = Callable[[int, int], None]

NUM_VALIDATION_IMAGES = 50_000
NUM_SYNSETS = 1860
LABELS_NAME = "ILSVRC2012_validation_ground_truth.txt"
META_NAME = "meta.mat"

_WNID = re.compile(r"n\d{8}")
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_MOST_BYTES = 64 << 20
"""Larger files are neither label lists nor development kits; the genuine ones have 0.2 and 0.6 MB."""


class Synset(NamedTuple):
    """A class of meta.mat.

    Attributes:
        wnid: its WordNet number, which names its folder.
        num_train_images: 0 for inner nodes, or where meta.mat doesn't say.
    """

    wnid: str
    num_train_images: int


Synsets = Mapping[int, Synset]
"""By ILSVRC2012_ID, which is not the alphabetical class index."""


def validation_name(number: int) -> str:
    """The file name of a validation image, counted from 1."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def read_labels(path: Path) -> list[int]:
    """ILSVRC2012_ID of each validation image, in their order.

    Raises:
        DataError: no such file, or one of another form.
    """
    return _parse_labels(_read_small("--labels", path), f"--labels: '{path}'")


def read_synsets(path: Path) -> Synsets:
    """The classes of a meta.mat.

    Raises:
        DataError: no such file, not MATLAB's, or without the classes.
    """
    return _parse_synsets(_read_small("--meta", path), f"--meta: '{path}'")


def read_devkit(path: Path) -> tuple[list[int], Synsets]:
    """Labels and classes from the development kit's archive; nothing is unpacked to disk.

    Raises:
        DataError: no such file, not an archive, or without the two files.
    """
    where = f"--devkit: '{path}'"
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_read_small("--devkit", path))) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in (LABELS_NAME, META_NAME) and member.isreg() and member.size <= _MOST_BYTES:
                    content = archive.extractfile(member)
                    found[name] = content.read() if content is not None else b""
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(
            f"{where} can't be read as a tar archive ({_reason(error)}). Copy or download it again."
        ) from None
    missing = [name for name in (LABELS_NAME, META_NAME) if name not in found]
    if missing:
        raise DataError(f"{where} holds no {' and no '.join(missing)}. Give ILSVRC2012_devkit_t12.tar.gz.")
    return _parse_labels(found[LABELS_NAME], where), _parse_synsets(found[META_NAME], where)


def _read_small(option: str, path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{option}: '{path}' is far too large for that. Is it another file of ImageNet?")
        return path.read_bytes()
    except OSError as error:
        hint = (
            f"{LABELS_NAME} and {META_NAME} are in the folder `data` of the development kit, "
            "ILSVRC2012_devkit_t12.tar.gz, which --devkit takes as it is."
        )
        raise DataError(f"{option}: can't read '{path}' ({error.strerror}). {hint}") from None


def _parse_labels(content: bytes, where: str) -> list[int]:
    lines = content.decode("ascii", "replace").rstrip().splitlines()
    if not lines:
        raise DataError(f"{where} holds no labels. Expected is one class number a line.")
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"\s*[1-9]\d{0,5}\s*", line):
            raise DataError(
                f"{where}: line {number} of the labels is '{line.strip()[:40]}', expected a class number from 1 on, as "
                f"in {LABELS_NAME}."
            )
    return [int(line) for line in lines]


def _parse_synsets(content: bytes, where: str) -> Synsets:
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the file's dialect; what matters is checked below
            synsets = loadmat(io.BytesIO(content), variable_names=["synsets"]).get("synsets")
    except Exception as error:  # A damaged or foreign file can fail anywhere in scipy's reader.
        raise DataError(
            f"{where} can't be read as a MATLAB file ({_reason(error)}). Give the {META_NAME} of ILSVRC2012_devkit_t12."
        ) from None
    fields = getattr(synsets, "dtype", np.dtype(float)).names or ()
    if synsets is None or not {"ILSVRC2012_ID", "WNID"} <= set(fields) or not synsets.size:
        raise DataError(
            f"{where} is a MATLAB file without the struct array `synsets` with ILSVRC2012_ID and WNID. Give the "
            f"{META_NAME} of ILSVRC2012_devkit_t12."
        )
    found: dict[int, Synset] = {}
    for record in synsets.ravel():
        try:
            number, wnid = int(_only(record["ILSVRC2012_ID"])[0]), str(_only(record["WNID"])[0])
            num_images = int(_only(record["num_train_images"])[0]) if "num_train_images" in fields else 0
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: record {len(found) + 1} of `synsets` has another form ({error}).") from None
        if not _WNID.fullmatch(wnid):
            raise DataError(f"{where}: class {number} has the WNID '{wnid[:40]}', expected n and eight digits.")
        if number in found:
            raise DataError(f"{where}: the class number {number} stands for {found[number].wnid} and for {wnid}.")
        found[number] = Synset(wnid, num_images)
    return found


def _only(cell: object) -> np.ndarray:
    """[1], the one value in a cell of a MATLAB struct, which is an array of any number of dimensions."""
    values = np.asarray(cell).ravel()
    if values.size != 1:
        raise ValueError(f"{values.size} values where one is expected")
    return values


def unusual_counts(labels: Sequence[int] | None, synsets: Synsets) -> list[str]:
    """Sentences on lists that are shorter or longer than the published ones: fine for a part of the images.

    Args:
        labels: None where they are of no concern.
    """
    found = []
    if labels is not None and len(labels) != NUM_VALIDATION_IMAGES:
        found.append(f"{len(labels):,} labels; the published list has {NUM_VALIDATION_IMAGES:,}")
    if len(synsets) < NUM_SYNSETS:
        found.append(f"{len(synsets):,} classes and inner nodes in meta.mat; the published one has {NUM_SYNSETS:,}")
    return found


def plan_folder(src: Path, dst: Path, labels: Sequence[int], synsets: Synsets) -> Plan:
    """The validation images that lie flat in `src`, each into the folder of its class below `dst`.

    Raises:
        DataError: images and labels don't agree.
    """
    wnids = _wnids(labels, synsets)
    present: dict[int, int] = {}
    try:
        with os.scandir(src) as listing:
            for entry in listing:
                found = _VALIDATION_IMAGE.fullmatch(entry.name)
                if found and entry.is_file():
                    present[int(found[1])] = entry.stat().st_size
    except NotADirectoryError:
        raise DataError(f"--src: '{src}' is a file, a folder is expected. An archive goes to --val-tar.") from None
    except OSError as error:
        raise DataError(f"--src: the folder '{src}' can't be opened ({error.strerror}).") from None
    placed = _find_placed(dst, wnids)
    _check_counts("--src", src, present, placed, len(labels))
    numbers = sorted(present)
    return Plan(
        src,
        dst,
        PathTable(f"{wnids[number - 1]}/{validation_name(number)}" for number in numbers),
        np.array([present[number] for number in numbers], dtype=np.int64),
        num_placed=len(placed - present.keys()),
    )


def plan_validation_archive(
    archive: Path, dst: Path, labels: Sequence[int], synsets: Synsets, on_progress: OnProgress | None = None
) -> Plan:
    """The images of ILSVRC2012_img_val.tar, each into the folder of its class below `dst`.

    Raises:
        DataError: no sound archive of such images, or images and labels don't agree.
    """
    wnids = _wnids(labels, synsets)
    found: dict[int, tuple[int, int]] = {}
    with _open("--val-tar", archive) as file:
        for member in _regular_members(file, f"--val-tar: '{archive}'"):
            name = _VALIDATION_IMAGE.fullmatch(member.name.removeprefix("./"))
            if name is None or int(name[1]) in found:
                what = "a second" if name else "the file"
                raise DataError(
                    f"--val-tar: '{archive}' holds {what} '{member.name[:80]}'. Give ILSVRC2012_img_val.tar, with "
                    f"{validation_name(1)} and so on."
                )
            found[int(name[1])] = (member.offset_data, member.size)
            if on_progress is not None:
                on_progress(len(found), max(len(found), len(labels)))
    _check_counts("--val-tar", archive, found, _find_placed(dst, wnids), len(labels))
    numbers = sorted(found, key=lambda number: found[number])  # read the archive from front to back
    return Plan(
        archive,
        dst,
        PathTable(f"{wnids[number - 1]}/{validation_name(number)}" for number in numbers),
        np.array([found[number][1] for number in numbers], dtype=np.int64),
        np.array([found[number][0] for number in numbers], dtype=np.int64),
    )


def plan_training_archive(
    archive: Path, dst: Path, synsets: Synsets | None = None, on_progress: OnProgress | None = None
) -> Plan:
    """The images of ILSVRC2012_img_train.tar, an archive of one archive per class, into class folders below `dst`.

    Args:
        synsets: if given, each class must hold as many images as it says.
    Raises:
        DataError: no sound archive of such archives, or other counts than meta.mat's.
    """
    where = f"--train-tar: '{archive}'"
    targets: list[str] = []
    sizes: list[int] = []
    offsets: list[int] = []
    counts: dict[str, int] = {}
    with _open("--train-tar", archive) as file:
        classes = list(_regular_members(file, where))
        for done, outer in enumerate(classes):
            name = _CLASS_ARCHIVE.fullmatch(outer.name.removeprefix("./"))
            if name is None or name[1] in counts:
                what = "a second" if name else "the file"
                raise DataError(
                    f"{where} holds {what} '{outer.name[:80]}'. Give ILSVRC2012_img_train.tar, with n01440764.tar and "
                    "so on."
                )
            wnid, before = name[1], len(targets)
            seen = set()
            for image in _regular_members(_Part(file, outer.offset_data, outer.size), f"{where}, {wnid}.tar"):
                inner = image.name.removeprefix("./")
                if not re.fullmatch(rf"{wnid}_\d+\.JPEG", inner) or inner in seen:
                    what = "a second" if inner in seen else "the file"
                    raise DataError(f"{where}: its {wnid}.tar holds {what} '{image.name[:80]}'. Download it again.")
                seen.add(inner)
                targets.append(f"{wnid}/{inner}")
                sizes.append(image.size)
                offsets.append(outer.offset_data + image.offset_data)
            counts[wnid] = len(targets) - before
            if on_progress is not None:
                on_progress(done + 1, len(classes))
    if not targets:
        raise DataError(f"{where} holds no images. Give ILSVRC2012_img_train.tar, with n01440764.tar and so on.")
    if synsets is not None:
        _check_training_counts(where, counts, synsets)
    return Plan(archive, dst, PathTable(targets), np.array(sizes, np.int64), np.array(offsets, np.int64))


def _wnids(labels: Sequence[int], synsets: Synsets) -> list[str]:
    unknown = [line for line, label in enumerate(labels, start=1) if label not in synsets]
    if unknown:
        more = f" ({len(unknown):,} such lines)" if len(unknown) > 1 else ""
        raise DataError(
            f"--labels or --devkit: line {unknown[0]} has the class number {labels[unknown[0] - 1]}, which meta.mat "
            "doesn't know"
            f"{more}. Give the labels and the meta.mat of one development kit."
        )
    return [synsets[label].wnid for label in labels]


def _find_placed(dst: Path, wnids: Sequence[str]) -> set[int]:
    """The numbers of the validation images that lie in their class folders already.

    Raises:
        DataError: some lie in the folder of another class.
    """
    placed: set[int] = set()
    wrong: list[str] = []
    try:
        with os.scandir(dst) as listing:
            folders = sorted(entry.name for entry in listing if _WNID.fullmatch(entry.name) and entry.is_dir())
        for wnid in folders:
            with os.scandir(dst / wnid) as images:
                for image in images:
                    found = _VALIDATION_IMAGE.fullmatch(image.name)
                    if found and image.is_file():
                        number = int(found[1])
                        placed.add(number)
                        if 1 <= number <= len(wnids) and wnids[number - 1] != wnid:
                            wrong.append(f"{wnid}/{image.name} (labelled {wnids[number - 1]})")
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise DataError(f"--dst: '{error.filename or dst}' can't be opened ({error.strerror}).") from None
    if wrong:
        raise DataError(
            f"--dst: {len(wrong)} images below '{dst}' lie in the folder of another class than the labels say: "
            f"{_few(wrong)}. Check --labels and --meta, or --devkit, or move these images away."
        )
    return placed


def _check_counts(option: str, origin: Path, present: Iterable[int], placed: set[int], count: int) -> None:
    there = set(present) | placed
    missing = [number for number in range(1, count + 1) if number not in there]
    beyond = sorted(number for number in there if not 1 <= number <= count)
    if missing:
        raise DataError(
            f"{option}: '{origin}' holds {count - len(missing):,} of the {count:,} images that the labels name, those "
            f"in their class folders counted in; missing: {_few([validation_name(number) for number in missing])}. "
            "Download the images again, or give the labels of those that are there."
        )
    if beyond:
        raise DataError(
            f"--labels or --devkit: there are {count:,} labels but {len(there):,} images; without a label: "
            f"{_few([validation_name(number) for number in beyond])}. Give the whole list, or move these images away."
        )


def _check_training_counts(where: str, counts: Mapping[str, int], synsets: Synsets) -> None:
    expected = {synset.wnid: synset.num_train_images for synset in synsets.values() if synset.num_train_images}
    faults = [
        f"{wnid}.tar with {counts.get(wnid, 0)} instead of {expected.get(wnid, 0)} images"
        for wnid in sorted(expected.keys() | counts.keys())
        if counts.get(wnid, 0) != expected.get(wnid, 0)
    ]
    if expected and faults:
        raise DataError(
            f"{where} doesn't hold what meta.mat counts: {_few(faults)}. Download it again; a part of ImageNet made on "
            "purpose is unpacked without --devkit and --meta."
        )


def _open(option: str, archive: Path) -> IO[bytes]:
    try:
        return archive.open("rb")
    except OSError as error:
        raise DataError(f"{option}: can't read '{archive}' ({error.strerror}).") from None


class _Part(io.RawIOBase):
    """A stretch of a file as a file of its own: an archive inside an archive."""

    def __init__(self, whole: IO[bytes], start: int, size: int) -> None:
        self._whole, self._start, self._size, self._at = whole, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._whole.seek(self._start + self._at)
        content = self._whole.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


def _regular_members(file: IO[bytes] | io.RawIOBase, where: str) -> Iterator[tarfile.TarInfo]:
    """The files in a plain tar archive; folders are passed over.

    Raises:
        DataError: damaged, incomplete, compressed or no archive at all; links or other things inside.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{where} holds '{member.name[:80]}', which is no plain file. Download it again.")
                yield member
            file.seek(archive.offset)
            if (file.read(tarfile.BLOCKSIZE) or b"").strip(b"\0"):
                raise tarfile.ReadError("damaged header")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{where} can't be read as a plain tar archive ({_reason(error)}). Is it complete? Copy or download it "
            "again."
        ) from None


def _reason(error: Exception) -> str:
    """What another library says, on one short line, without a list of all that it tried."""
    return " ".join(str(error).partition(": -")[0].split())[:120] or type(error).__name__


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")

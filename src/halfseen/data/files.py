"""Image files as sources: folders, with labels from their first level, and manifests.

Made for a million files: one `os.scandir` pass, names kept in one flat array that loader workers share, no file
touched before it is read.
"""

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from halfseen.data.config import DataConfig
from halfseen.data.decode import BadImage, decode_image, decode_mask, inspect_image
from halfseen.data.skip_list import SKIP_LIST_NAME, SkipEntry, read_skip_list
from halfseen.data.sources import IGNORED, MASKS_GO_WHERE, LeftOut, Source, Split, did_you_mean
from halfseen.errors import DataError, MissingExtraError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "valid", "validation", "test")
SPLIT_OF_WORD: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "test", "testing"), "test"),
}
MASK_NAMES_FILE = "mask_names.txt"
MANIFEST_SUFFIXES = (".csv", ".parquet")


class PathTable:
    """Many paths in two flat arrays.

    A list of a million strings takes three times the room, and forked workers copy it page by page as they count
    references.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class FileSource(Source):
    """Images in files.

    Args:
        name: what the user wrote.
        base: folder that the paths are relative to.
        paths: relative to `base`, with forward slashes, or absolute.
        labels: int64 [n], -1 = none.
        class_names: in the order of the labels.
        max_pixels: larger pictures are bad.
        masks: for each image the path of its mask, '' where it has none; None if no image has one.
        mask_names: names of the classes of pixels; None numbers them as the masks do, which are then all read once.
        first_mask_value: the value that stands for class 0 in a mask file; the others follow, 255 is none.
        left_out: files that are not in `paths`, with the reason.
    """

    def __init__(
        self,
        name: str,
        base: Path,
        paths: Sequence[str],
        labels: Int[np.ndarray, " n"],
        class_names: Sequence[str],
        max_pixels: int,
        masks: Sequence[str] | None = None,
        mask_names: Sequence[str] | None = None,
        first_mask_value: int = 0,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.name, self.base, self.max_pixels = name, base, max_pixels
        self.labels, self.class_names, self.left_out = labels, tuple(class_names), tuple(left_out)
        self._paths = PathTable(paths)
        self._masks = None if masks is None else PathTable(masks)
        self._mask_names = None if mask_names is None else tuple(mask_names)
        self._first_mask_value = first_mask_value
        self._fingerprint: str | None = None

    def relative_path(self, index: int) -> str:
        """As it is kept in skip lists."""
        return self._paths[index]

    def path(self, index: int) -> str:
        return str(self.base / self._paths[index])

    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        return decode_image(self.path(index), self.max_pixels, shrink_to)

    def shorter_side(self, index: int) -> int:
        facts = inspect_image(self.path(index), self.max_pixels)
        return min(facts.width, facts.height)

    @property
    def has_masks(self) -> bool:
        return self._masks is not None

    @property
    def mask_names(self) -> tuple[str, ...]:
        if self._mask_names is None:
            self._mask_names = () if self._masks is None else self._count_mask_classes(self._masks)
        return self._mask_names

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        if self._masks is None:
            return super().mask(index)
        if not self._masks[index]:
            raise DataError(f"'{self.path(index)}' has no mask, although other images have one. {MASKS_GO_WHERE}")
        path = self.base / self._masks[index]
        values = self._read_mask_file(path)
        labels = values - np.uint8(self._first_mask_value)  # Wraps where the value is too small, to be found below.
        labels[values == IGNORED] = IGNORED
        names = self.mask_names
        wrong = values[(labels >= len(names)) & (values != IGNORED)]
        if len(wrong):
            first = self._first_mask_value
            raise DataError(
                f"The mask '{path}' holds the value {wrong[0]}, but classes are written as {first} to "
                f"{first + len(names) - 1} ({', '.join(names[:4])}{' ...' if len(names) > 4 else ''}) and {IGNORED} is "
                f"for pixels of no class. Mend the mask, or name all classes in {MASK_NAMES_FILE}, one a line."
            )
        return labels

    def _read_mask_file(self, path: Path) -> UInt8[np.ndarray, "H W"]:
        try:
            return decode_mask(path, self.max_pixels)
        except BadImage as fault:
            raise DataError(
                f"The mask '{path}' can't be used: {fault.reason}. A mask is a PNG with one channel, grey or palette, "
                "whose values are the classes of the pixels."
            ) from None

    def _count_mask_classes(self, masks: PathTable) -> tuple[str, ...]:
        """The numbers from 0 to the largest value in any mask, as names; decoders let go of Python's lock."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            largest = pool.map(self._largest_mask_value, (path for path in masks if path))
            return tuple(str(number) for number in range(max(largest, default=-1) + 1))

    def _largest_mask_value(self, path: str) -> int:
        values = self._read_mask_file(self.base / path)
        return int(values[values != IGNORED].max(initial=0))

    def without(self, keep: Sequence[int], gone: Sequence[LeftOut]) -> "FileSource":
        """The same source with the images at `keep` only; `gone` tells what became of the others."""
        return FileSource(
            self.name,
            self.base,
            [self._paths[index] for index in keep],
            self.labels[np.asarray(keep)],
            self.class_names,
            self.max_pixels,
            None if self._masks is None else [self._masks[index] for index in keep],
            self._mask_names,
            self._first_mask_value,
            (*self.left_out, *gone),
        )

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(self.class_names).encode())
            digest.update(self.labels.astype("<i8").tobytes())
            for path in self._paths:
                digest.update(os.fsencode(path) + b"\0%d\n" % _size(self.base / path))
            for mask in self._masks or ():
                digest.update(os.fsencode(mask) + b"\0%d\n" % (_size(self.base / mask) if mask else 0))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def open_folder(root: Path, split: Split, settings: DataConfig, use_skip_list: bool = True) -> FileSource:
    """The images of one split below a folder.

    Labels come from the first-level folders, if images lie in at least two of them. A folder with train/ and val/ (or
    test/) inside holds two splits whose classes are numbered together; any other folder is all 'train'.

    Raises:
        DataError: if there are no images, or not that split.
    """
    place = find_place(root, split)
    if place is None:
        raise DataError(
            f"data.source: '{root}' has no split '{split}': there is no {_either(TEST_FOLDERS)} folder beside a train "
            "folder in it. Name the folder of the held-out images by its own path."
        )
    scan = _scan(root, place.images)
    if not scan.paths:
        raise DataError(_nothing_found(root / place.images if place.images else root, scan))
    other = find_place(root, "test" if split == "train" else "train")
    beside = None if other is None or other == place else other.images
    class_names, labels = _label_by_folder(
        scan.paths, place.images, _scan(root, beside).paths if beside is not None else [], beside
    )
    masks = None
    if place.masks is not None:
        masks = _masks_of(scan.paths, place.images, _scan(root, place.masks).paths, place.masks)
    source = FileSource(
        str(root),
        root,
        scan.paths,
        labels,
        class_names,
        settings.max_pixels,
        masks,
        read_mask_names(root),
        left_out=scan.left_out,
    )
    return leave_out(source, settings, root) if use_skip_list else source


class Place(NamedTuple):
    """Folders of a split's images and masks, relative to the source's; '' is that folder itself."""

    images: str
    masks: str | None = None


def find_place(root: Path, split: Split) -> Place | None:
    """Where the images of a split lie below `root`, and their masks if there are any; None for no such split.

    With masks: `images` and `masks` side by side, in the folder of the split or with folders of the splits in each.
    """
    pair = _images_and_masks(root)
    if pair is not None:
        folder = find_split_folder(root / pair[0], split)
        return None if folder is None else Place(*(f"{name}/{folder}" if folder else name for name in pair))
    within = find_split_folder(root, split)
    if within is None:
        return None
    pair = _images_and_masks(root / within) if within else None
    return Place(within) if pair is None else Place(*(f"{within}/{name}" for name in pair))


def _images_and_masks(folder: Path) -> tuple[str, str] | None:
    names = {entry.name.lower(): entry.name for entry in _visible(folder) if _is_folder(entry)}
    return (names["images"], names["masks"]) if "images" in names and "masks" in names else None


def _masks_of(images: list[str], image_place: str, masks: list[str], mask_place: str) -> list[str]:
    """For each image the mask with the same path but for the ending, '' where there is none."""
    mask_of = {_without_ending(path[len(mask_place) :]): path for path in masks}
    return [mask_of.get(_without_ending(path[len(image_place) :]), "") for path in images]


def _without_ending(path: str) -> str:
    return path[: path.rfind(".")]  # All scanned paths have one.


def read_mask_names(folder: Path) -> list[str] | None:
    """Names of the classes of pixels, from `mask_names.txt` with one a line; None where there is no such file."""
    path = folder / MASK_NAMES_FILE
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.source: '{path}' can't be read as text in UTF-8 ({error}).") from None
    if not 0 < len(names) < IGNORED:
        raise DataError(
            f"data.source: '{path}' has {len(names)} names, expected 1 to {IGNORED - 1}, one a line, the first for "
            "pixels of the value 0."
        )
    return names


def find_split_folder(root: Path, split: Split) -> str | None:
    """Name of the folder of a split below `root`; '' is the folder itself, None says that there is no such split."""
    folders = {entry.name.lower(): entry.name for entry in _visible(root) if entry.is_dir()}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    # A lone folder `train` among others is more likely a class (of vehicles) than a split.
    if train is None or (test is None and len(folders) > 1):
        return "" if split == "train" else None
    return train if split == "train" else test


def open_manifest(path: Path, split: Split, settings: DataConfig, use_skip_list: bool = True) -> FileSource:
    """The images that a table lists.

    Columns: image; optional label (a name or a number), split (train, val, test ...) and mask. Without the column
    split all rows are 'train'. Paths are relative to the table's folder and can't leave it.

    Raises:
        DataError: if the table has another form, or no rows of that split.
        MissingExtraError: for .parquet without pyarrow.
    """
    rows = _read_manifest(path)
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        raise DataError(
            f"data.source: '{path}' has no rows of the split '{split}' among its {len(rows)} rows. Mark them in a "
            "column `split` with train, val or test."
        )
    class_names = _sorted_labels({row.label for row in rows if row.label})
    number_of = {name: number for number, name in enumerate(class_names)}
    labels = np.array([number_of[row.label] if row.label else -1 for row in chosen], dtype=np.int64)
    masks = [row.mask for row in chosen]
    source = FileSource(
        str(path),
        path.parent,
        [row.image for row in chosen],
        labels,
        class_names,
        settings.max_pixels,
        masks=masks if any(masks) else None,
        mask_names=read_mask_names(path.parent),
    )
    return leave_out(source, settings, path.parent) if use_skip_list else source


def manifest_has_split(path: Path, split: Split) -> bool:
    """Whether a manifest has rows of that split."""
    return path.suffix.lower() in MANIFEST_SUFFIXES and any(row.split == split for row in _read_manifest(path))


class _Scan(NamedTuple):
    paths: list[str]
    left_out: list[LeftOut]
    num_others: int


def _scan(root: Path, place: str) -> _Scan:
    """All image files below root/place: paths relative to `root`, sorted by their bytes.

    Hidden files and folders are passed over. Linked folders are followed, each once and never into themselves.
    """
    paths: list[str] = []
    left_out: list[LeftOut] = []
    num_others = 0
    links_taken: set[tuple[int, int]] = set()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(place, frozenset())]
    while waiting:
        folder, ancestors = waiting.pop()
        try:
            status = (root / folder).stat()
            with os.scandir(root / folder) as listing:
                entries = list(listing)
        except OSError as error:
            left_out.append(LeftOut(str(root / folder), f"the folder can't be opened: {error.strerror}"))
            continue
        ancestors = ancestors | {(status.st_dev, status.st_ino)}
        prefix = f"{folder}/" if folder else ""
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if not _is_folder(entry):
                if name[name.rfind(".") :].lower() in EXTENSIONS:
                    paths.append(prefix + name)
                else:
                    num_others += 1
            elif not entry.is_symlink():
                waiting.append((prefix + name, ancestors))
            else:
                target = entry.stat()
                key = (target.st_dev, target.st_ino)
                if key not in ancestors and key not in links_taken:
                    links_taken.add(key)
                    waiting.append((prefix + name, ancestors))
    return _Scan(sorted(paths, key=os.fsencode), sorted(left_out), num_others)


def scan_folder(root: Path) -> list[str]:
    """All image files below `root`, relative to it, sorted by their bytes; hidden ones are passed over."""
    return _scan(root, "").paths


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for instance a link that points to itself
        return False


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"data.source: the folder '{folder}' can't be opened ({error.strerror}).") from None


def _nothing_found(folder: Path, scan: _Scan) -> str:
    known = " ".join(sorted(EXTENSIONS))
    if scan.left_out:
        seen = f"and {len(scan.left_out)} of its folders can't be opened"
    elif scan.num_others:
        seen = f"only {scan.num_others} files of other kinds"
    else:
        seen = "it is empty"
    return f"data.source: no images below '{folder}', {seen}. Image files end in {known} (in any case)."


def _label_by_folder(
    paths: list[str], place: str, other_paths: list[str], other_place: str | None
) -> tuple[list[str], Int[np.ndarray, " n"]]:
    own = _first_folders(paths, place)
    class_names = sorted({name for name in (*own, *_first_folders(other_paths, other_place or "")) if name})
    if len(class_names) < 2:
        return [], np.full(len(paths), -1, dtype=np.int64)
    number_of = {name: number for number, name in enumerate(class_names)}
    return class_names, np.array([number_of.get(name, -1) for name in own], dtype=np.int64)


def _first_folders(paths: list[str], place: str) -> list[str]:
    """For each path the name of the first folder below `place`, or '' if the file lies directly in it."""
    start = len(place) + 1 if place else 0
    return [path[start : path.find("/", start)] if "/" in path[start:] else "" for path in paths]


def leave_out(source: FileSource, settings: DataConfig, base: Path) -> FileSource:
    """The source without the files on the skip list that still have the size they had when they were checked."""
    beside = base / SKIP_LIST_NAME
    if settings.skip_list is None and not beside.is_file():
        return source
    listed = {entry.path: entry for entry in read_skip_list(settings.skip_list or beside)}
    keep, gone = [], []
    for index in range(len(source)):
        entry = listed.get(source.relative_path(index))
        if entry is not None and _still_bad(base, entry):
            gone.append(LeftOut(source.path(index), entry.reason))
        else:
            keep.append(index)
    if not gone:
        return source
    if not keep:
        raise DataError(
            f"data.source: all {len(source)} images of '{source.name}' are on the skip list "
            f"'{settings.skip_list or beside}', the first for this reason: {gone[0].reason}. Mend the files, or delete "
            "the list."
        )
    return source.without(keep, gone)


def _still_bad(base: Path, entry: SkipEntry) -> bool:
    return entry.size is None or entry.size == _size(base / entry.path)


def _size(path: Path) -> int:
    """Bytes, or -1 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class _Row(NamedTuple):
    image: str
    label: str
    split: Split
    mask: str


def _read_manifest(path: Path) -> list[_Row]:
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DataError(
            f"data.source: '{path}' is a file of an unknown kind. Give a folder of images or a manifest that ends in "
            ".csv or .parquet."
        )
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    columns = {name.strip().lower(): values for name, values in columns.items()}
    if "image" not in columns:
        raise DataError(
            f"data.source: '{path}' has no column `image`, only {', '.join(columns) or 'no columns at all'}."
            f"{did_you_mean('image', list(columns))} Known columns: image, label, split, mask."
        )
    count = len(columns["image"])
    if not count:
        raise DataError(f"data.source: '{path}' has no rows. List one image per row in the column `image`.")
    blank: list[object] = [None] * count
    bases = (str(path.parent.absolute()), str(path.parent.resolve()))
    rows = zip(columns["image"], *(columns.get(name, blank) for name in ("label", "split", "mask")), strict=True)
    return [_parse_row(path, number, row, bases) for number, row in enumerate(rows, start=1)]


def _read_csv(path: Path) -> dict[str, list[object]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [row for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"data.source: '{path}' can't be read as a table in UTF-8 ({error}).") from None
    except OSError as error:
        raise DataError(f"data.source: '{path}' can't be read ({error.strerror}).") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"data.source: row {number} of '{path}' has {len(row)} cells, the header has {len(header)}. Put values "
                "that contain a comma in double quotes."
            )
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            f"data.source: reading '{path}' needs pyarrow, which is not installed. Run `pip install "
            "'halfseen[parquet]'`, or give the manifest as .csv."
        ) from None
    try:
        # Memory-mapped and column by column: images embedded in other columns are never loaded.
        table = pyarrow.parquet.ParquetFile(path, memory_map=True)
        wanted = [
            name for name in table.schema_arrow.names if name.strip().lower() in ("image", "label", "split", "mask")
        ]
        content: dict[str, list[object]] = table.read(columns=wanted).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"data.source: '{path}' can't be read as parquet ({str(error)[:120]}).") from None
    return content


def _parse_row(path: Path, number: int, row: tuple[object, ...], bases: tuple[str, str]) -> _Row:
    image, label, split, mask = (_to_text(value) for value in row)
    if not image:
        raise DataError(f"data.source: row {number} of '{path}' has an empty `image`. Delete the row or fill it in.")
    word = SPLIT_OF_WORD.get(split.lower() or "train")
    if word is None:
        raise DataError(
            f"data.source: row {number} of '{path}' has the split '{split}'. Allowed: {', '.join(SPLIT_OF_WORD)}."
            f"{did_you_mean(split, list(SPLIT_OF_WORD))}"
        )
    return _Row(
        _stay_inside(path, number, image, bases),
        label,
        word,
        _stay_inside(path, number, mask, bases) if mask else "",
    )


def _to_text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():  # a column of integers with gaps is float in many writers
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise DataError(
            f"data.source: a cell of the manifest holds {type(value).__name__}, expected text or a number. Write the "
            "path of the image file into the column `image`."
        )
    return str(value).strip()


def _stay_inside(manifest: Path, number: int, given: str, bases: tuple[str, str]) -> str:
    """`given` relative to the manifest's folder; a path that leaves the folder is refused."""
    normal = os.path.normpath(given)
    if Path(given).is_absolute():
        inside = next((normal[len(base) :].lstrip("/\\") for base in bases if Path(normal).is_relative_to(base)), None)
        if inside:
            return inside
    elif normal not in (".", "..") and not normal.startswith(("../", "..\\")) and "\0" not in normal:
        return normal
    raise DataError(
        f"data.source: row {number} of '{manifest}' names '{given}', which is outside of the manifest's folder. Put "
        "the manifest into a folder above all its images and write paths relative to it."
    )


def _sorted_labels(names: set[str]) -> list[str]:
    """By number if all are whole numbers, else by name."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"

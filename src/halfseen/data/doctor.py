"""Looks at every image of a source before a run does: what is there, what is broken, what is there twice.

`check` decodes all images in threads (the decoders let go of Python's lock) and gives a `Report`; `precheck` is the
quick look that every run takes at a sample.
"""

import hashlib
import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from halfseen.data.config import DataConfig
from halfseen.data.decode import decode_image, inspect_image, open_regular
from halfseen.data.files import FileSource
from halfseen.data.skip_list import SKIP_LIST_NAME, SkipEntry, read_skip_list, write_skip_list
from halfseen.data.sources import BadImage, LeftOut, Source, SubsetSource
from halfseen.errors import DataError
from halfseen.ops.randomness import numpy_generator
from halfseen.types import SkippedFile

__all__ = [
    "Report",
    "SkipEntry",
    "check",
    "find_shared",
    "precheck",
    "read_skip_list",
    "update_skip_list",
    "write_skip_list",
]

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
HISTOGRAM_EDGES = (0, 32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048, 4096)
# Images handed to the threads at once; a million would first make a million futures.
BLOCK = 512
# The quick look must not hold up a run: it ends after this time, but not before it has seen this many files.
PRECHECK_SECONDS = 5.0
PRECHECK_LEAST = 100


@dataclass(frozen=True)
class BadFile:
    """A file that gives no picture."""

    index: int
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What the doctor found in one source.

    Attributes:
        source: its name.
        num_images: images in the source.
        num_checked: images that were decoded (all, unless a limit was set).
        bad: files without a picture, with the reason.
        left_out: folders and files that could not be reached.
        duplicates: groups of paths with the same content, in the order of their first member.
        formats: number of files by format.
        modes: number of files by Pillow's name of the pixel layout.
        num_rotated: files whose EXIF orientation is not upright.
        width_percentiles: width in pixels at 0, 5, 25, 50, 75, 95 and 100 %, upright.
        height_percentiles: the same for the height.
        shorter_side_histogram: number of images by shorter side: 'from-to' in pixels, the upper end exclusive.
        mean: of red, green and blue over the images, each image counting the same, in [0, 1].
        std: likewise, over all pixels.
        labels: number of images by class name, over the whole source.
        num_unlabelled: images without a label.
        images_per_second: decoded per second and core.
        seconds: the whole check took.
        digests: path -> hash of the content, of the good files.
    """

    source: str
    num_images: int
    num_checked: int
    bad: tuple[BadFile, ...]
    left_out: tuple[LeftOut, ...]
    duplicates: tuple[tuple[str, ...], ...]
    formats: dict[str, int]
    modes: dict[str, int]
    num_rotated: int
    width_percentiles: dict[int, int]
    height_percentiles: dict[int, int]
    shorter_side_histogram: dict[str, int]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    labels: dict[str, int]
    num_unlabelled: int
    images_per_second: float
    seconds: float
    digests: dict[str, str] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """For JSON: everything but the digests; files as objects."""
        content = asdict(self)
        del content["digests"]
        content["left_out"] = [left._asdict() for left in self.left_out]
        return content


@dataclass(frozen=True, slots=True)
class _Finding:
    index: int
    reason: str | None
    digest: str = ""
    format: str = ""
    mode: str = ""
    rotated: bool = False
    width: int = 0
    height: int = 0
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()
    seconds: float = 0.0


def check(
    source: Source,
    *,
    limit: int | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decodes the images of a source and counts what it meets.

    Args:
        source: what to look at.
        limit: look at this many images only, drawn evenly and always the same; None looks at all.
        workers: threads; None uses all cores.
        on_progress: called with the number of images done and of all.
    """
    started = time.perf_counter()
    indices = np.arange(len(source))
    if limit is not None and limit < len(source):
        indices = np.sort(numpy_generator("doctor", len(source)).permutation(len(source))[:limit])
    findings: list[_Finding] = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for start in range(0, len(indices), BLOCK):
            findings += pool.map(lambda index: _examine(source, int(index)), indices[start : start + BLOCK])
            if on_progress is not None:
                on_progress(len(findings), len(indices))
    return _summarise(source, findings, time.perf_counter() - started)


def precheck(source: Source, config: DataConfig) -> list[SkippedFile]:
    """The quick look before training, at `config.precheck` files at most.

    Returns:
        the bad files among those looked at, by index. They stay in the source: the loader replaces them.
    Raises:
        DataError: if all are bad, or more than `config.max_bad_fraction` of them.
    """
    if source.is_sound or config.precheck is None:
        return []
    order = numpy_generator("precheck", len(source)).permutation(len(source))[: config.precheck]
    started = time.perf_counter()
    bad: list[SkippedFile] = []
    checked = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(order), PRECHECK_LEAST):
            part = order[start : start + PRECHECK_LEAST]
            reasons = list(pool.map(lambda index: _reason(source, int(index)), part))
            checked += len(part)
            bad += [
                SkippedFile(int(index), source.path(int(index)), reason, None)
                for index, reason in zip(part, reasons, strict=True)
                if reason is not None
            ]
            if time.perf_counter() - started > PRECHECK_SECONDS:
                break
    bad.sort()
    _refuse_bad_share(source, bad, checked, config.max_bad_fraction)
    return bad


def update_skip_list(source: Source, report: Report, path: str | os.PathLike[str] | None = None) -> Path | None:
    """Writes the bad files of a report into the skip list of a folder or manifest.

    Entries of files that this check did not look at stay. No list is written where there is nothing to skip, unless an
    old one has to be emptied.

    Args:
        source: what was checked, opened with `use_skip_list=False`.
        report: what `check` found in it.
        path: the file to write; None is halfseen_skip.json in the data's folder.
    Returns:
        where the list is, or None if there is none.
    Raises:
        DataError: if it can't be written, or `path` is given for data that isn't made of files.
    """
    whole = source.whole if isinstance(source, SubsetSource) else source
    if not isinstance(whole, FileSource) or whole.name.startswith("torchvision:"):  # Training reads no list there.
        if path is not None:
            raise DataError(f"'{source.name}' is not made of files that could be skipped. Leave out --skip-list.")
        return None
    target = Path(path) if path is not None else whole.base / SKIP_LIST_NAME
    known = {entry.path: entry for entry in read_skip_list(target)} if target.is_file() else {}
    if not known and not report.bad and path is None:
        return None
    bad = {entry.path for entry in report.bad}
    for index in range(len(whole)):
        if whole.path(index) in report.digests or whole.path(index) in bad:
            known.pop(whole.relative_path(index), None)
    positions = source.indices if isinstance(source, SubsetSource) else np.arange(len(whole))
    for entry in report.bad:
        relative = whole.relative_path(int(positions[entry.index]))
        known[relative] = SkipEntry(relative, _size(entry.path), entry.reason)
    write_skip_list(target, known.values())
    return target


def find_shared(train: Report, test: Report) -> list[tuple[str, str]]:
    """Pairs (training file, test file) with the same content: what a test must not contain."""
    place = {digest: path for path, digest in train.digests.items()}
    return [(place[digest], path) for path, digest in test.digests.items() if digest in place]


def _reason(source: Source, index: int) -> str | None:
    try:
        source.read(index)
    except BadImage as fault:
        return fault.reason
    return None


def _refuse_bad_share(source: Source, bad: list[SkippedFile], checked: int, allowed: float) -> None:
    if len(bad) <= allowed * checked and len(bad) < checked:
        return
    examples = "; ".join(f"'{file.path}' ({file.reason})" for file in bad[:3])
    if len(bad) == checked:
        raise DataError(
            f"data.source: none of the {checked} images looked at in '{source.name}' can be read, for instance "
            f"{examples}. `halfseen data check` lists all of them."
        )
    raise DataError(
        f"data.max_bad_fraction: {len(bad)} of {checked} images looked at in '{source.name}' can't be read "
        f"({len(bad) / checked:.1%}), allowed are {allowed:.1%}, for instance {examples}. `halfseen data check` lists "
        "them all and writes a skip list that training honours; or allow a larger share."
    )


def _examine(source: Source, index: int) -> _Finding:
    whole = source.whole if isinstance(source, SubsetSource) else source
    try:
        if not isinstance(whole, FileSource):
            picture = source.read(index)
            digest = hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest()
            return _describe(index, digest, "memory", "RGB", False, picture, 0.0)
        with open_regular(source.path(index)) as stream:
            content = stream.read()
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        facts = inspect_image(content, whole.max_pixels)
        started = time.thread_time()
        picture = decode_image(content, whole.max_pixels)
        seconds = time.thread_time() - started
        return _describe(index, digest, facts.format, facts.mode, facts.orientation != 1, picture, seconds)
    except BadImage as fault:
        return _Finding(index, fault.reason)


def _describe(
    index: int, digest: str, file_format: str, mode: str, rotated: bool, picture: np.ndarray, seconds: float
) -> _Finding:
    mean, deviation = (values.ravel() / 255 for values in cv2.meanStdDev(picture))
    height, width = picture.shape[:2]
    square = tuple((deviation**2 + mean**2).tolist())
    return _Finding(
        index, None, digest, file_format, mode, rotated, width, height, tuple(mean.tolist()), square, seconds
    )


def _summarise(source: Source, findings: list[_Finding], seconds: float) -> Report:
    good = [finding for finding in findings if finding.reason is None]
    bad = [
        BadFile(finding.index, source.path(finding.index), finding.reason)
        for finding in findings
        if finding.reason is not None
    ]
    by_digest: dict[str, list[str]] = defaultdict(list)
    for finding in good:
        by_digest[finding.digest].append(source.path(finding.index))
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    decoding = sum(finding.seconds for finding in good)
    mean, std = _channel_statistics(good)
    return Report(
        source=source.name,
        num_images=len(source),
        num_checked=len(findings),
        bad=tuple(bad),
        left_out=source.left_out,
        duplicates=tuple(tuple(paths) for paths in by_digest.values() if len(paths) > 1),
        formats=dict(Counter(finding.format for finding in good).most_common()),
        modes=dict(Counter(finding.mode for finding in good).most_common()),
        num_rotated=sum(finding.rotated for finding in good),
        width_percentiles=_percentiles([finding.width for finding in good]),
        height_percentiles=_percentiles([finding.height for finding in good]),
        shorter_side_histogram=_histogram([min(finding.width, finding.height) for finding in good]),
        mean=mean,
        std=std,
        labels=dict(zip(source.class_names, counts.tolist(), strict=True)),
        num_unlabelled=int((source.labels < 0).sum()),
        images_per_second=len(good) / decoding if decoding > 0 else 0.0,
        seconds=seconds,
        digests={source.path(finding.index): finding.digest for finding in good},
    )


def _channel_statistics(
    good: list[_Finding],
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    if not good:
        return None, None
    mean = np.mean([finding.mean for finding in good], axis=0)
    std = np.sqrt(np.maximum(np.mean([finding.square for finding in good], axis=0) - mean**2, 0))
    return _three(mean), _three(std)


def _three(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _percentiles(values: list[int]) -> dict[int, int]:
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {percent: int(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def _histogram(values: Iterable[int]) -> dict[str, int]:
    bins = np.searchsorted(HISTOGRAM_EDGES, list(values), side="right") - 1
    names = [f"{low}-{high}" for low, high in itertools.pairwise(HISTOGRAM_EDGES)]
    names.append(f"{HISTOGRAM_EDGES[-1]} and more")
    return {
        name: int(count) for name, count in zip(names, np.bincount(bins, minlength=len(names)), strict=True) if count
    }


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None

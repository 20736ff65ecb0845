"""Label splits: the few training images whose labels an evaluation may see, as text files or drawn by seed.

The format is that of MSN's published lists for ImageNet: one file name a line, `<class>_<number>.JPEG`, its class being
the text before the first `_`; or `<class>/<file>` for images that are named otherwise. Splits of one draw are nested:
the images of a smaller one are a part of every larger one.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from halfseen.data.files import FileSource, find_place
from halfseen.data.sources import Source
from halfseen.errors import DataError
from halfseen.ops.randomness import numpy_generator

_TOO_MANY_TO_NAME = 3


class LabelSplit(NamedTuple):
    """Some images of a training split.

    Attributes:
        origin: the file it was read from, or how it was drawn.
        rows: int64 [m], ascending positions in the source.
        draw: splits of the same draw are nested; counted from 0.
    """

    origin: str
    rows: Int64[np.ndarray, " m"]
    draw: int


def draw_label_splits(
    source: Source, *, per_class: Sequence[int] = (), fractions: Sequence[float] = (), draw: int = 0, seed: int = 0
) -> list[LabelSplit]:
    """Nested splits: for each of `per_class` so many images of every class, for each of `fractions` such a share.

    A share is of all labelled images, rounded down, and spread over the classes as evenly as it can be (MSN's 1 % of
    ImageNet: 12 or 13 of each class); a class that is too small gives all it has.

    Args:
        source: the training split; images without a label are never chosen.
        per_class: numbers of images, at least 1.
        fractions: in (0, 1].
        draw: which of the independent draws; the same (seed, draw) gives the same images whatever else is asked for.
    Returns:
        The splits of `per_class`, then those of `fractions`, each in the order given.
    Raises:
        DataError: no labels, a class with fewer images than asked for, a share that leaves nothing.
    """
    labels = np.asarray(source.labels, dtype=np.int64)
    if not (labels >= 0).any():
        raise DataError(
            f"'{source.name}' has no labels to draw from. Put images into one folder per class, or give a manifest "
            "with a column 'label'."
        )
    sizes = np.bincount(labels[labels >= 0])
    places = _places_in_class(labels, sizes, draw, seed)
    splits = []
    for count in per_class:
        if count < 1:
            raise DataError(f"images per class: got {count}, expected at least 1.")
        poor = np.flatnonzero((sizes > 0) & (sizes < count))
        if len(poor):
            some = ", ".join(
                f"'{_name(source, label)}' has {sizes[label]}" for label in poor[:_TOO_MANY_TO_NAME].tolist()
            )
            raise DataError(
                f"{count} images per class were asked for, but {len(poor)} of {int((sizes > 0).sum())} classes of "
                f"'{source.name}' have fewer: {some}{' ...' if len(poor) > _TOO_MANY_TO_NAME else ''}. Ask for fewer."
            )
        splits.append(LabelSplit(f"{count} per class, {_seed_words(seed, draw)}", _below(places, labels, count), draw))
    for fraction in fractions:
        total = int(round(fraction * int(sizes.sum()), 9))
        if not 0 < fraction <= 1 or not total:
            raise DataError(
                f"share of the images: got {fraction}, expected a number above 0, at most 1, that leaves at least one "
                f"of the {int(sizes.sum())} labelled images of '{source.name}'. Write 0.01 for 1 %."
            )
        quotas = _spread(sizes, total, draw, seed)
        origin = f"{100 * fraction:g} % of the images, {_seed_words(seed, draw)}"
        splits.append(LabelSplit(origin, _below(places, labels, quotas[labels]), draw))
    return splits


def read_label_split(path: str | os.PathLike[str], source: Source, draw: int = 0) -> LabelSplit:
    """The images that a file lists.

    Images that are known to be unreadable (the data's skip list) are passed over.

    Args:
        path: a text file, one line `<class>_<number>.JPEG` or `<class>/<file>` for each image.
        source: the training split, of files.
    Raises:
        DataError: a file that can't be read or is empty, an image that isn't in the source, is listed twice or has no
            label.
    """
    files = _as_files(source, f"label split '{path}'")
    try:
        lines = Path(path).expanduser().read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"label split: can't read '{path}' ({error.strerror}). Give a text file.") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"label split: '{path}' lists no images. Write one `<class>/<file>` per line.")
    folder = _train_folder(files)
    row_of = {files.relative_path(row): row for row in range(len(files))}
    left_out = {os.path.relpath(entry.path, files.base) for entry in files.left_out}
    found: dict[int, str] = {}
    missing = []
    for name in names:
        candidates = _where(name, folder)
        row = next((row_of[place] for place in candidates if place in row_of), None)
        if row is None:
            if left_out.isdisjoint(candidates):
                missing.append(name)
        elif row in found:
            raise DataError(f"label split: '{path}' lists '{name}' twice. Delete one of the lines.")
        else:
            found[row] = name
    if missing:
        some = ", ".join(f"'{name}'" for name in missing[:_TOO_MANY_TO_NAME])
        raise DataError(
            f"label split: {len(missing)} of the {len(names)} images in '{path}' are not in the training split of "
            f"'{source.name}': {some}{' ...' if len(missing) > _TOO_MANY_TO_NAME else ''}. Lines are "
            "`<class>_<number>.JPEG` or `<class>/<file>`, relative to the train folder."
        )
    rows = np.array(sorted(found), dtype=np.int64)
    unlabelled = rows[np.asarray(source.labels)[rows] < 0]
    if len(unlabelled):
        raise DataError(f"label split: '{found[int(unlabelled[0])]}' in '{path}' has no label in '{source.name}'.")
    return LabelSplit(str(path), rows, draw)


def split_lines(source: Source, rows: Int64[np.ndarray, " m"]) -> list[str]:
    """The lines of a file that lists these images: of the published form where all names allow it.

    Raises:
        DataError: images that are not files, or a name that doesn't fit on a line.
    """
    files = _as_files(source, "label split")
    prefix = f"{_train_folder(files)}/".removeprefix("/")
    names = [files.relative_path(row).removeprefix(prefix) for row in rows.tolist()]
    broken = next((name for name in names if len(name.splitlines()) != 1 or name != name.strip()), None)
    if broken is not None:
        raise DataError(f"label split: the file name {broken!r} doesn't fit on a line of text. Rename the file.")
    published = [name.partition("/") for name in names]
    if all(slash and file.partition("_")[0] == label and "_" in file for label, slash, file in published):
        return [file for _, _, file in published]
    return names


def _places_in_class(labels: np.ndarray, sizes: np.ndarray, draw: int, seed: int) -> np.ndarray:
    """For each image its place in the shuffled order of its class, from 0; -1 without a label."""
    places = np.full(len(labels), -1, dtype=np.int64)
    order = np.argsort(labels, kind="stable")[int((labels < 0).sum()) :]
    for label, rows in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        places[rows] = numpy_generator(seed, "label split", draw, label).permutation(len(rows))
    return places


def _below(places: np.ndarray, labels: np.ndarray, quota: int | np.ndarray) -> Int64[np.ndarray, " m"]:
    return np.flatnonzero((labels >= 0) & (places < quota))


def _spread(sizes: np.ndarray, total: int, draw: int, seed: int) -> np.ndarray:
    """How many images each class gives so that it makes `total`: the same of all, as far as they have it, or one more.

    Which classes give one more is drawn.
    """
    levels = np.arange(int(sizes.max()) + 1)
    filled = np.minimum(sizes[None, :], levels[:, None]).sum(axis=1)
    level = int(levels[filled <= total][-1])
    quotas: np.ndarray = np.minimum(sizes, level)
    richer = np.flatnonzero(sizes > level)
    more = numpy_generator(seed, "label split", draw, "one more").permutation(richer)[: total - int(filled[level])]
    quotas[more] += 1
    return quotas


def _where(name: str, folder: str) -> list[str]:
    """Paths, relative to the data's folder, at which a line's image may be."""
    inside = [name]
    if "/" not in name:
        # The published rule is the first `_`; classes whose own names hold one are found at a later one.
        inside += [f"{name[:at]}/{name}" for at, letter in enumerate(name) if letter == "_"]
    return [f"{folder}/{place}" for place in inside if folder] + inside


def _as_files(source: Source, what_for: str) -> FileSource:
    if not isinstance(source, FileSource):
        raise DataError(
            f"{what_for}: the images of '{source.name}' are not files with names. Draw the labelled images by their "
            "number per class instead."
        )
    return source


def _train_folder(files: FileSource) -> str:
    """Name of the train folder within the data's folder; '' if it is that."""
    place = find_place(files.base, "train")
    return "" if place is None else place.images


def _name(source: Source, label: int) -> str:
    return source.class_names[label] if label < len(source.class_names) else str(label)


def _seed_words(seed: int, draw: int) -> str:
    return f"seed {seed}, draw {draw + 1}"

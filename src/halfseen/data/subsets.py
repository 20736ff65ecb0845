"""Which images of a training split a run sees: some drawn at random, the first ones of each class, those of a list.

Pure functions from labels and names to row numbers. Rows come back ascending, so the order of the images and the
numbers of their classes stay as they were.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from halfseen.errors import DataError
from halfseen.ops.randomness import numpy_generator

Rounding = Literal["floor", "ceil", "round"]

_ROUND = {"floor": np.floor, "ceil": np.ceil, "round": np.rint}
_TOO_MANY_TO_NAME = 3


def draw_rows(num_rows: int, count: int, seed: int) -> Int64[np.ndarray, " m"]:
    """`count` of the rows, drawn by `seed`; a smaller draw of the same seed is a part of a larger one."""
    return np.sort(numpy_generator(seed, "subset").permutation(num_rows)[:count])


def share_of(sizes: Int64[np.ndarray, "*any"], fraction: float, rounding: Rounding) -> Int64[np.ndarray, "*any"]:
    """`fraction` of each size as a whole number; round takes halves to the even number."""
    # Decimal fractions are meant: without this 0.29 of 100 would be 28.999999999999996, and 0.07 of it need 8.
    return np.asarray(_ROUND[rounding](np.round(fraction * sizes, 9))).astype(np.int64)


def first_of_each_class(
    labels: Int64[np.ndarray, " n"], count: int, names: Sequence[str] | None = None
) -> Int64[np.ndarray, " m"]:
    """The first `count` images of each class, all of a smaller one (AttMask's 20 % of ImageNet: 260 of each).

    Args:
        labels: class of each image; -1 = none, such images are never chosen.
        count: images of a class.
        names: what "first" goes by, in the order of their bytes; None = the order of the rows.
    """
    return _first(labels, np.full(_num_classes(labels), count), names)


def share_of_each_class(
    labels: Int64[np.ndarray, " n"], fraction: float, rounding: Rounding = "floor", names: Sequence[str] | None = None
) -> Int64[np.ndarray, " m"]:
    """The first `fraction` of the images of each class.

    Args:
        labels: class of each image; -1 = none, such images are never chosen.
        fraction: in (0, 1].
        rounding: how fraction * images of a class becomes a number; round takes halves to the even number.
        names: what "first" goes by, in the order of their bytes; None = the order of the rows.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=_num_classes(labels))
    return _first(labels, share_of(sizes, fraction, rounding), names)


def _num_classes(labels: Int64[np.ndarray, " n"]) -> int:
    return int(labels.max(initial=-1)) + 1


def _first(
    labels: Int64[np.ndarray, " n"], quotas: Int64[np.ndarray, " classes"], names: Sequence[str] | None
) -> Int64[np.ndarray, " m"]:
    """The rows whose place within their class, by name, is below the class's quota."""
    rows = np.arange(len(labels))
    if names is not None:
        rows = np.array(sorted(range(len(names)), key=lambda row: os.fsencode(names[row])), dtype=np.int64)
    rows = rows[labels[rows] >= 0]
    rows = rows[np.argsort(labels[rows], kind="stable")]
    sorted_labels = labels[rows]
    starts = np.searchsorted(sorted_labels, np.arange(len(quotas)))
    places = np.arange(len(rows)) - starts[sorted_labels]
    return np.sort(rows[places < quotas[sorted_labels]])


class Listed(NamedTuple):
    """A line of a list: an image's path relative to the train folder, and its class as it is written there."""

    path: str
    label: str


def read_subset_list(path: str | os.PathLike[str]) -> list[Listed]:
    """The images in a list file: one line for each, `relative/path label`, separated by one space.

    Raises:
        DataError: if it can't be read, has a line of another form, or is empty.
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise DataError(f"data.subset_list: can't read '{path}' ({reason}). Give a text file.") from None
    listed = []
    for number, line in enumerate(lines, start=1):
        name, space, label = line.strip().rpartition(" ")
        if not space and label:
            raise DataError(
                f"data.subset_list: line {number} of '{path}' is '{line.strip()[:80]}', expected `relative/path "
                "label`, as in `n01440764/n01440764_10026.JPEG 0`."
            )
        if label:
            listed.append(Listed(name.strip(), label))
    if not listed:
        raise DataError(f"data.subset_list: '{path}' lists no images. Write one `relative/path label` per line.")
    return listed


def rows_of_list(
    listed: Sequence[Listed],
    names: Sequence[str],
    labels: Int64[np.ndarray, " n"],
    class_names: Sequence[str],
    folder: str = "",
    left_out: Sequence[str] = (),
) -> Int64[np.ndarray, " m"]:
    """The rows of the listed images.

    Args:
        listed: from `read_subset_list`.
        names: path of each image, relative to the data's folder.
        labels: class of each image, -1 = none.
        class_names: by number; a listed label must be the number or the name of the image's class.
        folder: the train folder within the data's folder; '' if it is that.
        left_out: paths that are known to be missing from `names`; they are passed over.
    Raises:
        DataError: an image that isn't there, is listed twice or has another class.
    """
    row_of = {name: row for row, name in enumerate(names)}
    passed_over = set(left_out)
    chosen: dict[int, str] = {}
    missing = []
    for name, label in listed:
        inside = f"{folder}/{name}" if folder else name
        row = row_of.get(inside, row_of.get(name))
        if row is None:
            if not {name, inside} & passed_over:
                missing.append(name)
            continue
        if row in chosen:
            raise DataError(f"data.subset_list: '{name}' is listed twice. Delete one of the lines.")
        number = int(labels[row])
        if number >= 0 and label not in (str(number), class_names[number]):
            raise DataError(
                f"data.subset_list: '{name}' is listed with the class '{label}', but in this data set its class is "
                f"{number} ('{class_names[number]}'). Write that number or name; numbers count the sorted class "
                "folders from 0."
            )
        chosen[row] = name
    if missing:
        some = ", ".join(f"'{name}'" for name in missing[:_TOO_MANY_TO_NAME])
        raise DataError(
            f"data.subset_list: {len(missing)} of {len(listed)} listed images are not in the training split: {some}"
            f"{' ...' if len(missing) > _TOO_MANY_TO_NAME else ''}. Write paths relative to the train folder."
        )
    return np.array(sorted(chosen), dtype=np.int64)


def draw_train_and_test(
    total: int, train_size: int, test_size: int, seed: int = 42, fixed_test: bool = False
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " k"]]:
    """Rows of training and test images from one seeded permutation of all.

    The test rows follow the training rows, so other sizes of training give other test images; with `fixed_test` they
    are the permutation's last ones.

    Raises:
        DataError: more rows than there are.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (torch's `random_split`, seed 42).
    """
    if train_size + test_size > total:
        raise DataError(
            f"train_size and test_size: got {train_size} + {test_size}, but there are {total} images in all splits "
            "together. Write smaller numbers, or train_size=null test_size=null for the data's own splits."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    first = total - test_size if fixed_test else train_size
    return order[:train_size], order[first : first + test_size]

"""CIFAR-10 and CIFAR-100 in their binary form: plain bytes, so a copy from anywhere can be read safely.

    cifar-10-batches-bin/    data_batch_1.bin ... data_batch_5.bin   test_batch.bin   batches.meta.txt
    cifar-100-binary/        train.bin                               test.bin         fine_label_names.txt

A record is one label byte (CIFAR-100: two, the coarse and the fine label) and 3072 bytes: red, green, blue, row by row.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from halfseen.data.sources import ArraySource, Split
from halfseen.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


class CifarBinary(NamedTuple):
    """Where the binary form keeps things.

    Attributes:
        folder: as the archive unpacks.
        train, test: files of records.
        names: file with one class name a line.
        label_bytes: before the pixels; the last one is the label.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int


CIFAR_BINARIES = {
    "CIFAR10": CifarBinary(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        1,
    ),
    "CIFAR100": CifarBinary("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 2),
}


def open_cifar_binary(name: str, root: Path, split: Split) -> ArraySource:
    """A split of CIFAR10 or CIFAR100 whose binary form lies in `root`.

    Raises:
        DataError: a file is missing, is not made of whole records, or has a label without a name.
    """
    form = CIFAR_BINARIES[name]
    folder = root / form.folder
    files = [folder / each for each in (form.train if split == "train" else form.test)]
    try:
        class_names = [line.strip() for line in (folder / form.names).read_text("utf-8").splitlines() if line.strip()]
        contents = [np.fromfile(file, dtype=np.uint8) for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.source: 'torchvision:{name}' can't be read ({error}). Unpack the archive anew."
        ) from None
    length = form.label_bytes + PIXELS
    for file, content in zip(files, contents, strict=True):
        if not len(content) or len(content) % length:
            raise DataError(
                f"data.source: '{file}' has {len(content)} bytes, which is no whole number of records of {length}. "
                "Unpack the archive anew."
            )
    records = np.concatenate(contents).reshape(-1, length)
    labels = records[:, form.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(class_names):
        raise DataError(
            f"data.source: '{folder}' has the label {labels.max()}, but '{form.names}' names {len(class_names)} "
            "classes. Unpack the archive anew."
        )
    images = records[:, form.label_bytes :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return ArraySource(f"torchvision:{name}", np.ascontiguousarray(images), labels, class_names)

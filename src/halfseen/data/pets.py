"""Oxford-IIIT Pets as its authors' archives unpack: photographs, breeds, and a trimap for every photograph.

    images/Abyssinian_1.jpg   annotations/trainval.txt, test.txt   annotations/trimaps/Abyssinian_1.png

Only what the lists name is read, so that the stray files of the archives (.mat beside the photographs, ._* beside the
trimaps) play no part.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from halfseen.data.config import DataConfig
from halfseen.data.files import FileSource, leave_out
from halfseen.data.sources import Split
from halfseen.errors import DataError

PETS_FOLDER = "oxford-iiit-pet"
"""The folder's name in torchvision."""

MASK_NAMES = ("pet", "background", "border")
FIRST_MASK_VALUE = 1
_LISTS: dict[Split, str] = {"train": "trainval.txt", "test": "test.txt"}


def is_pets(root: Path) -> bool:
    """Whether the folder has the layout of Oxford-IIIT Pets."""
    trimaps = root / "annotations" / "trimaps"
    return trimaps.is_dir() and (root / "images").is_dir() and (has_split(root, "train") or has_split(root, "test"))


def has_split(root: Path, split: Split) -> bool:
    """Whether the list of that split is there."""
    return (root / "annotations" / _LISTS[split]).is_file()


def open_pets(
    root: Path, split: Split, settings: DataConfig, use_skip_list: bool = True, name: str | None = None
) -> FileSource:
    """The photographs of a split ("train" is trainval), with their breed as label and the trimap as mask.

    Args:
        root: the folder that holds `images` and `annotations`.
        name: of the source; None takes the folder's path.
    Raises:
        DataError: if the list isn't there, or has another form.
    Source: Cats and Dogs, Parkhi et al. 2012; a trimap's values are 1 pet, 2 background and 3 border.
    """
    if not has_split(root, split):
        raise DataError(
            f"data.source: '{root}' looks like Oxford-IIIT Pets, but '{root / 'annotations' / _LISTS[split]}' is not "
            f"there, so it has no split '{split}'. Unpack annotations.tar.gz whole."
        )
    entries = _read_list(root / "annotations" / _LISTS[split])
    breeds = _breeds(root)
    source = FileSource(
        name or str(root),
        root,
        [f"images/{entry.name}.jpg" for entry in entries],
        np.array([entry.label for entry in entries], dtype=np.int64),
        [breeds.get(label, f"class {label + 1}") for label in range(max(breeds) + 1)],
        settings.max_pixels,
        [f"annotations/trimaps/{entry.name}.png" for entry in entries],
        MASK_NAMES,
        FIRST_MASK_VALUE,
    )
    return leave_out(source, settings, root) if use_skip_list else source


class _Entry(NamedTuple):
    name: str
    label: int


def _breeds(root: Path) -> dict[int, str]:
    """Names of the breeds by label, as torchvision writes them; both lists together, so that splits agree."""
    entries = [
        entry
        for name in _LISTS.values()
        if (path := root / "annotations" / name).is_file()
        for entry in _read_list(path)
    ]
    words = {label: name.rpartition("_")[0] or name for name, label in entries}
    return {label: " ".join(part.title() for part in word.split("_")) for label, word in words.items()}


def _read_list(path: Path) -> list[_Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.source: '{path}' can't be read as text ({error}).") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 4 or not words[1].isdecimal() or not 0 < int(words[1]) <= 37 or "/" in words[0]:
            raise DataError(
                f"data.source: line {number} of '{path}' is '{line.strip()[:80]}', expected four words as in "
                "'Abyssinian_100 1 1 1': name, breed from 1 to 37, species and breed of the species."
            )
        entries.append(_Entry(words[0], int(words[1]) - 1))
    if not entries:
        raise DataError(f"data.source: '{path}' names no images. Unpack annotations.tar.gz anew.")
    return entries

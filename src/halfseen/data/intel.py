"""Intel Image Classification: six kinds of scenes, about 150 x 150 pixels, as Kaggle's archive or unpacked.

    seg_train/seg_train/forest/8.jpg   seg_test/seg_test/sea/20072.jpg   seg_pred/seg_pred/5.jpg

`intel:PATH` is the archive itself, which is never unpacked, or a folder that holds those three at its top or one level
deeper; the doubled folder names may be single. The pictures of seg_pred have no labels and play no part.
"""

import re
from pathlib import Path

import numpy as np

from halfseen.data.config import DataConfig
from halfseen.data.files import EXTENSIONS, FileSource, scan_folder
from halfseen.data.sources import Source, Split, did_you_mean
from halfseen.data.zips import Members, ZipSource, list_members
from halfseen.errors import DataError

CLASS_NAMES = ("buildings", "forest", "glacier", "mountain", "sea", "street")
_FOLDERS: dict[Split, str] = {"train": "seg_train", "test": "seg_test"}
_PLACE = re.compile(r"(?:[^/]+/)?(?P<split>seg_train|seg_test)/(?:(?P=split)/)?(?P<class>[^/]+)/[^/]+")


def open_intel(text: str, split: Split, settings: DataConfig) -> Source:
    """The photographs of a split with their classes, in the order of `CLASS_NAMES`.

    Args:
        text: path of the archive, or of the folder that it was unpacked into.
    Raises:
        DataError: nothing there, no such split, or a class folder of another name.
    """
    path = Path(text).expanduser()
    name = f"intel:{text}"
    if path.is_dir():
        names = scan_folder(path)
        rows, labels = _choose(names, split, name)
        chosen = [names[row] for row in rows]
        return FileSource(name, path, chosen, labels, CLASS_NAMES, settings.max_pixels)
    if not path.is_file():
        raise DataError(
            f"data.source: '{text}' does not exist. Give 'intel:' and the path of archive.zip (Kaggle's Intel Image "
            "Classification, which can't be downloaded without an account), or of the folder with seg_train in it."
        )
    members = list_members(path)
    rows, labels = _choose(members.names, split, name)
    chosen = [members.names[row] for row in rows]
    return ZipSource(name, path, Members(chosen, members.places[rows]), labels, CLASS_NAMES, settings.max_pixels)


def has_split(text: str, split: Split) -> bool:
    """Whether `intel:text` is there and has that split."""
    path = Path(text).expanduser()
    if not path.exists():
        return False
    names = scan_folder(path) if path.is_dir() else list_members(path).names
    return any((found := _PLACE.fullmatch(each)) is not None and found["split"] == _FOLDERS[split] for each in names)


def _choose(names: list[str], split: Split, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the split's images among all files, and their labels."""
    rows, labels = [], []
    for row, each in enumerate(names):
        found = _PLACE.fullmatch(each)
        if found is None or found["split"] != _FOLDERS[split] or Path(each).suffix.lower() not in EXTENSIONS:
            continue
        if found["class"] not in CLASS_NAMES:
            raise DataError(
                f"data.source: '{source}' has the class folder '{found['class']}', expected one of "
                f"{', '.join(CLASS_NAMES)}.{did_you_mean(found['class'], CLASS_NAMES)} For folders of other "
                "classes give the path without 'intel:'."
            )
        rows.append(row)
        labels.append(CLASS_NAMES.index(found["class"]))
    if not rows:
        raise DataError(
            f"data.source: '{source}' has no images in {_FOLDERS[split]}/CLASS or {_FOLDERS[split]}/{_FOLDERS[split]}"
            f"/CLASS, at its top or one folder deeper, so it has no split '{split}'."
        )
    return np.array(rows, dtype=np.int64), np.array(labels, dtype=np.int64)

"""Where images come from: folders, manifests, torchvision's data sets and bundled ones, behind one small interface.

`open_source` turns what a user writes into a `Source`: a fixed, ordered set of images that is read by index. Sources
hold no random state and no open files, so loader workers can share or copy them.
"""

import difflib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int, UInt8

from halfseen.data.config import DataConfig
from halfseen.data.decode import BadImage
from halfseen.data.subsets import (
    draw_rows,
    first_of_each_class,
    read_subset_list,
    rows_of_list,
    share_of,
    share_of_each_class,
)
from halfseen.errors import DataError
from halfseen.ops.segmentation import IGNORED

__all__ = [
    "IGNORED",
    "ArraySource",
    "BadImage",
    "JoinedSource",
    "LeftOut",
    "Source",
    "Split",
    "has_split",
    "open_source",
]

Split = Literal["train", "test"]
MASKS_GO_WHERE = (
    "Put masks into a folder `masks` beside the folder `images`, under the same names as the images, or name them in "
    "the column `mask` of a manifest."
)
SCHEMES = ("bundled", "torchvision", "intel")


class LeftOut(NamedTuple):
    """A file that is not part of a source although it looks like an image, and why."""

    path: str
    reason: str


class Source(ABC):
    """A fixed, ordered set of images.

    Attributes:
        name: what the user wrote, for messages.
        class_names: names of the classes, in the order of their labels; empty where there are none.
        labels: int64 [n], class of each image or -1 where it has none.
        left_out: files known to be bad (a skip list) or unreachable, which have no index here.
        is_sound: no image can be bad, because none comes from a file when it is read.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    left_out: tuple[LeftOut, ...] = ()
    is_sound: bool = False

    @property
    def has_masks(self) -> bool:
        """Whether images have a class for each pixel."""
        return False

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the classes of pixels, in the order of their labels; empty where there are no masks.

        Raises:
            DataError: where the classes have to be found in the masks, and one of these can't be used.
        """
        return ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def path(self, index: int) -> str:
        """Where the image comes from, for messages and lists."""

    @abstractmethod
    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The image: uint8 [H, W, 3], RGB, upright.

        Args:
            index: position in this source.
            shrink_to: the decoder may shrink the picture while it decodes (JPEG), as long as the shorter side stays
                at least this many pixels; None decodes at full size.
        Raises:
            BadImage: if there is no picture to be had from it.
        """

    def shorter_side(self, index: int) -> int:
        """Pixels along the picture's shorter side; a file's header tells it without decoding.

        Raises:
            BadImage: if it can't be told.
        """
        return int(min(self.read(index).shape[:2]))

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """Class of each pixel: uint8 [H, W], labels in the order of `mask_names`, `IGNORED` where there is none.

        Raises:
            DataError: if there is no mask, or one that can't be used.
        """
        raise DataError(f"'{self.path(index)}' has no mask: '{self.name}' has no masks at all. {MASKS_GO_WHERE}")

    def read_with_mask(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """`read` at full size and `mask`, which have the same height and width.

        Raises:
            BadImage: as `read`.
            DataError: as `mask`, or sizes that differ.
        """
        image, mask = self.read(index), self.mask(index)
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"'{self.path(index)}' has {image.shape[1]} x {image.shape[0]} pixels, but its mask "
                f"{mask.shape[1]} x {mask.shape[0]}. Give each image a mask of its own size."
            )
        return image, mask

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hex, of names, sizes and labels: two runs with the same fingerprint saw the same data."""

    def drawn_from(self) -> tuple["Source", ...]:
        """The sources that its images were chosen from, if they were; nearest first."""
        return ()

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """The images at `indices`, in that order."""
        return SubsetSource(self, np.asarray(indices, dtype=np.int64))


class SubsetSource(Source):
    """Some of another source's images."""

    whole: Source
    indices: Int[np.ndarray, " n"]

    def __init__(self, whole: Source, indices: Int[np.ndarray, " n"]) -> None:
        if isinstance(whole, SubsetSource):
            indices = whole.indices[indices]
            whole = whole.whole
        self.whole, self.indices = whole, indices
        self.name, self.class_names, self.left_out = whole.name, whole.class_names, whole.left_out
        self.labels, self.is_sound = whole.labels[indices], whole.is_sound

    def path(self, index: int) -> str:
        return self.whole.path(int(self.indices[index]))

    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        return self.whole.read(int(self.indices[index]), shrink_to)

    def shorter_side(self, index: int) -> int:
        return self.whole.shorter_side(int(self.indices[index]))

    @property
    def has_masks(self) -> bool:
        return self.whole.has_masks

    @property
    def mask_names(self) -> tuple[str, ...]:
        return self.whole.mask_names

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        return self.whole.mask(int(self.indices[index]))

    def read_with_mask(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        return self.whole.read_with_mask(int(self.indices[index]))

    def drawn_from(self) -> tuple[Source, ...]:
        return (self.whole, *self.whole.drawn_from())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.whole.fingerprint().encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()


class JoinedSource(Source):
    """The images of one source, then those of another: two splits from which others are drawn.

    Args:
        name: for messages.
        first, second: class names that differ cost the labels; of names of pixels' classes one must begin the other.
    Raises:
        DataError: masks in one of them only, or other classes of pixels.
    """

    def __init__(self, name: str, first: Source, second: Source) -> None:
        self.name, self.first, self.second = name, first, second
        same = first.class_names == second.class_names
        self.class_names = first.class_names if same else ()
        labels = np.concatenate([first.labels, second.labels])
        self.labels = labels if same else np.full_like(labels, -1)
        self.left_out = (*first.left_out, *second.left_out)
        self.is_sound = first.is_sound and second.is_sound
        names, others = first.mask_names, second.mask_names
        shared = min(len(names), len(others))
        if first.has_masks != second.has_masks or names[:shared] != others[:shared]:
            raise DataError(
                f"'{first.name}' has the classes of pixels {', '.join(names) or 'none'}, but '{second.name}' "
                f"{', '.join(others) or 'none'}. Give both the same, in the same order."
            )
        self._mask_names = max(names, others, key=len)

    def _place(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        return (self.first, index) if index < len(self.first) else (self.second, index - len(self.first))

    def path(self, index: int) -> str:
        source, row = self._place(index)
        return source.path(row)

    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        source, row = self._place(index)
        return source.read(row, shrink_to)

    def shorter_side(self, index: int) -> int:
        source, row = self._place(index)
        return source.shorter_side(row)

    @property
    def has_masks(self) -> bool:
        return self.first.has_masks

    @property
    def mask_names(self) -> tuple[str, ...]:
        return self._mask_names

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        source, row = self._place(index)
        return source.mask(row)

    def read_with_mask(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        source, row = self._place(index)
        return source.read_with_mask(row)

    def drawn_from(self) -> tuple[Source, ...]:
        return (self.first, self.second, *self.first.drawn_from(), *self.second.drawn_from())

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.first.fingerprint()}+{self.second.fingerprint()}".encode()).hexdigest()


class ArraySource(Source):
    """Images held in memory, all of one size.

    Args:
        name: for messages.
        images: uint8 [n, H, W] grey or [n, H, W, 3].
        labels: int64 [n], or -1 where there is none.
        class_names: in the order of the labels.
    """

    is_sound = True

    def __init__(
        self,
        name: str,
        images: UInt8[np.ndarray, "n H W"] | UInt8[np.ndarray, "n H W 3"],
        labels: Int[np.ndarray, " n"],
        class_names: Sequence[str],
    ) -> None:
        self.name, self.images, self.class_names = name, images, tuple(class_names)
        self.labels = labels.astype(np.int64)

    def path(self, index: int) -> str:
        return f"{self.name}#{index}"

    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        image = self.images[index]
        return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image.copy()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def open_source(
    source: str, split: Split = "train", *, config: DataConfig | None = None, use_skip_list: bool = True
) -> Source:
    """The images that `source` names.

    Args:
        source: a folder, a manifest (.csv or .parquet), 'bundled:NAME', 'torchvision:NAME' or 'intel:PATH'.
        split: which part of it; what has no parts is all 'train'.
        config: the run's settings of the data; its subset is one of the training split.
        use_skip_list: leave out the files on the skip list; False is for the doctor, who looks at all.
    Raises:
        DataError: if there is nothing there, or not that split; the message says what to mend.
    """
    if split not in get_args(Split):
        raise DataError(f"split: unknown '{split}'. Known: {', '.join(get_args(Split))}.")
    settings = config if config is not None and config.source == source else _settings_for_other(source, config)
    opened = _open(source, split, settings, use_skip_list)
    rows = _chosen_rows(opened, settings) if split == "train" else None
    return opened if rows is None else opened.subset(rows)


def _chosen_rows(opened: Source, settings: DataConfig) -> Int[np.ndarray, " m"] | None:
    """The rows of the subset that the settings ask for, ascending; None for all."""
    if settings.subset_size is not None:
        if settings.subset_size > len(opened):
            raise DataError(
                f"data.subset_size: got {settings.subset_size}, but '{settings.source}' has {len(opened)} images. "
                "Write a smaller number, or null for all."
            )
        return draw_rows(len(opened), settings.subset_size, settings.subset_seed)
    if settings.subset_fraction is not None:
        count = int(share_of(np.array(len(opened)), settings.subset_fraction, settings.subset_rounding))
        if not count:
            raise DataError(
                f"data.subset_fraction: got {settings.subset_fraction}, which leaves none of the {len(opened)} images "
                f"of '{settings.source}'. Write a larger share."
            )
        return draw_rows(len(opened), count, settings.subset_seed)
    if settings.subset_list is not None:
        return _listed_rows(opened, settings.subset_list)
    if settings.subset_per_class is not None:
        key = f"data.subset_per_class: got {settings.subset_per_class}"
        rows = first_of_each_class(_labels_for(key, opened), settings.subset_per_class, _file_names(opened))
    elif settings.subset_fraction_per_class is not None:
        key = f"data.subset_fraction_per_class: got {settings.subset_fraction_per_class}"
        rows = share_of_each_class(
            _labels_for(key, opened),
            settings.subset_fraction_per_class,
            settings.subset_rounding,
            _file_names(opened),
        )
    else:
        return None
    if not len(rows):
        raise DataError(f"{key}, which leaves no image of any class. Write a larger share.")
    return rows


def _labels_for(key: str, opened: Source) -> Int[np.ndarray, " n"]:
    if (opened.labels < 0).all():
        raise DataError(f"{key}, but '{opened.name}' has no classes. Use subset_size or subset_list.")
    return opened.labels


def _file_names(opened: Source) -> list[str] | None:
    """Paths of files; images in memory have an order, but no names."""
    from halfseen.data.files import FileSource

    return [opened.relative_path(row) for row in range(len(opened))] if isinstance(opened, FileSource) else None


def _listed_rows(opened: Source, subset_list: str) -> Int[np.ndarray, " m"]:
    from halfseen.data.files import FileSource, find_place

    if not isinstance(opened, FileSource):
        raise DataError(
            f"data.subset_list: got '{subset_list}', but the images of '{opened.name}' are not files with names. Use "
            "subset_per_class or subset_size."
        )
    names = [opened.relative_path(row) for row in range(len(opened))]
    place = find_place(opened.base, "train")
    folder = "" if place is None else place.images
    left_out = [os.path.relpath(entry.path, opened.base) for entry in opened.left_out]
    return rows_of_list(read_subset_list(subset_list), names, opened.labels, opened.class_names, folder, left_out)


def has_split(source: str, split: Split) -> bool:
    """Whether `open_source(source, split)` would find such a split. Sources that don't exist have none."""
    from halfseen.data import files, intel, pets, torchvision_sets

    scheme, name = _parse_scheme(source)
    if scheme == "bundled":
        return True
    if scheme == "torchvision":
        return torchvision_sets.has_split(name, split)
    if scheme == "intel":
        return intel.has_split(name, split)
    path = Path(source).expanduser()
    if path.is_dir():
        return pets.has_split(path, split) if pets.is_pets(path) else files.find_place(path, split) is not None
    return path.is_file() and files.manifest_has_split(path, split)


def _settings_for_other(source: str, config: DataConfig | None) -> DataConfig:
    """Settings for data that is not the run's own: its subset, skip list and folders don't concern it."""
    if config is None:
        return DataConfig(source=source)
    return DataConfig(
        source=source,
        image_size=config.image_size,
        max_pixels=config.max_pixels,
        max_bad_fraction=config.max_bad_fraction,
        precheck=config.precheck,
    )


def _open(source: str, split: Split, settings: DataConfig, use_skip_list: bool) -> Source:
    from halfseen.data import files, intel, pets, torchvision_sets

    scheme, name = _parse_scheme(source)
    if scheme is not None and settings.skip_list is not None:
        raise DataError(
            f"data.skip_list: got '{settings.skip_list}', but it has an effect for folders and manifests only, not for "
            f"'{source}'. Leave it out."
        )
    if scheme == "bundled":
        return _open_bundled(name, split, settings)
    if scheme == "torchvision":
        return torchvision_sets.open_torchvision(name, split, settings)
    if scheme == "intel":
        return intel.open_intel(name, split, settings)
    path = Path(source).expanduser()
    if path.is_dir() and pets.is_pets(path):
        return pets.open_pets(path, split, settings, use_skip_list)
    if path.is_dir():
        return files.open_folder(path, split, settings, use_skip_list)
    if path.is_file():
        return files.open_manifest(path, split, settings, use_skip_list)
    raise DataError(
        f"data.source: '{source}' does not exist.{_suggest_sibling(path)} Give a folder of images, a manifest (.csv or "
        ".parquet), 'bundled:fashion', 'bundled:fashion-scenes', 'torchvision:NAME' or 'intel:PATH'."
    )


def _open_bundled(name: str, split: Split, settings: DataConfig) -> Source:
    from halfseen.data import bundled, scenes

    if name == "fashion":
        return bundled.open_fashion(split)
    if name == "fashion-scenes":
        return scenes.open_scenes(split, settings.scene_size or min(max(settings.image_size, 32), 224))
    known = ("fashion", "fashion-scenes")
    raise DataError(f"data.source: unknown 'bundled:{name}'. Known: {', '.join(known)}.{did_you_mean(name, known)}")


def _parse_scheme(source: str) -> tuple[str | None, str]:
    """('bundled', 'fashion') for 'bundled:fashion'; (None, source) for a path."""
    scheme, colon, name = source.partition(":")
    if scheme in SCHEMES and colon:
        return scheme, name
    # A single letter is a Windows drive, and an existing file may well have a colon in its name.
    if not colon or len(scheme) < 2 or "/" in scheme or Path(source).expanduser().exists():
        return None, source
    raise DataError(
        f"data.source: unknown kind '{scheme}:' in '{source}'. Known: {', '.join(f'{known}:' for known in SCHEMES)} "
        f"and paths.{did_you_mean(scheme, SCHEMES)}"
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """' Did you mean ...?' if something known is close to the word, else nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def _suggest_sibling(path: Path) -> str:
    try:
        siblings = [entry.name for entry in path.absolute().parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path.name, siblings)

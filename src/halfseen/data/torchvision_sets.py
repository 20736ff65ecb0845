"""torchvision's data sets as sources. Naming one is the request to download it; nothing else ever reaches the network.

torchvision knows where the files are; the pictures are decoded by our own decoder, or held in memory where the data
set is one array.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from jaxtyping import Int

from halfseen.data.config import DataConfig
from halfseen.data.files import FileSource, open_folder
from halfseen.data.pets import PETS_FOLDER, open_pets
from halfseen.data.sources import ArraySource, Source, Split, did_you_mean
from halfseen.errors import DataError


class TorchvisionSet(Protocol):
    """What all of torchvision's data sets share; where pictures and labels are kept differs and is looked up."""

    def __len__(self) -> int: ...


class _Entry(NamedTuple):
    """How to ask torchvision for the two splits; `test` is None where there is no such split."""

    class_name: str
    train: Mapping[str, object]
    test: Mapping[str, object] | None


_FLAG = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})
_SETS: dict[str, _Entry] = {
    "CIFAR10": _Entry("CIFAR10", *_FLAG),
    "CIFAR100": _Entry("CIFAR100", *_FLAG),
    "Country211": _Entry("Country211", *_SPLIT),
    "DTD": _Entry("DTD", *_SPLIT),
    "EuroSAT": _Entry("EuroSAT", {}, None),
    "FGVCAircraft": _Entry("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    "FashionMNIST": _Entry("FashionMNIST", *_FLAG),
    "Flowers102": _Entry("Flowers102", *_SPLIT),
    "Food101": _Entry("Food101", *_SPLIT),
    "Imagenette": _Entry("Imagenette", {"split": "train"}, {"split": "val"}),
    "Imagenette160": _Entry("Imagenette", {"split": "train", "size": "160px"}, {"split": "val", "size": "160px"}),
    "Imagenette320": _Entry("Imagenette", {"split": "train", "size": "320px"}, {"split": "val", "size": "320px"}),
    "KMNIST": _Entry("KMNIST", *_FLAG),
    "MNIST": _Entry("MNIST", *_FLAG),
    "OxfordIIITPet": _Entry("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "Places365": _Entry("Places365", {"split": "train-standard", "small": True}, {"split": "val", "small": True}),
    # The 100,000 unlabelled pictures are what this set is for; they carry the label -1.
    "STL10": _Entry("STL10", {"split": "train+unlabeled"}, {"split": "test"}),
    "SVHN": _Entry("SVHN", *_SPLIT),
    "USPS": _Entry("USPS", *_FLAG),
}
KNOWN = (*sorted([*_SETS, "ImageNet"]),)


def has_split(name: str, split: Split) -> bool:
    """Whether torchvision:name is known and has that split."""
    return name == "ImageNet" or (name in _SETS and (split == "train" or _SETS[name].test is not None))


def open_torchvision(name: str, split: Split, settings: DataConfig) -> Source:
    """The source 'torchvision:name', downloaded if it isn't there yet.

    Raises:
        DataError: if the name is unknown, has no such split, or can't be had.
    """
    if name not in KNOWN:
        raise DataError(
            f"data.source: unknown 'torchvision:{name}'. Known: {', '.join(KNOWN)}.{did_you_mean(name, KNOWN)}"
        )
    root = Path(settings.root_dir or os.environ.get("HALFSEEN_DATA") or "~/.cache/halfseen").expanduser()
    if name == "ImageNet":
        return _open_imagenet(root, split, settings)
    entry = _SETS[name]
    arguments = entry.train if split == "train" else entry.test
    if arguments is None:
        raise DataError(
            f"data.source: 'torchvision:{name}' has no split '{split}'. Draw one into a manifest with `split`."
        )
    dataset = _build(name, entry.class_name, root, arguments)
    if name == "OxfordIIITPet":
        return open_pets(root / PETS_FOLDER, split, settings, name=f"torchvision:{name}")
    return adapt(f"torchvision:{name}", dataset, settings.max_pixels)


def adapt(name: str, dataset: TorchvisionSet, max_pixels: int) -> Source:
    """A torchvision data set as a source: arrays stay in memory, files are decoded by us."""
    labels, class_names = _labels_of(dataset), _class_names_of(dataset)
    data = getattr(dataset, "data", None)
    if data is not None:
        images = np.asarray(data)
        if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
            images = images.transpose(0, 2, 3, 1)  # [n, 3, H, W] -> [n, H, W, 3]
        return ArraySource(name, np.ascontiguousarray(images), labels, class_names)
    return FileSource(name, Path(), _paths_of(dataset), labels, class_names, max_pixels)


def _build(name: str, class_name: str, root: Path, arguments: Mapping[str, object]) -> TorchvisionSet:
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, class_name)
    try:
        return cast(TorchvisionSet, dataset_class(str(root), **arguments))
    except (RuntimeError, OSError):  # not there yet
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(root / f".{class_name}.lock"):
            return cast(TorchvisionSet, dataset_class(str(root), download=True, **arguments))
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"data.source: 'torchvision:{name}' is not in '{root}' and could not be downloaded ({text}). Check the "
            "network, or put torchvision's files there; data.root_dir or the environment variable HALFSEEN_DATA names "
            "another folder."
        ) from None


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Several processes of one run must not unpack into the same folder at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_imagenet(root: Path, split: Split, settings: DataConfig) -> Source:
    place = next((root / name for name in ("imagenet", "ImageNet", "ILSVRC2012") if (root / name).is_dir()), None)
    if place is None:
        raise DataError(
            f"data.source: 'torchvision:ImageNet' is not in '{root}' and may not be downloaded freely. Put the class "
            f"folders into '{root / 'imagenet'}/train' and /val, or give their folder as the source."
        )
    return open_folder(place, split, settings)


def _labels_of(dataset: TorchvisionSet) -> Int[np.ndarray, " n"]:
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return np.asarray(values).astype(np.int64)
    samples = _samples_of(dataset)
    return np.array([label for _, label in samples], dtype=np.int64)


def _class_names_of(dataset: TorchvisionSet) -> list[str]:
    names = getattr(dataset, "classes", None)
    if names is None:
        return [str(number) for number in range(int(_labels_of(dataset).max(initial=-1)) + 1)]
    return [name if isinstance(name, str) else name[0] for name in names]


def _paths_of(dataset: TorchvisionSet) -> list[str]:
    for attribute in ("_image_files", "_images"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return [str(Path(path).absolute()) for path in values]
    return [str(Path(path).absolute()) for path, _ in _samples_of(dataset)]


def _samples_of(dataset: TorchvisionSet) -> list[tuple[str, int]]:
    for attribute in ("samples", "_samples", "imgs"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return list(values)
    raise TypeError(f"{type(dataset).__name__} keeps its files in a way that is not known here")

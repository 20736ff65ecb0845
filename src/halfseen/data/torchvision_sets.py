"""torchvision's data sets as sources. Naming one is the request to download it; nothing else ever reaches the network.

torchvision knows where the files are; the pictures are decoded by our own decoder, or held in memory where the data
set is one array.

CIFAR's published files are pickles, which run code when they are read. torchvision reads one only if its checksum is
that of the published file, so nobody else's pickle is ever opened; copies of other origin can be given in CIFAR's
binary form, which is plain bytes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, cast

import numpy as np
from jaxtyping import Int

from halfseen.data.cifar_binary import CIFAR_BINARIES, open_cifar_binary
from halfseen.data.config import DataConfig
from halfseen.data.files import FileSource, open_folder
from halfseen.data.pets import PETS_FOLDER, open_pets
from halfseen.data.sources import ArraySource, Source, Split, did_you_mean
from halfseen.errors import DataError


class TorchvisionSet(Protocol):
    """What all of torchvision's data sets share; where pictures and labels are kept differs and is looked up."""

    def __len__(self) -> int: ...


class _Entry(NamedTuple):
    """How to ask torchvision for the two splits.

    Attributes:
        class_name: in torchvision.datasets.
        train, test: arguments for each split; `test` is None where there is no such split.
        gigabytes: of the download of a split, where it isn't small.
        files: what torchvision looks for in the root folder.
    """

    class_name: str
    train: Mapping[str, object]
    test: Mapping[str, object] | None
    gigabytes: int | None = None
    files: str | None = None


_FLAG = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})
_PLACES_FILES = "categories_places365.txt, places365_train_standard.txt, places365_val.txt, and the folders"
_SETS: dict[str, _Entry] = {
    "CIFAR10": _Entry("CIFAR10", *_FLAG, files="cifar-10-batches-py/ or cifar-10-batches-bin/"),
    "CIFAR100": _Entry("CIFAR100", *_FLAG, files="cifar-100-python/ or cifar-100-binary/"),
    "Country211": _Entry("Country211", *_SPLIT),
    "DTD": _Entry("DTD", *_SPLIT),
    "EuroSAT": _Entry("EuroSAT", {}, None),
    "FGVCAircraft": _Entry("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    "FashionMNIST": _Entry("FashionMNIST", *_FLAG),
    "Flowers102": _Entry("Flowers102", *_SPLIT, files="flowers-102/ with jpg/, imagelabels.mat and setid.mat"),
    "Food101": _Entry("Food101", *_SPLIT),
    # 2021_valid is the held-out part whose labels are public; KAMIM trains and measures on these two.
    "INaturalist": _Entry(
        "INaturalist",
        {"version": "2021_train"},
        {"version": "2021_valid"},
        gigabytes=224,
        files="2021_train/ and 2021_valid/ with the 10,000 folders of species (00000_Animalia_...)",
    ),
    "INaturalistMini": _Entry(
        "INaturalist",
        {"version": "2021_train_mini"},
        {"version": "2021_valid"},
        gigabytes=42,
        files="2021_train_mini/ and 2021_valid/ with the 10,000 folders of species (00000_Animalia_...)",
    ),
    "Imagenette": _Entry("Imagenette", {"split": "train"}, {"split": "val"}, files="imagenette2/ with train/ and val/"),
    "Imagenette160": _Entry(
        "Imagenette",
        {"split": "train", "size": "160px"},
        {"split": "val", "size": "160px"},
        files="imagenette2-160/ with train/ and val/",
    ),
    "Imagenette320": _Entry(
        "Imagenette",
        {"split": "train", "size": "320px"},
        {"split": "val", "size": "320px"},
        files="imagenette2-320/ with train/ and val/",
    ),
    "KMNIST": _Entry("KMNIST", *_FLAG),
    "MNIST": _Entry("MNIST", *_FLAG),
    "OxfordIIITPet": _Entry(
        "OxfordIIITPet",
        {"split": "trainval"},
        {"split": "test"},
        files="oxford-iiit-pet/ with images/ and annotations/",
    ),
    "Places365": _Entry(
        "Places365",
        {"split": "train-standard", "small": True},
        {"split": "val", "small": True},
        gigabytes=24,
        files=f"{_PLACES_FILES} data_256_standard/ and val_256/",
    ),
    "Places365Large": _Entry(
        "Places365",
        {"split": "train-standard"},
        {"split": "val"},
        gigabytes=105,
        files=f"{_PLACES_FILES} data_large_standard/ and val_large/",
    ),
    # The 100,000 unlabelled pictures are what this set is for; they carry the label -1.
    "STL10": _Entry("STL10", {"split": "train+unlabeled"}, {"split": "test"}, files="stl10_binary/"),
    "SVHN": _Entry("SVHN", *_SPLIT),
    "USPS": _Entry("USPS", *_FLAG),
}
OTHER_FOLDER = "data.root_dir or the environment variable HALFSEEN_DATA names another folder."
IMAGENET_FOLDERS = ("imagenet", "ImageNet", "ILSVRC2012")
IMAGENET_ARCHIVE = "ILSVRC2012_img_train.tar"
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
    if name in CIFAR_BINARIES and (root / CIFAR_BINARIES[name].folder).is_dir():
        return open_cifar_binary(name, root, split)
    dataset = _build(name, entry, root, arguments, settings.download)
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


def _build(
    name: str, entry: _Entry, root: Path, arguments: Mapping[str, object], download: Literal["small", "always", "never"]
) -> TorchvisionSet:
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, entry.class_name)
    wanted = f" Put there: {entry.files}." if entry.files is not None else " Put torchvision's files there."
    try:
        dataset = cast(TorchvisionSet, dataset_class(str(root), **arguments))
        _check_there(dataset)
    except (RuntimeError, OSError):  # not there yet
        pass
    else:
        return dataset
    if download == "never":
        raise DataError(
            f"data.source: 'torchvision:{name}' is not in '{root}', and data.download=never keeps it from being "
            f"fetched.{wanted} {OTHER_FOLDER}"
        )
    if entry.gigabytes is not None and download == "small":
        raise DataError(
            f"data.source: 'torchvision:{name}' is not in '{root}', and is not fetched unasked: its training images "
            f"are {entry.gigabytes} GB packed.{wanted} Or set data.download=always. {OTHER_FOLDER}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(root / f".{entry.class_name}.lock"):
            dataset = cast(TorchvisionSet, dataset_class(str(root), download=True, **arguments))
        _check_there(dataset)
        return dataset
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"data.source: 'torchvision:{name}' is not in '{root}' and could not be downloaded ({text}). Check the "
            f"network.{wanted} {OTHER_FOLDER}"
        ) from None


def _check_there(dataset: TorchvisionSet) -> None:
    """Some sets are content with their lists where the pictures are missing.

    Raises:
        FileNotFoundError: the first picture is not there.
    """
    if getattr(dataset, "data", None) is None and not Path(path := _paths_of(dataset)[0]).exists():
        raise FileNotFoundError(f"there is no '{path}'")


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
    """ImageNet-1K as class folders, all of it or the validation part alone.

    Raises:
        DataError: not there; the message says how the archives become class folders.
    """
    places = [root / name for name in IMAGENET_FOLDERS]
    place = next((each for each in places if (each / "train").is_dir() or (each / "val").is_dir()), None)
    if place is not None and (place / "train").is_dir():
        return open_folder(place, split, settings)
    if place is not None and split == "test":
        return open_folder(place / "val", "train", settings)
    found = next(
        (str(each / IMAGENET_ARCHIVE) for each in (*places, root) if (each / IMAGENET_ARCHIVE).is_file()), None
    )
    archive = IMAGENET_ARCHIVE if found is None else found
    part = "train" if split == "train" else "train or val"
    raise DataError(
        f"data.source: 'torchvision:ImageNet' has no class folders {part} in '{places[0]}', and may not be downloaded "
        f"freely. `halfseen data arrange-imagenet --train-tar {archive} ... --dst {places[0]}` makes them of the three "
        "published archives; or give the folder that holds train/ and val/ as the source."
    )


def _labels_of(dataset: TorchvisionSet) -> Int[np.ndarray, " n"]:
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return np.asarray(values).astype(np.int64)
    samples = _samples_of(dataset)
    return np.array([label for _, label in samples], dtype=np.int64)


def _class_names_of(dataset: TorchvisionSet) -> list[str]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "all_categories", None)
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
    index, folders = getattr(dataset, "index", None), getattr(dataset, "all_categories", None)
    if index is not None and folders is not None:  # iNaturalist, in the order in which the disk lists its files
        root = Path(str(getattr(dataset, "root", "")))
        return [(str(root / folders[label] / file), label) for label, file in sorted(index)]
    raise TypeError(f"{type(dataset).__name__} keeps its files in a way that is not known here")

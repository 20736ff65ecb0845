"""Every data set that is known by name, on a tiny tree in its published form: the real readers, files made here.

torchvision checks the md5 of some files. Those it then expects are the ones of our files; nothing else is changed.
"""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from pydantic import ValidationError
from scipy.io import savemat

from halfseen.data.config import DataConfig
from halfseen.data.decode import BadImage
from halfseen.data.sources import Source, has_split, open_source
from halfseen.errors import DataError
from imagenet_kit import image_name, tar_of, write_devkit, write_labels, write_meta
from odd_images import encode, picture


def draw(path: Path, seed: int = 0) -> bytes:
    """Write a small picture in the format that the file's ending promises."""
    content = photograph(seed, "PNG" if path.suffix == ".png" else "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def photograph(seed: int = 0, form: str = "JPEG") -> bytes:
    return encode(Image.fromarray(picture(20, 24, seed)), form)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def opened(name: str, root: Path, split: str = "train", **changes: object) -> Source:
    config = DataConfig.model_validate({"source": name, "root_dir": str(root), "download": "never"} | changes)
    return open_source(name, split, config=config)


def names_of(source: Source) -> list[str | None]:
    return [source.class_names[label] if label >= 0 else None for label in source.labels]


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, fine: bool) -> dict[str, np.ndarray]:
    """The python version: pickled dicts of rows [n, 3072], red first; returns the pictures of each split."""
    set_class = torchvision.datasets.CIFAR100 if fine else torchvision.datasets.CIFAR10
    folder = root / set_class.base_folder
    folder.mkdir(parents=True)
    drawing = np.random.default_rng(0)
    key = "fine_labels" if fine else "labels"
    splits = {}
    for attribute in ("train_list", "test_list"):
        listed, pictures = [], []
        for file, _ in getattr(set_class, attribute):
            pixels = drawing.integers(0, 256, size=(2, 32, 32, 3), dtype=np.uint8)
            entry = {"data": pixels.transpose(0, 3, 1, 2).reshape(2, -1), key: [3, 1], "filenames": ["a.png", "b.png"]}
            (folder / file).write_bytes(pickle.dumps(entry, protocol=2))
            listed.append([file, md5(folder / file)])
            pictures.append(pixels)
        splits[attribute] = np.concatenate(pictures)
        monkeypatch.setattr(set_class, attribute, listed)
    names = {set_class.meta["key"]: [f"kind {number}" for number in range(100 if fine else 10)]}
    meta = folder / set_class.meta["filename"]
    meta.write_bytes(pickle.dumps(names, protocol=2))
    monkeypatch.setattr(set_class, "meta", set_class.meta | {"md5": md5(meta)})
    return splits


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_in_its_python_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pixels = write_cifar(tmp_path, monkeypatch, name == "CIFAR100")
    train, test = (opened(f"torchvision:{name}", tmp_path, split) for split in ("train", "test"))
    assert len(train) == len(pixels["train_list"])
    assert names_of(test) == ["kind 3", "kind 1"]
    assert np.array_equal(train.read(1), pixels["train_list"][1])
    assert np.array_equal(test.read(0), pixels["test_list"][0])


class Boom:
    """What a stranger could put into a pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.mark,))


def test_a_pickle_of_other_origin_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, fine=False)
    mark = tmp_path / "ran"
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps(Boom(mark)))
    with pytest.raises(DataError, match=r"is not in .* cifar-10-batches-py/ or cifar-10-batches-bin/"):
        opened("torchvision:CIFAR10", tmp_path)
    assert not mark.exists()
    pickle.loads(batch.read_bytes())
    assert mark.exists()  # so it would have run


@pytest.mark.parametrize(("name", "folder", "prefix"), [
    ("CIFAR10", "cifar-10-batches-bin", ()), ("CIFAR100", "cifar-100-binary", (7,)),
])  # fmt: skip
def test_cifar_in_its_binary_form(tmp_path: Path, name: str, folder: str, prefix: Sequence[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)
    labels = [3, 0, 9]
    records = b"".join(
        bytes([*prefix, label]) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip(labels, pixels, strict=True)
    )  # fmt: skip
    place = tmp_path / folder
    place.mkdir()
    train = [f"data_batch_{number}.bin" for number in range(1, 6)] if name == "CIFAR10" else ["train.bin"]
    for file in (*train, "test_batch.bin" if name == "CIFAR10" else "test.bin"):
        (place / file).write_bytes(records)
    listed = place / ("batches.meta.txt" if name == "CIFAR10" else "fine_label_names.txt")
    listed.write_text("".join(f"kind {number}\n" for number in range(10)) + "\n")
    source, test = (opened(f"torchvision:{name}", tmp_path, split) for split in ("train", "test"))
    assert (len(source), len(test)) == (3 * len(train), 3)
    assert names_of(test) == ["kind 3", "kind 0", "kind 9"]
    assert np.array_equal(test.read(2), pixels[2])
    (place / train[0]).write_bytes(records[:-1])
    with pytest.raises(DataError, match="no whole number of records"):
        opened(f"torchvision:{name}", tmp_path)
    (place / train[0]).write_bytes(records)
    listed.write_text("kind 0\n")
    with pytest.raises(DataError, match="has the label 9"):
        opened(f"torchvision:{name}", tmp_path)
    listed.unlink()
    with pytest.raises(DataError, match="can't be read"):
        opened(f"torchvision:{name}", tmp_path)


def test_flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "flowers-102"
    contents = {number: draw(folder / "jpg" / f"image_{number:05d}.jpg", number) for number in range(1, 7)}
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 2, 1, 102, 5]], dtype=np.uint8)})
    ids = {"trnid": [[2, 5]], "valid": [[1, 3]], "tstid": [[6, 4]]}
    savemat(folder / "setid.mat", {key: np.array(value, dtype=np.uint16) for key, value in ids.items()})
    files = torchvision.datasets.Flowers102._file_dict
    known = {
        key: (file, md5(folder / file) if (folder / file).is_file() else checksum)
        for key, (file, checksum) in files.items()
    }
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", known)
    train, test = (opened("torchvision:Flowers102", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 101]
    assert test.labels.tolist() == [4, 0]
    assert (train.class_names[0], len(train.class_names)) == ("pink primrose", 102)
    assert np.array_equal(train.read(1), np.asarray(Image.open(io.BytesIO(contents[5]))))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("Imagenette", "imagenette2"), ("Imagenette320", "imagenette2-320"), ("Imagenette160", "imagenette2-160")],
)
def test_imagenette(tmp_path: Path, name: str, folder: str) -> None:
    for split, files in {"train": ("a", "b"), "val": ("c",)}.items():
        for wnid in ("n01440764", "n03888257"):
            for file in files:
                draw(tmp_path / folder / split / wnid / f"{wnid}_{file}.JPEG")
    train, test = (opened(f"torchvision:{name}", tmp_path, split) for split in ("train", "test"))
    assert names_of(train) == ["tench", "tench", "parachute", "parachute"]
    assert [Path(test.path(row)).name for row in range(2)] == ["n01440764_c.JPEG", "n03888257_c.JPEG"]
    assert test.read(0).shape == (20, 24, 3)


@pytest.mark.parametrize(("name", "size"), [("Places365", "256"), ("Places365Large", "large")])
def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: str) -> None:
    draw(tmp_path / f"data_{size}_standard" / "a" / "airfield" / "00000001.jpg", 1)
    draw(tmp_path / f"data_{size}_standard" / "b" / "barn" / "00000002.jpg", 2)
    picked = draw(tmp_path / f"val_{size}" / "Places365_val_00000001.jpg", 3)
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/b/barn 1\n")
    (tmp_path / "places365_train_standard.txt").write_text(
        "/a/airfield/00000001.jpg 0\n/b/barn/00000002.jpg 1\n"
    )  # fmt: skip
    (tmp_path / "places365_val.txt").write_text("Places365_val_00000001.jpg 1\n")
    places = torchvision.datasets.Places365
    known = {
        split: (file, md5(tmp_path / file)) for split, (file, _) in places._FILE_LIST_META.items()
        if (tmp_path / file).is_file()
    }  # fmt: skip
    monkeypatch.setattr(places, "_FILE_LIST_META", known)
    monkeypatch.setattr(
        places, "_CATEGORIES_META", (places._CATEGORIES_META[0], md5(tmp_path / "categories_places365.txt"))
    )
    train, test = (opened(f"torchvision:{name}", tmp_path, split) for split in ("train", "test"))
    assert names_of(train) == ["/a/airfield", "/b/barn"]
    assert names_of(test) == ["/b/barn"]
    assert np.array_equal(test.read(0), np.asarray(Image.open(io.BytesIO(picked))))
    (tmp_path / f"val_{size}" / "Places365_val_00000001.jpg").unlink()
    with pytest.raises(DataError, match=rf"and the folders data_{size}_standard/ and val_{size}/"):
        opened(f"torchvision:{name}", tmp_path, "test")


def test_inaturalist(tmp_path: Path) -> None:
    species = [
        "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
        "00001_Plantae_Tracheophyta_Polypodiopsida_Polypodiales_Blechnaceae_Doodia_media",
    ]
    for version, files in {"2021_train": ("b", "a"), "2021_train_mini": ("a",), "2021_valid": ("c",)}.items():
        for folder in species:
            for file in files:
                draw(tmp_path / version / folder / f"{file}.jpg")
    train, mini, test = (
        opened(f"torchvision:{name}", tmp_path, split)
        for name, split in (("INaturalist", "train"), ("INaturalistMini", "train"), ("INaturalist", "test"))
    )
    assert names_of(train) == [species[0], species[0], species[1], species[1]]
    assert [Path(train.path(row)).name for row in range(4)] == ["a.jpg", "b.jpg"] * 2  # whatever the disk's order
    assert (len(mini), len(test)) == (2, 2)
    assert test.read(1).shape == (20, 24, 3)
    (tmp_path / "2021_train" / "00007_wrong").mkdir()
    with pytest.raises(DataError, match="with the 10,000 folders of species"):
        opened("torchvision:INaturalist", tmp_path)


def test_stl10_with_its_unlabelled_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column by column inside a colour, labels from 1."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 96, 96, 3), dtype=np.uint8)
    stored = pixels.transpose(0, 3, 2, 1)
    stored[:2].tofile(folder / "train_X.bin")
    stored[2:4].tofile(folder / "unlabeled_X.bin")
    stored[4:].tofile(folder / "test_X.bin")
    np.array([10, 1], dtype=np.uint8).tofile(folder / "train_y.bin")
    np.array([2], dtype=np.uint8).tofile(folder / "test_y.bin")
    kinds = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(kinds) + "\n")
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5(folder / file)] for file, _ in getattr(torchvision.datasets.STL10, attribute)]
        monkeypatch.setattr(torchvision.datasets.STL10, attribute, listed)
    train, test = (opened("torchvision:STL10", tmp_path, split) for split in ("train", "test"))
    assert names_of(train) == ["truck", "airplane", None, None]
    assert names_of(test) == ["bird"]
    assert np.array_equal(train.read(3), pixels[3])
    assert np.array_equal(test.read(0), pixels[4])


def write_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for seed, name in enumerate(("Abyssinian_1", "Abyssinian_2", "beagle_10", "beagle_3")):
        draw(base / "images" / f"{name}.jpg", seed)
        trimap = np.full((20, 24), 2, dtype=np.uint8)
        trimap[5:10, 5:10], trimap[4, 4:10] = 1, 3
        (base / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
        (base / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"resource fork")
    (base / "images" / "Abyssinian_34.mat").write_bytes(b"MATLAB")
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_10 5 2 1\n")
    (base / "annotations" / "test.txt").write_text("Abyssinian_2 1 1 1\nbeagle_3 5 2 1\n")


def test_pets_by_breed(tmp_path: Path) -> None:
    write_pets(tmp_path)
    train, test = (opened("torchvision:OxfordIIITPet", tmp_path, split) for split in ("train", "test"))
    assert names_of(train) == names_of(test) == ["Abyssinian", "Beagle"]
    assert train.labels.tolist() == [0, 4]
    assert sorted(set(train.mask(0).flat)) == [0, 1, 2]
    alone = open_source(str(tmp_path / "oxford-iiit-pet"), "test")
    assert names_of(alone) == ["Abyssinian", "Beagle"]


def test_imagenet_from_its_archives(tmp_path: Path) -> None:
    from halfseen.cli.main import run

    wnids = ["n02000000", "n01000000"]
    meta = write_meta(tmp_path / "meta.mat", [1, 2], wnids, num_train_images=[2, 1])
    labels = write_labels(tmp_path / "labels.txt", [2, 1, 1])
    devkit = write_devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", labels, meta)
    inner = {
        "n01000000.tar": tar_of({"n01000000_1.JPEG": photograph(1)}),
        "n02000000.tar": tar_of({"n02000000_1.JPEG": photograph(2), "n02000000_2.JPEG": photograph(3)}),
    }
    train_tar, val_tar = tmp_path / "ILSVRC2012_img_train.tar", tmp_path / "ILSVRC2012_img_val.tar"
    train_tar.write_bytes(tar_of(inner))
    val_tar.write_bytes(tar_of({image_name(number): photograph(3 + number) for number in (1, 2, 3)}))
    name, place = "torchvision:ImageNet", tmp_path / "imagenet"
    with pytest.raises(DataError, match=rf"--train-tar {train_tar} .* --dst {place}` makes them"):
        opened(name, tmp_path)
    arrange = ["data", "arrange-imagenet", "--devkit", str(devkit), "--dst", str(place)]
    assert run([*arrange, "--val-tar", str(val_tar)]) == 0
    # The validation part alone is enough to measure on.
    assert names_of(opened(name, tmp_path, "test")) == ["n01000000", "n02000000", "n02000000"]
    with pytest.raises(DataError, match="no class folders train in"):
        opened(name, tmp_path)
    assert run([*arrange, "--train-tar", str(train_tar)]) == 0
    train, test = (opened(name, tmp_path, split) for split in ("train", "test"))
    assert names_of(train) == ["n01000000", "n02000000", "n02000000"]
    assert np.array_equal(test.read(0), np.asarray(Image.open(io.BytesIO(photograph(4)))))
    assert names_of(open_source(str(place), "test")) == names_of(test)


def write_intel(root: Path, doubled: bool) -> dict[str, bytes]:
    """The files of Kaggle's archive by their names in it."""
    files = {}
    for seed, (split, kind, number) in enumerate(
        [
            ("train", "street", 2),
            ("train", "buildings", 0),
            ("train", "forest", 8),
            ("test", "sea", 20072),
            ("test", "glacier", 20059),
        ]
    ):
        inner = f"seg_{split}/seg_{split}" if doubled else f"seg_{split}"
        files[f"{inner}/{kind}/{number}.jpg"] = photograph(seed)
    files["seg_pred/seg_pred/5.jpg" if doubled else "seg_pred/5.jpg"] = photograph(9)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return files


@pytest.mark.parametrize("packing", ["folder", "parent", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("doubled", [True, False])
def test_intel_scenes(tmp_path: Path, packing: str | int, doubled: bool) -> None:
    files = write_intel(tmp_path / "data", doubled)
    place = tmp_path / "data" if packing == "folder" else tmp_path
    if isinstance(packing, int):
        place = tmp_path / "archive.zip"
        with zipfile.ZipFile(place, "w", packing) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    name = f"intel:{place}"
    train, test = open_source(name), open_source(name, "test")
    assert train.class_names == ("buildings", "forest", "glacier", "mountain", "sea", "street")
    assert names_of(train) == ["buildings", "forest", "street"]
    assert test.labels.tolist() == [2, 4]
    assert has_split(name, "test")
    street = next(content for file, content in files.items() if "street" in file)
    assert np.array_equal(train.read(2), np.asarray(Image.open(io.BytesIO(street))))
    assert train.shorter_side(2) == 20
    assert train.path(2).startswith(str(place))
    assert train.path(2).endswith("street/2.jpg")
    assert train.fingerprint() == open_source(name).fingerprint() != test.fingerprint()


def test_intel_faults_are_sentences(tmp_path: Path) -> None:
    write_intel(tmp_path / "data", doubled=True)
    with pytest.raises(DataError, match=r"does not exist\. Give 'intel:' and the path of archive.zip"):
        open_source(f"intel:{tmp_path}/archive.zip")
    assert not has_split(f"intel:{tmp_path}/archive.zip", "test")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and so on")
    with pytest.raises(DataError, match="is not a whole zip archive"):
        open_source(f"intel:{tmp_path}/broken.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="so it has no split 'test'"):
        open_source(f"intel:{tmp_path}/empty", "test")
    draw(tmp_path / "data" / "seg_train" / "seg_train" / "forrest" / "1.jpg")
    with pytest.raises(DataError, match=r"class folder 'forrest'.* Did you mean 'forest'\?"):
        open_source(f"intel:{tmp_path}/data")


def test_a_broken_member_of_an_archive_is_a_bad_image(tmp_path: Path) -> None:
    place = tmp_path / "archive.zip"
    names = [f"seg_train/forest/{number}.jpg" for number in range(4)]
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, b"no image" if seed == 1 else photograph(seed))
    starts = [each.header_offset for each in zipfile.ZipFile(place).infolist()]
    content = bytearray(place.read_bytes())
    content[starts[2] : starts[2] + 4] = b"XXXX"
    data = starts[3] + 30 + len(names[3])
    content[data : data + 8] = b"\xff" * 8
    place.write_bytes(bytes(content))
    source = open_source(f"intel:{place}")
    assert source.read(0).shape == (20, 24, 3)
    for row, sentence in ((1, "not an image"), (2, "broken at this place"), (3, "can't be unpacked")):
        with pytest.raises(BadImage, match=sentence):
            source.read(row)


def test_an_archive_survives_loader_workers(tmp_path: Path) -> None:
    from halfseen.data.loader import evaluation_batches

    place = tmp_path / "archive.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for number in range(6):
            archive.writestr(f"seg_train/seg_train/sea/{number}.jpg", photograph(number))
    source = open_source(f"intel:{place}")
    alone, shared = (
        [batch.images for batch in evaluation_batches(source, np.arange(6), 16, 3, workers=workers)]
        for workers in (0, 2)
    )
    assert all(one.equal(two) for one, two in zip(alone, shared, strict=True))


def test_what_may_be_fetched_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"download=never keeps it from being fetched. Put there: imagenette2/"):
        opened("torchvision:Imagenette", tmp_path)
    with pytest.raises(DataError, match=r"not fetched unasked: its training images are 224 GB .* data.download=always"):
        opened("torchvision:INaturalist", tmp_path, download="small")
    for name, asked in (("Imagenette", "small"), ("Places365", "always"), ("Flowers102", "small")):
        with pytest.raises(DataError, match=rf"'torchvision:{name}' .* could not be downloaded .* Put there: "):
            opened(f"torchvision:{name}", tmp_path, download=asked)
    with pytest.raises(
        ValidationError, match=r"download: got 'never', but it has an effect for torchvision: sources only"
    ):
        DataConfig(source="photos", download="never")

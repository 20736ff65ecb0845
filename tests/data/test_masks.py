"""Pixel masks: where they are found, what their values mean, and what is said where they don't fit."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfseen.data.config import DataConfig
from halfseen.data.sources import IGNORED, Source, has_split, open_source
from halfseen.errors import DataError

Pair = Callable[..., None]

CLASSES = np.array([[0, 1, 2, 255], [2, 2, 0, 1], [0, 0, 0, 0]], dtype=np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """`pair("images/a.jpg", "masks/a.png")` writes a 4 x 3 picture and its mask below tmp_path."""

    def write(image: str, mask: str, values: np.ndarray = CLASSES, palette: bool = False) -> None:
        for name in (image, mask):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((3, 4, 3), len(image) * 5, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image)
        drawn = Image.fromarray(values)
        if palette:
            drawn.putpalette([number % 256 for number in range(768)])
        drawn.save(tmp_path / mask)

    return write


def names_in(source: Source, root: Path) -> list[str]:
    return [Path(source.path(index)).relative_to(root).as_posix() for index in range(len(source))]


@pytest.mark.parametrize("palette", [False, True])
def test_images_and_masks_side_by_side(tmp_path: Path, pair: Pair, palette: bool) -> None:
    pair("images/b.jpg", "masks/b.png", palette=palette)
    pair("images/a.x.png", "masks/a.x.png", values=CLASSES[::-1].copy(), palette=palette)
    source = open_source(str(tmp_path))
    assert names_in(source, tmp_path) == ["images/a.x.png", "images/b.jpg"]
    assert source.has_masks and source.mask_names == ("0", "1", "2")
    assert source.class_names == ()
    assert np.array_equal(source.mask(1), CLASSES) and source.mask(1).dtype == np.uint8
    assert np.array_equal(source.mask(0), CLASSES[::-1])
    image, mask = source.read_with_mask(1)
    assert image.shape == (3, 4, 3) and np.array_equal(mask, CLASSES)
    assert not has_split(str(tmp_path), "test")


@pytest.mark.parametrize("layout", ["{split}/{kind}/{name}", "{kind}/{split}/{name}"])
def test_splits_may_lie_around_or_within(tmp_path: Path, pair: Pair, layout: str) -> None:
    for split, name in (("train", "1"), ("train", "2"), ("val", "3")):
        image = layout.format(split=split, kind="images", name=f"{name}.png")
        pair(image, layout.format(split=split, kind="masks", name=f"{name}.png"))
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert has_split(str(tmp_path), "test")
    assert [Path(train.path(index)).stem for index in range(len(train))] == ["1", "2"]
    assert [Path(test.path(index)).stem for index in range(len(test))] == ["3"]
    assert np.array_equal(train.mask(1), CLASSES) and np.array_equal(test.mask(0), CLASSES)


def test_folders_within_images_are_classes_of_images(tmp_path: Path, pair: Pair) -> None:
    pair("images/cat/1.png", "masks/cat/1.png")
    pair("images/dog/1.png", "masks/dog/1.png", values=1 - np.minimum(CLASSES, 1))
    source = open_source(str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1]
    assert np.array_equal(source.mask(0), CLASSES)
    assert source.mask(1).max() == 1


def test_names_of_the_classes_of_pixels_may_be_written_down(tmp_path: Path, pair: Pair) -> None:
    pair("images/1.png", "masks/1.png")
    (tmp_path / "mask_names.txt").write_text("sky\nsea\n\nsand\n")
    source = open_source(str(tmp_path))
    assert source.mask_names == ("sky", "sea", "sand")
    (tmp_path / "mask_names.txt").write_text("sky\nsea\n")
    short = open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"masks/1\.png' holds the value 2, but classes are written as 0 to 1 \(sky"):
        short.mask(0)
    (tmp_path / "mask_names.txt").write_text("\n")
    with pytest.raises(DataError, match=r"mask_names\.txt' has 0 names, expected 1 to 254"):
        open_source(str(tmp_path))


def test_subsets_keep_their_masks_and_pickling_too(tmp_path: Path, pair: Pair) -> None:
    for number in range(4):
        pair(f"images/{number}.png", f"masks/{number}.png", values=np.full((3, 4), number, np.uint8))
    subset = pickle.loads(pickle.dumps(open_source(str(tmp_path)).subset([3, 1, 2]).subset([0, 2])))
    assert subset.has_masks and subset.mask_names == ("0", "1", "2", "3")
    assert [int(subset.mask(index)[0, 0]) for index in range(2)] == [3, 2]
    assert int(subset.read_with_mask(1)[1][0, 0]) == 2


def test_the_fingerprint_sees_masks(tmp_path: Path, pair: Pair) -> None:
    pair("images/1.png", "masks/1.png")
    before = open_source(str(tmp_path)).fingerprint()
    assert before == open_source(str(tmp_path)).fingerprint()
    pair("images/1.png", "masks/1.png", palette=True)
    assert before != open_source(str(tmp_path)).fingerprint()


def test_the_skip_list_leaves_masks_with_their_images(tmp_path: Path, pair: Pair) -> None:
    for number in range(3):
        pair(f"images/{number}.png", f"masks/{number}.png", values=np.full((3, 4), number, np.uint8))
    skip = tmp_path / "halfseen_skip.json"
    from halfseen.data.skip_list import SkipEntry, write_skip_list

    write_skip_list(skip, [SkipEntry("images/1.png", (tmp_path / "images/1.png").stat().st_size, "bad")])
    source = open_source(str(tmp_path))
    assert [int(source.mask(index)[0, 0]) for index in range(len(source))] == [0, 2]


def test_what_does_not_fit_is_named(tmp_path: Path, pair: Pair) -> None:
    pair("images/1.png", "masks/1.png")
    pair("images/2.png", "masks/2.png")
    (tmp_path / "masks/2.png").unlink()
    pair("images/3.png", "masks/3.png", values=np.zeros((5, 4), np.uint8))
    source = open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"images/2\.png' has no mask"):
        source.mask(1)
    with pytest.raises(DataError, match=r"images/3\.png' has 4 x 3 pixels, but its mask 4 x 5"):
        source.read_with_mask(2)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "masks/1.png")
    with pytest.raises(DataError, match=r"masks/1\.png' can't be used: a mask needs one channel"):
        open_source(str(tmp_path)).mask(0)


def test_data_without_masks_says_where_they_go() -> None:
    source = open_source("bundled:fashion")
    assert not source.has_masks and source.mask_names == ()
    with pytest.raises(DataError, match=r"has no masks at all\. Put masks into a folder `masks`"):
        source.mask(0)


def test_scenes_have_a_background_and_the_items() -> None:
    source = open_source("bundled:fashion-scenes", config=DataConfig(source="bundled:fashion-scenes", image_size=32))
    assert source.has_masks and len(source.mask_names) == 11
    assert source.mask_names[0] == "background" and source.mask_names[1:] == source.class_names
    image, mask = source.read_with_mask(4)
    assert np.array_equal(image, source.read(4)) and np.array_equal(mask, source.mask(4))


def make_pets(root: Path) -> np.ndarray:
    """Oxford-IIIT Pets as its archives unpack, junk and all, with four photographs."""
    trimap = np.tile(np.array([1, 2, 3], dtype=np.uint8), (4, 2))
    (root / "annotations" / "trimaps").mkdir(parents=True)
    (root / "annotations" / "xmls").mkdir()
    (root / "images").mkdir()
    for number, name in enumerate(("Abyssinian_1", "american_bulldog_10", "american_bulldog_7", "Birman_2")):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(root / "images" / f"{name}.jpg", quality=100)
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"\0\5\x16\7")
    (root / "images" / "Abyssinian_101.mat").write_bytes(b"MATLAB 5.0")
    (root / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    (root / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\namerican_bulldog_10 2 2 1\n")
    (root / "annotations" / "test.txt").write_text("american_bulldog_7 2 2 1\nBirman_2 7 1 3\n")
    return trimap


def test_pets_in_their_genuine_layout(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    trimap = make_pets(root)
    train, test = open_source(str(root)), open_source(str(root), "test")
    assert has_split(str(root), "test")
    assert names_in(train, root) == ["images/Abyssinian_1.jpg", "images/american_bulldog_10.jpg"]
    assert names_in(test, root) == ["images/american_bulldog_7.jpg", "images/Birman_2.jpg"]
    assert train.class_names == test.class_names
    assert [train.class_names[label] for label in train.labels] == ["Abyssinian", "American Bulldog"]
    assert test.labels.tolist() == [1, 6] and test.class_names[6] == "Birman"
    assert train.mask_names == ("pet", "background", "border")
    assert np.array_equal(train.read_with_mask(1)[1], trimap - 1)


@pytest.mark.parametrize("value", [0, 4])
def test_a_trimap_with_another_value_is_named(tmp_path: Path, value: int) -> None:
    trimap = make_pets(tmp_path)
    trimap[1, 1] = value
    Image.fromarray(trimap).save(tmp_path / "annotations/trimaps/Abyssinian_1.png")
    with pytest.raises(
        DataError, match=rf"Abyssinian_1\.png' holds the value {value}, but classes are written as 1 to 3"
    ):
        open_source(str(tmp_path)).mask(0)


def test_pets_without_a_list_or_with_a_broken_one(tmp_path: Path) -> None:
    make_pets(tmp_path)
    (tmp_path / "annotations" / "test.txt").unlink()
    assert not has_split(str(tmp_path), "test")
    with pytest.raises(DataError, match=r"looks like Oxford-IIIT Pets, but .*test\.txt' is not there"):
        open_source(str(tmp_path), "test")
    (tmp_path / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nAbyssinian_1 38 1\n")
    with pytest.raises(DataError, match=r"line 2 of .*trainval\.txt' is 'Abyssinian_1 38 1', expected four words"):
        open_source(str(tmp_path))


def test_ignored_pixels_are_no_class(tmp_path: Path, pair: Pair) -> None:
    pair("images/1.png", "masks/1.png", values=np.array([[255] * 4, [0] * 4, [1] * 4], np.uint8))
    source = open_source(str(tmp_path))
    assert source.mask_names == ("0", "1")
    assert (source.mask(0)[0] == IGNORED).all()

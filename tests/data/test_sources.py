"""Folders, manifests, torchvision's sets and subsets: which images, in which order, with which labels."""

import csv
import gzip
import hashlib
import os
import pickle
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets import CIFAR10

from halfseen.data.config import DataConfig
from halfseen.data.files import PathTable
from halfseen.data.skip_list import SkipEntry, read_skip_list, write_skip_list
from halfseen.data.sources import ArraySource, BadImage, Source, has_split, open_source
from halfseen.data.torchvision_sets import adapt
from halfseen.errors import DataError
from odd_images import encode, picture

Draw = Callable[..., None]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """`draw("cat/1.png", seed=3)` writes a small picture below tmp_path."""

    def write(*names: str, seed: int = 0) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(Image.fromarray(picture(8, 9, seed)), "PNG"))

    return write


def names_in(source: Source, root: Path) -> list[str]:
    return [Path(source.path(index)).relative_to(root).as_posix() for index in range(len(source))]


def labels_in(source: Source) -> list[str | None]:
    return [source.class_names[label] if label >= 0 else None for label in source.labels]


def test_first_level_folders_are_the_labels(tmp_path: Path, draw: Draw) -> None:
    draw("dog/b.png", "cat/deep/er/z.png", "cat/a.png", "dog/a.png", "loose.png")
    source = open_source(str(tmp_path))
    assert names_in(source, tmp_path) == ["cat/a.png", "cat/deep/er/z.png", "dog/a.png", "dog/b.png", "loose.png"]
    assert source.class_names == ("cat", "dog")
    assert source.labels.dtype == np.int64
    assert labels_in(source) == ["cat", "cat", "dog", "dog", None]
    assert np.array_equal(source.read(0), picture(8, 9, 0))


def test_a_flat_folder_and_a_single_sub_folder_have_no_labels(tmp_path: Path, draw: Draw) -> None:
    draw("flat/b.png", "flat/a.png", "one/images/a.png", "one/images/b.png")
    for name in ("flat", "one"):
        source = open_source(str(tmp_path / name))
        assert source.class_names == ()
        assert source.labels.tolist() == [-1, -1]


def test_only_visible_files_with_known_endings_count(tmp_path: Path, draw: Draw) -> None:
    endings = ("jpg", "JPEG", "Png", "bmp", "WEBP", "tif", "TIFF", "gif", "ppm")
    draw(*(f"{number}.{ending}" for number, ending in enumerate(endings)))
    draw(".hidden.png", ".git/a.png", "notes.txt", "png", "archive.png.gz", "halfseen_skip.jsonx")
    source = open_source(str(tmp_path))
    assert names_in(source, tmp_path) == [f"{number}.{ending}" for number, ending in enumerate(endings)]


def test_a_folder_named_like_an_image_is_searched_not_read(tmp_path: Path, draw: Draw) -> None:
    draw("x.jpg/inside.png")
    assert names_in(open_source(str(tmp_path)), tmp_path) == ["x.jpg/inside.png"]


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, draw: Draw) -> None:
    names = [f"{folder}/{number}.png" for folder in ("b", "a", "ä", "B") for number in (10, 9, 1)]
    for order, root in ((names, "first"), (names[::-1], "second")):
        draw(*(f"{root}/{name}" for name in order))
    found = [names_in(open_source(str(tmp_path / root)), tmp_path / root) for root in ("first", "second")]
    assert found[0] == found[1] == sorted(names, key=os.fsencode)


def test_links_are_followed_once_and_loops_end(tmp_path: Path, draw: Draw) -> None:
    draw("data/cat/a.png", "data/dog/b.png", "elsewhere/c.png")
    (tmp_path / "data/cat/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/cat/self").symlink_to(tmp_path / "data/cat")
    (tmp_path / "data/dog/eternal.png").symlink_to(tmp_path / "data/dog/eternal.png")
    (tmp_path / "data/owl").symlink_to(tmp_path / "elsewhere")
    source = open_source(str(tmp_path / "data"))
    assert names_in(source, tmp_path / "data") == ["cat/a.png", "dog/b.png", "dog/eternal.png", "owl/c.png"]
    assert source.class_names == ("cat", "dog", "owl")
    with pytest.raises(BadImage):
        source.read(2)


def test_train_and_val_folders_are_splits_with_common_classes(tmp_path: Path, draw: Draw) -> None:
    draw("train/cat/1.png", "train/owl/1.png", "val/cat/2.png", "val/dog/2.png", "val/owl/2.png")
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert has_split(str(tmp_path), "train")
    assert has_split(str(tmp_path), "test")
    assert names_in(train, tmp_path) == ["train/cat/1.png", "train/owl/1.png"]
    assert names_in(test, tmp_path) == ["val/cat/2.png", "val/dog/2.png", "val/owl/2.png"]
    assert train.class_names == test.class_names == ("cat", "dog", "owl")
    assert labels_in(train) == ["cat", "owl"]
    assert labels_in(test) == ["cat", "dog", "owl"]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Test"])
def test_names_of_the_held_out_folder(tmp_path: Path, draw: Draw, name: str) -> None:
    draw("train/1.png", f"{name}/2.png")
    assert names_in(open_source(str(tmp_path), "test"), tmp_path) == [f"{name}/2.png"]


def test_a_class_called_train_is_a_class(tmp_path: Path, draw: Draw) -> None:
    draw("train/1.png", "bus/1.png", "car/1.png")
    assert open_source(str(tmp_path)).class_names == ("bus", "car", "train")
    assert not has_split(str(tmp_path), "test")


def test_a_missing_split_says_so(tmp_path: Path, draw: Draw) -> None:
    draw("cat/1.png", "dog/1.png")
    with pytest.raises(DataError, match="no split 'test': there is no val, valid, validation or test folder"):
        open_source(str(tmp_path), "test")


def test_missing_and_empty_folders_and_other_files_are_explained(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    for given, sentence in (
        (tmp_path / "phtos", "does not exist. Did you mean 'photos'?"),
        (tmp_path / "photos", "it is empty"),
        (tmp_path / "texts", "only 1 files of other kinds"),
        (tmp_path / "texts" / "a.txt", "ends in .csv or .parquet"),
    ):
        with pytest.raises(DataError) as caught:
            open_source(str(given))
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("bundled:fashon", "Did you mean 'fashion'?"),
        ("bundle:fashion", "Did you mean 'bundled'?"),
        ("torchvision:cifar10", "Did you mean 'CIFAR10'?"),
        ("torchvision:Imagenet2", "Did you mean"),
        ("hf:mnist", "Known: bundled:, torchvision:, intel: and paths."),
    ],
)
def test_unknown_names_are_answered_with_known_ones(given: str, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(given)
    assert sentence in str(caught.value)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may open everything, so a test that runs as root becomes nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_folder_without_permission_is_listed(nobody: None) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "open").mkdir()
        (root / "open" / "a.png").write_bytes(encode(Image.fromarray(picture()), "PNG"))
        (root / "closed").mkdir()
        (root / "closed").chmod(0)
        source = open_source(name)
        assert names_in(source, root) == ["open/a.png"]
        assert [(left.path, "Permission denied" in left.reason) for left in source.left_out] == [
            (f"{name}/closed", True)
        ]
        (root / "closed").chmod(0o700)


def test_fingerprint_sees_names_sizes_and_labels(tmp_path: Path, draw: Draw) -> None:
    draw("a/cat/1.png", "a/dog/2.png")
    first = open_source(str(tmp_path / "a")).fingerprint()
    assert first == open_source(str(tmp_path / "a")).fingerprint()
    assert len(first) == 64
    with (tmp_path / "a/cat/1.png").open("ab") as file:
        file.write(b"x")
    longer = open_source(str(tmp_path / "a")).fingerprint()
    (tmp_path / "a/cat/1.png").rename(tmp_path / "a/cat/3.png")
    renamed = open_source(str(tmp_path / "a")).fingerprint()
    (tmp_path / "a/cat").rename(tmp_path / "a/owl")
    relabelled = open_source(str(tmp_path / "a")).fingerprint()
    assert len({first, longer, renamed, relabelled}) == 4


def test_sources_survive_pickling(tmp_path: Path, draw: Draw) -> None:
    draw("cat/1.png", "dog/2.png")
    source = open_source(str(tmp_path))
    copy = pickle.loads(pickle.dumps(source))
    assert names_in(copy, tmp_path) == names_in(source, tmp_path)
    assert np.array_equal(copy.read(1), source.read(1))
    assert copy.fingerprint() == source.fingerprint()


def test_path_table_keeps_any_name() -> None:
    names = ["a", "", "ünïcode/图像.png", "b\udcff.png", "x" * 3000]
    table = PathTable(names)
    assert list(table) == names
    assert table[-1] == names[-1]
    with pytest.raises(IndexError):
        table[5]
    assert list(PathTable([])) == []


def test_a_subset_of_a_subset_points_at_the_right_images(tmp_path: Path, draw: Draw) -> None:
    draw(*(f"{'cat' if number % 2 else 'dog'}/{number}.png" for number in range(10)))
    whole = open_source(str(tmp_path))
    part = whole.subset([7, 1, 4, 4]).subset(np.array([3, 0]))
    assert [part.path(0), part.path(1)] == [whole.path(4), whole.path(7)]
    assert part.labels.tolist() == whole.labels[[4, 7]].tolist()
    assert len({whole.fingerprint(), part.fingerprint(), whole.subset([4]).fingerprint()}) == 3
    assert part.fingerprint() == whole.subset([4, 7]).fingerprint()


def test_subset_size_draws_from_the_training_split_only(tmp_path: Path, draw: Draw) -> None:
    draw(*(f"train/{number}.png" for number in range(20)), *(f"val/{number}.png" for number in range(5)))
    root = str(tmp_path)

    def drawn(size: int, seed: int) -> list[str]:
        config = DataConfig(source=root, subset_size=size, subset_seed=seed)
        return names_in(open_source(root, config=config), tmp_path)

    assert len(set(drawn(8, 0))) == 8
    assert drawn(8, 0) == drawn(8, 0) == sorted(drawn(8, 0))
    assert drawn(8, 0) != drawn(8, 1)
    assert set(drawn(4, 0)) < set(drawn(8, 0))
    config = DataConfig(source=root, subset_size=2)
    assert len(open_source(root, "test", config=config)) == 5
    with pytest.raises(DataError, match=r"subset_size: got 21, but .* has 20 images"):
        drawn(21, 0)


def test_subset_fraction_draws_a_share_of_the_training_split(tmp_path: Path, draw: Draw) -> None:
    draw(*(f"train/{number}.png" for number in range(20)), *(f"val/{number}.png" for number in range(5)))
    root = str(tmp_path)

    def drawn(**keys: object) -> list[str]:
        config = DataConfig.model_validate({"source": root, **keys})
        assert len(open_source(root, "test", config=config)) == 5
        return names_in(open_source(root, config=config), tmp_path)

    for share, rounding, size in ((0.2, "floor", 4), (0.29, "floor", 5), (0.29, "ceil", 6), (0.125, "round", 2)):
        keys = {"subset_fraction": share, "subset_rounding": rounding}
        assert drawn(**keys, subset_seed=3) == drawn(subset_size=size, subset_seed=3)
        assert drawn(**keys, subset_seed=3) != drawn(**keys, subset_seed=4)
    with pytest.raises(DataError, match=r"subset_fraction: got 0\.04, which leaves none of the 20 images"):
        drawn(subset_fraction=0.04)
    with pytest.raises(ValidationError, match=r"subset_per_class: got 2 beside subset_fraction=0\.5.*in one way only"):
        drawn(subset_fraction=0.5, subset_per_class=2)


def test_subsets_by_class_are_of_the_training_split_only(tmp_path: Path, draw: Draw) -> None:
    draw(*(f"train/{name}/{number}.png" for name, count in (("cat", 5), ("dog", 10)) for number in range(count)))
    draw(*(f"val/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)))
    root = str(tmp_path)

    def chosen(**keys: object) -> list[str]:
        config = DataConfig.model_validate({"source": root, **keys})
        assert len(open_source(root, "test", config=config)) == 6
        source = open_source(root, config=config)
        assert source.class_names == ("cat", "dog")
        return names_in(source, tmp_path / "train")

    assert chosen(subset_per_class=2) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert chosen(subset_fraction_per_class=0.3) == ["cat/0.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert len(chosen(subset_fraction_per_class=0.3, subset_rounding="ceil")) == 5
    listing = tmp_path / "list.txt"
    listing.write_text("dog/7.png 1\ncat/4.png cat\n")
    assert chosen(subset_list=str(listing)) == ["cat/4.png", "dog/7.png"]
    with pytest.raises(DataError, match=r"subset_fraction_per_class: got 0\.05, which leaves no image"):
        chosen(subset_fraction_per_class=0.05)


def test_the_first_images_of_a_manifest_go_by_name(tmp_path: Path, draw: Draw) -> None:
    names = ["c.png", "a.png", "b.png", "d.png"]
    draw(*names)
    rows = [{"image": name, "label": "dog" if name == "d.png" else "cat"} for name in names]
    root = write_manifest(tmp_path / "images.csv", rows)
    config = DataConfig(source=root, subset_per_class=2)
    assert names_in(open_source(root, config=config), tmp_path) == ["a.png", "b.png", "d.png"]


def test_images_on_the_skip_list_may_stay_in_a_subset_list(tmp_path: Path, draw: Draw) -> None:
    draw("cat/1.png", "cat/2.png", "dog/1.png")
    write_skip_list(tmp_path / "halfseen_skip.json", [SkipEntry("cat/2.png", None, "is torn")])
    (tmp_path / "list.txt").write_text("cat/1.png 0\ncat/2.png 0\n")
    config = DataConfig(source=str(tmp_path), subset_list=str(tmp_path / "list.txt"))
    assert names_in(open_source(str(tmp_path), config=config), tmp_path) == ["cat/1.png"]


def test_subsets_that_can_not_be_had_are_refused(tmp_path: Path, draw: Draw) -> None:
    draw("1.png", "2.png")
    root = str(tmp_path)
    with pytest.raises(DataError, match=r"data\.subset_per_class: got 2, but .* has no classes"):
        open_source(root, config=DataConfig(source=root, subset_per_class=2))
    with pytest.raises(
        DataError, match=r"data\.subset_list: got 'x', but the images of 'bundled:fashion.*' are not files"
    ):
        open_source("bundled:fashion", config=DataConfig(subset_list="x"))
    with pytest.raises(ValidationError, match=r"subset_list: got 'x' beside subset_size=3.*in one way only"):
        DataConfig(subset_size=3, subset_list="x")
    with pytest.raises(ValidationError, match=r"subset_rounding: got 'ceil', but it has an effect with"):
        DataConfig(subset_rounding="ceil")


def test_bundled_images_have_subsets_by_class() -> None:
    source = open_source("bundled:fashion", config=DataConfig(subset_per_class=3))
    assert np.bincount(source.labels).tolist() == [3] * 10


def test_settings_of_the_run_do_not_touch_other_data(tmp_path: Path, draw: Draw) -> None:
    draw(*(f"a/{number}.png" for number in range(6)), *(f"b/{number}.png" for number in range(6)))
    config = DataConfig(source=str(tmp_path / "a"), subset_size=2, max_pixels=71)
    other = open_source(str(tmp_path / "b"), config=config)
    assert len(other) == 6
    with pytest.raises(BadImage, match="too large"):
        other.read(0)


def write_manifest(path: Path, rows: Sequence[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{n: row.get(n) for n in columns} for row in rows]), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_manifest_gives_labels_splits_and_masks(tmp_path: Path, draw: Draw, suffix: str) -> None:
    draw("im/1.png", "im/2.png", "im/3, x.png", seed=1)
    classes = np.arange(72, dtype=np.uint8).reshape(8, 9) % 11
    Image.fromarray(classes).save(tmp_path / "mask.png")
    rows: list[dict[str, object]] = [
        {"image": "im/2.png", "label": "dog", "split": "train", "mask": "mask.png"},
        {"image": "im/1.png", "label": "cat", "split": "val", "mask": None},
        {"image": "./im/../im/3, x.png", "label": None, "split": "TRAIN", "mask": None},
    ]
    manifest = write_manifest(tmp_path / f"list{suffix}", rows)
    train, test = open_source(manifest), open_source(manifest, "test")
    assert has_split(manifest, "test")
    assert names_in(train, tmp_path) == ["im/2.png", "im/3, x.png"]
    assert labels_in(train) == ["dog", None]
    assert train.class_names == ("cat", "dog")
    assert labels_in(test) == ["cat"]
    assert np.array_equal(train.read(1), picture(8, 9, 1))
    assert np.array_equal(train.mask(0), classes)
    assert train.mask_names == tuple(map(str, range(11)))
    with pytest.raises(DataError, match=r"3, x\.png' has no mask, although other images have one"):
        train.mask(1)
    assert not test.has_masks


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_numbers_as_labels_are_ordered_as_numbers(tmp_path: Path, draw: Draw, suffix: str) -> None:
    draw("a.png")
    labels: list[object] = [10, 9, 2, None] if suffix == ".parquet" else ["10", "9", "2", ""]
    rows = [{"image": "a.png", "label": label} for label in labels]
    source = open_source(write_manifest(tmp_path / f"list{suffix}", rows))
    assert source.class_names == ("2", "9", "10")
    assert source.labels.tolist() == [2, 1, 0, -1]
    assert not has_split(str(tmp_path / f"list{suffix}"), "test")


def test_manifest_paths_cannot_leave_the_folder(tmp_path: Path, draw: Draw) -> None:
    draw("data/in.png", "out.png")
    manifest = tmp_path / "data" / "list.csv"
    for given in (
        "../out.png",
        "a/../../out.png",
        str(tmp_path / "out.png"),
        "/etc/passwd",
        "..",
        f"{tmp_path}/data/../out.png",
    ):
        write_manifest(manifest, [{"image": "in.png"}, {"image": given}])
        with pytest.raises(DataError, match=r"row 2 of .* outside of the manifest's folder"):
            open_source(str(manifest))
        write_manifest(manifest, [{"image": "in.png", "mask": given}])
        with pytest.raises(DataError, match="outside of the manifest's folder"):
            open_source(str(manifest))
    write_manifest(manifest, [{"image": str(tmp_path / "data" / "in.png")}, {"image": "in.png"}])
    assert names_in(open_source(str(manifest)), tmp_path / "data") == ["in.png", "in.png"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no column `image`, only no columns at all"),
        ("imge,label\na.png,1\n", "Did you mean 'imge'?"),
        ("image,label\n", "has no rows"),
        ("image,label\n,cat\n", "row 1 of .* has an empty `image`"),
        ("image,label\na.png,cat,3\n", "row 1 of .* has 3 cells, the header has 2"),
        ("image,split\na.png,tran\n", "split 'tran'.* Did you mean 'train'?"),
        ("image,split\na.png,val\n", "no rows of the split 'train' among its 1 rows"),
        ('image\n"a.png\n', "can't be read as a table"),
    ],
)
def test_faulty_manifests_are_explained(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=sentence.replace("?", r"\?")):
        open_source(str(tmp_path / "list.csv"))


def test_a_parquet_that_is_none_is_explained(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="can't be read as parquet"):
        open_source(str(tmp_path / "list.parquet"))
    write_manifest(tmp_path / "list.parquet", [{"image": {"bytes": b"x"}}])
    with pytest.raises(DataError, match="holds dict, expected text"):
        open_source(str(tmp_path / "list.parquet"))


def test_missing_files_of_a_manifest_are_bad_images(tmp_path: Path, draw: Draw) -> None:
    draw("a.png")
    source = open_source(write_manifest(tmp_path / "list.csv", [{"image": "a.png"}, {"image": "b.png"}]))
    with pytest.raises(BadImage, match="does not exist"):
        source.read(1)


def test_the_skip_list_in_the_folder_is_honoured(tmp_path: Path, draw: Draw) -> None:
    draw("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")
    size = (tmp_path / "cat/2.png").stat().st_size
    entries = [
        SkipEntry("cat/2.png", size, "it is broken"),
        SkipEntry("dog/3.png", size + 1, "mended since"),
        SkipEntry("dog/4.png", None, "ugly"),
        SkipEntry("gone.png", 3, "not there any more"),
    ]
    write_skip_list(tmp_path / "halfseen_skip.json", entries)
    assert read_skip_list(tmp_path / "halfseen_skip.json") == entries
    source = open_source(str(tmp_path))
    assert names_in(source, tmp_path) == ["cat/1.png", "dog/3.png"]
    assert labels_in(source) == ["cat", "dog"]
    assert [(Path(left.path).name, left.reason) for left in source.left_out] == [
        ("2.png", "it is broken"),
        ("4.png", "ugly"),
    ]
    assert len(open_source(str(tmp_path), use_skip_list=False)) == 4


def test_a_skip_list_elsewhere_is_named_by_the_config(tmp_path: Path, draw: Draw) -> None:
    draw("data/1.png", "data/2.png")
    listing = tmp_path / "list.json"
    write_skip_list(listing, [SkipEntry("1.png", None, "why not")])
    root = str(tmp_path / "data")
    source = open_source(root, config=DataConfig(source=root, skip_list=str(listing)))
    assert names_in(source, tmp_path / "data") == ["2.png"]
    for content in ("no json", "{}", '{"files": [{"path": 3}]}', '{"files": [7]}', '{"files": 3}', "[]"):
        listing.write_text(content)
        with pytest.raises(DataError, match="is not a skip list"):
            open_source(root, config=DataConfig(source=root, skip_list=str(listing)))
    listing.unlink()
    with pytest.raises(DataError, match="can't read"):
        open_source(root, config=DataConfig(source=root, skip_list=str(listing)))
    with pytest.raises(DataError, match="for folders and manifests only"):
        open_source("bundled:fashion", config=DataConfig(source="bundled:fashion", skip_list="x.json"))


def test_a_skip_list_with_everything_on_it_is_explained(tmp_path: Path, draw: Draw) -> None:
    draw("1.png")
    write_skip_list(tmp_path / "halfseen_skip.json", [SkipEntry("1.png", None, "why not")])
    with pytest.raises(DataError, match=r"all 1 images .* are on the skip list .*: why not\."):
        open_source(str(tmp_path))


def test_array_source_reads_grey_and_colour_and_never_its_own_memory() -> None:
    colour = np.stack([picture(6, 7, seed) for seed in range(3)])
    source = ArraySource("arrays", colour, np.array([0, 1, -1]), ("a", "b"))
    source.read(1)[...] = 0
    assert np.array_equal(source.read(1), picture(6, 7, 1))
    grey = ArraySource("arrays", colour[..., 0], np.array([0, 1, -1]), ("a", "b"))
    assert np.array_equal(grey.read(2), np.repeat(colour[2, :, :, :1], 3, axis=2))
    assert source.path(2) == "arrays#2"
    other = ArraySource("arrays", colour, np.array([0, 0, -1]), ("a", "b"))
    assert len({source.fingerprint(), grey.fingerprint(), other.fingerprint()}) == 3


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(header + values.tobytes())


def test_torchvision_mnist_is_read_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    raw = tmp_path / "FashionMNIST" / "raw"
    for prefix in ("train", "t10k"):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    monkeypatch.setenv("HALFSEEN_DATA", str(tmp_path))
    source = open_source("torchvision:FashionMNIST", "test")
    assert len(source) == 5
    assert source.class_names[9] == "Ankle boot"
    assert source.labels.tolist() == labels.tolist()
    assert np.array_equal(source.read(2), np.repeat(images[2][:, :, None], 3, axis=2))
    assert source.is_sound


def test_torchvision_pets_are_files_with_masks(tmp_path: Path, draw: Draw) -> None:
    base = "oxford-iiit-pet"
    draw(f"{base}/images/Abyssinian_1.jpg", f"{base}/images/beagle_7.jpg", seed=2)
    trimap = np.tile(np.array([1, 2, 3], dtype=np.uint8), (8, 3))
    for name in ("Abyssinian_1", "beagle_7"):
        (tmp_path / base / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(trimap).save(tmp_path / base / "annotations" / "trimaps" / f"{name}.png")
    for split in ("trainval", "test"):
        (tmp_path / base / "annotations" / f"{split}.txt").write_text("Abyssinian_1 1 1 1\nbeagle_7 2 2 1\n")
    name = "torchvision:OxfordIIITPet"
    source = open_source(name, config=DataConfig(source=name, root_dir=str(tmp_path)))
    assert labels_in(source) == ["Abyssinian", "Beagle"]
    assert np.array_equal(source.read(1), picture(8, 9, 2))
    assert source.name == name
    assert source.mask(1)[0].tolist() == [0, 1, 2] * 3


def test_torchvision_imagenet_is_a_folder_of_class_folders(tmp_path: Path, draw: Draw) -> None:
    name = "torchvision:ImageNet"
    config = DataConfig(source=name, root_dir=str(tmp_path))
    with pytest.raises(DataError, match="may not be downloaded freely"):
        open_source(name, config=config)
    draw("imagenet/train/n01/a.png", "imagenet/train/n02/b.png", "imagenet/val/n02/c.png")
    assert labels_in(open_source(name, "test", config=config)) == ["n02"]


def test_torchvision_cifar_goes_through_the_real_reader(tmp_path: Path) -> None:
    """The real CIFAR10 class on files of our own; only the expected checksums are those of our files."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(4, 32, 32, 3), dtype=np.uint8)
    rows = pixels.transpose(0, 3, 1, 2).reshape(4, -1)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    batch = pickle.dumps({"data": rows, "labels": [0, 3, 9, 1]})
    names = pickle.dumps({"label_names": [f"class {number}" for number in range(10)]})
    (folder / "batch").write_bytes(batch)
    (folder / "meta").write_bytes(names)

    class SmallCIFAR(CIFAR10):
        train_list = [["batch", hashlib.md5(batch).hexdigest()]]  # noqa: RUF012
        test_list = []  # noqa: RUF012
        meta = {"filename": "meta", "key": "label_names", "md5": hashlib.md5(names).hexdigest()}  # noqa: RUF012

    source = adapt("torchvision:CIFAR10", SmallCIFAR(str(tmp_path)), max_pixels=10**6)
    assert labels_in(source) == ["class 0", "class 3", "class 9", "class 1"]
    assert np.array_equal(source.read(2), pixels[2])


def test_a_failed_download_is_one_sentence(tmp_path: Path) -> None:
    name = "torchvision:CIFAR10"
    with pytest.raises(DataError, match=r"could not be downloaded .* HALFSEEN_DATA") as caught:
        open_source(name, config=DataConfig(source=name, root_dir=str(tmp_path / "new")))
    assert "\n" not in str(caught.value)
    assert not has_split("torchvision:EuroSAT", "test")
    assert has_split("torchvision:CIFAR10", "test")


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match="effect for source 'bundled:fashion-scenes' only"):
        DataConfig(source="bundled:fashion", scene_size=64)
    with pytest.raises(ValidationError, match="effect for torchvision: sources only"):
        DataConfig(source="photos", root_dir="x")
    with pytest.raises(ValidationError):
        DataConfig(image_size=15)
    with pytest.raises(ValidationError):
        DataConfig(std=(0.0, 1.0, 1.0))


def test_gzip_is_not_taken_for_an_image(tmp_path: Path, draw: Draw) -> None:
    draw("1.png")
    (tmp_path / "2.png").write_bytes(gzip.compress((tmp_path / "1.png").read_bytes()))
    with pytest.raises(BadImage, match="not an image"):
        open_source(str(tmp_path)).read(1)


@pytest.mark.slow
def test_a_folder_of_10_000_files_opens_fast(tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / f"class{number:03d}"
        folder.mkdir()
        for image in range(1000):
            os.close(os.open(folder / f"{image:04d}.jpg", os.O_CREAT | os.O_WRONLY))
    started = time.process_time()
    source = open_source(str(tmp_path))
    spent = time.process_time() - started
    assert len(source) == 10_000
    assert np.array_equal(source.labels, np.repeat(np.arange(10), 1000))
    assert spent < 0.5  # measured 0.04


def test_the_shorter_side_is_told_by_the_header(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", "b.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_bytes(b"nothing")
    source = open_source(str(tmp_path))
    assert source.read(1).shape[:2] in ((8, 9), (9, 8))
    assert [source.shorter_side(0), source.shorter_side(1), source.subset([1]).shorter_side(0)] == [8, 8, 8]
    with pytest.raises(BadImage):
        source.shorter_side(2)
    assert ArraySource("grey", np.zeros((1, 5, 7), np.uint8), np.array([0]), ["a"]).shorter_side(0) == 5

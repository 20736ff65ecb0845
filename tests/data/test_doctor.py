"""The doctor counts what is there, finds what is broken or twice there, and its skip list is honoured."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from halfseen.data.config import DataConfig
from halfseen.data.doctor import check, find_shared, precheck, read_skip_list, update_skip_list
from halfseen.data.sources import open_source
from halfseen.data.torchvision_sets import adapt
from halfseen.errors import DataError
from halfseen.ops.randomness import numpy_generator
from odd_images import encode, picture, write_odd_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven files in two classes: three plain, one turned, one twin, one cut short, one empty."""
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    (root / "dog").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    first = encode(Image.fromarray(picture(20, 30, 1)), "PNG")
    (root / "cat" / "1.png").write_bytes(first)
    (root / "cat" / "2.jpg").write_bytes(encode(Image.fromarray(picture(40, 90, 2)), "JPEG", exif=exif))
    (root / "cat" / "3.gif").write_bytes(encode(Image.fromarray(picture(50, 50, 3)).quantize(16), "GIF"))
    (root / "dog" / "4.png").write_bytes(encode(Image.fromarray(picture(300, 70, 4)).convert("L"), "PNG"))
    (root / "dog" / "5.png").write_bytes(first)
    (root / "dog" / "6.png").write_bytes(first[:200])
    (root / "dog" / "7.jpg").write_bytes(b"")
    return root


def name(path: str) -> str:
    return Path(path).name


def test_everything_is_counted(photos: Path) -> None:
    report = check(open_source(str(photos)))
    assert (report.num_images, report.num_checked) == (7, 7)
    assert [(bad.index, name(bad.path), bad.reason.split(":")[0]) for bad in report.bad] == [
        (5, "6.png", "truncated"),
        (6, "7.jpg", "the file is empty"),
    ]
    assert [[name(path) for path in group] for group in report.duplicates] == [["1.png", "5.png"]]
    assert report.formats == {"PNG": 3, "JPEG": 1, "GIF": 1}
    assert report.modes == {"RGB": 3, "P": 1, "L": 1}
    assert report.num_rotated == 1
    assert report.labels == {"cat": 3, "dog": 4}
    assert report.num_unlabelled == 0
    # Upright sizes (width x height): 30x20 twice, 40x90 (turned), 50x50, 70x300.
    assert report.width_percentiles == {0: 30, 5: 30, 25: 30, 50: 40, 75: 50, 95: 70, 100: 70}
    assert report.height_percentiles == {0: 20, 5: 20, 25: 20, 50: 50, 75: 90, 95: 300, 100: 300}
    assert report.shorter_side_histogram == {"0-32": 2, "32-64": 2, "64-128": 1}
    assert report.images_per_second > 0


def test_channel_statistics_weigh_images_equally(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, size=(side, side + 3, 3), dtype=np.uint8) for side in (8, 20, 33)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    report = check(open_source(str(tmp_path)))
    means = np.stack([image.mean(axis=(0, 1)) / 255 for image in images])
    squares = np.stack([(image.astype(float) ** 2).mean(axis=(0, 1)) / 255**2 for image in images])
    assert report.mean is not None
    assert report.std is not None
    np.testing.assert_allclose(report.mean, means.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(report.std, np.sqrt(squares.mean(axis=0) - means.mean(axis=0) ** 2), atol=1e-10)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_do_not_change_the_report(photos: Path, workers: int) -> None:
    first, second = (check(open_source(str(photos)), workers=number).to_dict() for number in (None, workers))
    for timing in ("seconds", "images_per_second"):
        del first[timing], second[timing]
    assert first == second
    json.dumps(first)


def test_a_limit_draws_always_the_same_files(photos: Path) -> None:
    source = open_source(str(photos))
    reports = [check(source, limit=3) for _ in range(2)]
    assert reports[0].num_checked == 3
    assert reports[0].digests == reports[1].digests
    assert check(source, limit=99).num_checked == 7


def test_progress_is_told(photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(open_source(str(photos)), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(7, 7)]


def test_images_in_memory_and_subsets_are_checked_too() -> None:
    report = check(open_source("bundled:fashion").subset([3, 5, 3]))
    assert report.bad == ()
    assert report.formats == {"memory": 3}
    assert [[name(path) for path in group] for group in report.duplicates] == [["train#3", "train#3"]]


def test_the_skip_list_is_written_honoured_and_forgotten(photos: Path) -> None:
    source = open_source(str(photos), use_skip_list=False)
    path = update_skip_list(source, check(source))
    assert path == photos / "halfseen_skip.json"
    entries = read_skip_list(path)
    assert [(entry.path, entry.size) for entry in entries] == [("dog/6.png", 200), ("dog/7.jpg", 0)]
    honoured = open_source(str(photos))
    assert len(honoured) == 5
    assert [name(left.path) for left in honoured.left_out] == ["6.png", "7.jpg"]
    assert check(honoured).bad == ()
    for broken in ("6.png", "7.jpg"):
        (photos / "dog" / broken).write_bytes((photos / "cat" / "1.png").read_bytes())
    assert len(open_source(str(photos))) == 7
    source = open_source(str(photos), use_skip_list=False)
    update_skip_list(source, check(source))
    assert read_skip_list(path) == []


def test_no_list_is_written_where_nothing_is_bad(photos: Path) -> None:
    for broken in ("6.png", "7.jpg"):
        (photos / "dog" / broken).unlink()
    source = open_source(str(photos), use_skip_list=False)
    assert update_skip_list(source, check(source)) is None
    assert not (photos / "halfseen_skip.json").exists()


def test_a_partial_check_keeps_what_it_did_not_look_at(photos: Path) -> None:
    source = open_source(str(photos), use_skip_list=False)
    update_skip_list(source, check(source))
    part = source.subset([0, 6])
    (photos / "dog" / "7.jpg").write_bytes((photos / "cat" / "1.png").read_bytes())
    path = update_skip_list(part, check(part))
    assert path is not None
    assert [entry.path for entry in read_skip_list(path)] == ["dog/6.png"]


def test_a_list_that_cannot_be_written_names_the_way_out(photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos), use_skip_list=False)
    report = check(source)
    with pytest.raises(DataError, match="--skip-list FILE"):
        update_skip_list(source, report, tmp_path / "no" / "such" / "folder.json")
    bundled = open_source("bundled:fashion").subset([1])
    with pytest.raises(DataError, match="not made of files"):
        update_skip_list(bundled, check(bundled), tmp_path / "list.json")
    assert update_skip_list(bundled, check(bundled)) is None


def test_no_list_is_left_for_torchvisions_sets(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training wouldn't read it; and the set's files have no folder of their own to put it in."""
    monkeypatch.chdir(tmp_path)
    source = adapt("torchvision:Imagenette", ImageFolder(str(photos)), 10**6)
    report = check(source)
    assert len(report.bad) == 2
    assert update_skip_list(source, report) is None
    assert list(tmp_path.rglob("*.json")) == []


def test_images_shared_by_train_and_test_are_found(tmp_path: Path) -> None:
    for number, place in enumerate(("train/1.png", "train/2.png", "val/3.png")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(seed=number % 2)).save(tmp_path / place)
    reports = [check(open_source(str(tmp_path), split)) for split in ("train", "test")]  # type: ignore[arg-type]
    assert [(name(a), name(b)) for a, b in find_shared(*reports)] == [("1.png", "3.png")]


def test_precheck_lists_the_bad_files_and_lets_the_run_go_on(photos: Path) -> None:
    source = open_source(str(photos))
    config = DataConfig(source=str(photos), max_bad_fraction=0.3)
    bad = precheck(source, config)
    assert [(file.index, name(file.path), file.replaced_by) for file in bad] == [(5, "6.png", None), (6, "7.jpg", None)]
    assert all(file.reason for file in bad)


def test_precheck_refuses_too_many_bad_files(photos: Path) -> None:
    source = open_source(str(photos))
    with pytest.raises(DataError, match=r"max_bad_fraction: 2 of 7 .*28\.6%.* allowed are 28\.0%") as caught:
        precheck(source, DataConfig(source=str(photos), max_bad_fraction=0.28))
    assert "6.png" in str(caught.value)
    assert "truncated" in str(caught.value)
    assert "halfseen data check" in str(caught.value)


def test_precheck_refuses_only_bad_files_whatever_is_allowed(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 5 images looked at"):
        precheck(open_source(str(tmp_path)), DataConfig(source=str(tmp_path), max_bad_fraction=1.0))


def test_precheck_looks_at_as_many_files_as_it_is_told(photos: Path) -> None:
    source = open_source(str(photos)).subset([0] * 50 + [6] * 50)
    for size in (20, 60):
        looked_at = numpy_generator("precheck", 100).permutation(100)[:size]
        bad = precheck(source, DataConfig(source=str(photos), precheck=size, max_bad_fraction=0.9))
        assert [file.index for file in bad] == sorted(looked_at[looked_at >= 50])
    assert precheck(source, DataConfig(source=str(photos), precheck=None)) == []
    assert precheck(open_source("bundled:fashion"), DataConfig()) == []


def test_the_odd_folder_is_described_completely(tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path)
    bad = {str(image.path) for image in odd if image.expected is None}
    source = open_source(str(tmp_path), use_skip_list=False)
    report = check(source)
    assert {entry.path for entry in report.bad} == bad
    assert all(entry.reason for entry in report.bad)
    assert sum(report.formats.values()) == len(odd) - len(bad)
    assert set(report.formats) == {"JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"}
    update_skip_list(source, report)
    honoured = open_source(str(tmp_path))
    assert {left.path for left in honoured.left_out} == bad
    assert all(honoured.read(index).size for index in range(len(honoured)))

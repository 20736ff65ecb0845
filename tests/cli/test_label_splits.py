"""`halfseen data split` through the real entry point: nested files of the published format, nothing overwritten."""

from pathlib import Path

import pytest

from halfseen.cli.main import run
from halfseen.data.label_splits import read_label_split
from halfseen.data.sources import open_source


def test_nested_files_in_a_folder_for_each_draw(tmp_path, make_images, capsys):
    folder = str(make_images(tmp_path / "photos", 60, classes=3))
    words = ["data", "split", folder, "--per-class", "1", "--per-class", "4", "--fraction", "0.25", "--draws", "2"]
    assert run([*words, "--out", str(tmp_path / "splits")]) == 0
    printed = capsys.readouterr().out
    source = open_source(folder)
    names = ("1imgs_class.txt", "4imgs_class.txt", "25percent.txt")
    draws = []
    for draw in ("subsets1", "subsets2"):
        files = [tmp_path / "splits" / draw / name for name in names]
        rows = [set(read_label_split(file, source).rows.tolist()) for file in files]
        assert [len(part) for part in rows] == [3, 12, 15]
        assert rows[0] < rows[1] < rows[2]
        assert all(f"{file}: {len(part)} images" in printed for file, part in zip(files, rows, strict=True))
        assert files[0].read_text().splitlines()[0].startswith("class0/")
        draws.append(rows)
    assert draws[0] != draws[1]
    assert run([*words, "--out", str(tmp_path / "again")]) == 0
    for draw in ("subsets1", "subsets2"):
        for name in names:
            assert (tmp_path / "again" / draw / name).read_bytes() == (tmp_path / "splits" / draw / name).read_bytes()


def test_names_that_begin_with_their_class_are_written_as_published(tmp_path, make_images):
    folder = make_images(tmp_path / "photos", 12, classes=2)
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    assert run(["data", "split", str(folder), "--out", str(tmp_path / "splits"), "--draws", "1"]) == 0
    written = sorted(path.name for path in (tmp_path / "splits" / "subsets1").iterdir())
    assert written == ["1imgs_class.txt", "2imgs_class.txt", "5imgs_class.txt"]
    lines = (tmp_path / "splits" / "subsets1" / "1imgs_class.txt").read_text().splitlines()
    assert [line[:7] for line in lines] == ["class0_", "class1_"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("PHOTOS", "--per-class", "7"), "7 images per class were asked for, but 2 of 2 classes"),
        (("PHOTOS", "--fraction", "1.2"), "share of the images: got 1.2"),
        (("FLAT",), "has no labels to draw from"),
        (("bundled:fashion",), "are not files with names"),
        (("no/such/folder",), "does not exist"),
        (("PHOTOS", "--per-class", "0"), "--per-class"),
    ],
)
def test_the_users_faults_are_sentences_and_leave_nothing(tmp_path, make_images, capsys, words, sentence):
    folders = {
        "PHOTOS": str(make_images(tmp_path / "photos", 12, classes=2)),
        "FLAT": str(make_images(tmp_path / "flat", 4, classes=0)),
    }
    out = tmp_path / "splits"
    assert run(["data", "split", *(folders.get(word, word) for word in words), "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_nothing_is_overwritten(tmp_path, make_images, capsys):
    words = ["data", "split", str(make_images(tmp_path / "photos", 12)), "--per-class", "1", "--draws", "1"]
    kept = tmp_path / "splits" / "subsets1" / "1imgs_class.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert run([*words, "--out", str(tmp_path / "splits")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert kept.read_text() == "mine"
    assert list(Path(kept.parent).iterdir()) == [kept]

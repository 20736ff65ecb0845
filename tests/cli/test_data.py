"""`halfseen data check`: what it prints, what it writes, and how it fails."""

import json
from pathlib import Path

import pytest
from PIL import Image

from halfseen.cli.main import run
from halfseen.data.skip_list import read_skip_list
from halfseen.data.sources import open_source
from odd_images import encode, picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ with a good, a broken and a [bracketed] file; val/ with a copy of the good one."""
    root = tmp_path / "photos"
    good = encode(Image.fromarray(picture(20, 30)), "PNG")
    for name, content in (
        ("train/cat/1.png", good),
        ("train/cat/[bold]2.png", good[:99]),
        ("train/dog/3.png", encode(Image.fromarray(picture(9, 9)), "BMP")),
        ("val/cat/4.png", good),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that aren't broken."""
    monkeypatch.setenv("COLUMNS", "250")


def test_table_lists_and_skip_list(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(photos)]) == 0
    heard = capsys.readouterr()
    assert heard.err == ""
    for expected in (
        f"{photos} (train)",
        f"{photos} (test)",
        "3, looked at 3",
        "PNG: 1, BMP: 1",
        "cat: 2, dog: 1",
        f"{photos}/train/cat/[bold]2.png: truncated: the file ends before the picture does",
        "1 test images are also in the training split",
        f"{photos}/val/cat/4.png = {photos}/train/cat/1.png",
        f"Skip list: {photos}/halfseen_skip.json",
    ):
        assert expected in heard.out
    assert [entry.path for entry in read_skip_list(photos / "halfseen_skip.json")] == ["train/cat/[bold]2.png"]
    assert len(open_source(str(photos))) == 2


def test_the_report_as_json_and_the_list_elsewhere(photos: Path, tmp_path: Path) -> None:
    report_path, list_path = tmp_path / "report.json", tmp_path / "skip.json"
    words = ["data", "check", str(photos), "--json", str(report_path), "--skip-list", str(list_path), "--workers", "1"]
    assert run(words) == 0
    content = json.loads(report_path.read_text("utf-8"))
    assert content["train"]["num_images"] == 3
    assert content["train"]["bad"][0]["reason"].startswith("truncated")
    assert content["test"]["labels"] == {"cat": 1, "dog": 0}
    assert content["shared_by_train_and_test"]["pairs"] == [[f"{photos}/train/cat/1.png", f"{photos}/val/cat/4.png"]]
    assert content["skip_list"] == str(list_path)
    assert len(read_skip_list(list_path)) == 1
    assert not (photos / "halfseen_skip.json").exists()


def test_limits(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(photos), "--limit", "1", "--max-pixels", "100"]) == 0
    out = capsys.readouterr().out
    assert "3, looked at 1" in out
    assert "too large: 30 x 20 pixels, data.max_pixels allows 100" in out


def test_bundled_data_need_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "bundled:fashion", "--limit", "50"]) == 0
    out = capsys.readouterr().out
    assert "10000, looked at 50" in out
    assert "2000, looked at 50" in out
    assert "Skip list" not in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["bundled:fashon"], "Did you mean 'fashion'?"),
        (["bundled:fashion", "--limit", "3", "--skip-list", "x.json"], "not made of files"),
        (["bundled:fashion", "--limit", "3", "--json", "no/such/folder/x.json"], "Name a writable file"),
    ],
)
def test_faults_are_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_a_broken_skip_list_is_named_not_overwritten(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "halfseen_skip.json").write_text("mine")
    assert run(["data", "check", str(photos)]) == 2
    assert "is not a skip list" in capsys.readouterr().err
    assert (photos / "halfseen_skip.json").read_text() == "mine"

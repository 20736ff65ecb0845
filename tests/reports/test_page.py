"""The report: says what the run's files say, is one safe file, works in a real browser, survives missing files."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfseen.errors import DataError
from halfseen.reports.curves import MOST_POINTS
from halfseen.reports.page import write_report
from reports.written_analysis import write_analysis
from reports.written_run import CLASSES, HOSTILE, SCRIPT, clusters, result, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Elements(HTMLParser):
    """All tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "my-run")


def read(path: Path) -> tuple[str, Elements]:
    page = path.read_text(encoding="utf-8")
    return page, Elements(page)


def test_the_summary_says_what_the_files_say(run):
    path = write_report(run)
    assert path == run / "report.html"
    _, found = read(path)
    assert "mae trained vit_tiny on 4,321 images of my_photos at 32 x 32 pixels" in found.text
    assert "20 epochs (2,000 steps) in 3 min 20 s at 100 images per second" in found.text
    for number in ("71.2", "60.5", "81.1", "95 % interval 66.0 to 76.1", "n = 300"):
        assert number in found.text
    assert "The encoder is 9.9 points worse than raw pixels." in found.text
    assert "halfseen pretrain my_photos seed=0" in found.text
    assert "image_size: 32" in found.text


def test_it_is_one_file_that_loads_nothing(run):
    page, found = read(write_report(run))
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in page
    assert "url(" not in page
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_hostile_names_are_text(run):
    page, found = read(write_report(run))
    assert sum(tag == "script" for tag, _ in found.tags) == 2  # the curves' numbers and the page's own
    assert SCRIPT not in page
    assert "<b>bag</b>" not in page
    assert html.escape(CLASSES[1]) in page
    assert not set("\u202e\u200f\u2066\u0000") & set(page)
    for name in HOSTILE:
        shown = name.replace("\u202e", "\\u202e").replace("\n", "\\n")
        assert any(shown == text for text in found.texts), name
    assert not any(attribute.startswith("on") for _, attributes in found.tags for attribute in attributes)


def test_curves_hold_the_logged_numbers(run):
    page, _ = read(write_report(run))
    curves = json.loads(re.search(r'<script type="application/json" id="curves">(.*?)</script>', page, re.S)[1])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(curves) == {"loss", "lr", "images_per_second", "data_wait_share", "mse"}
    series = curves["loss"]["series"][0]
    assert series["x"] == pytest.approx([record["epoch"] for record in records])
    assert series["y"] == pytest.approx([record["loss"] for record in records], rel=1e-5)
    assert series["step"] == [record["step"] for record in records]


def test_long_curves_are_thinned_but_keep_their_ends(run):
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 10_001):
            file.write(json.dumps({"step": step, "epoch": step / 10, "loss": 1 / step}) + "\n")
    page, _ = read(write_report(run))
    curves = json.loads(re.search(r'id="curves">(.*?)</script>', page, re.S)[1])
    steps = curves["loss"]["series"][0]["step"]
    assert (steps[0], steps[-1]) == (1, 10_000)
    assert 1000 < len(steps) <= MOST_POINTS + 1


def test_pictures_are_the_arrays(run):
    _, found = read(write_report(run))
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    arrays = np.load(run / "figures" / "reconstruction.npz")
    assert len(images) == 2 * 3 * 4
    first = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(first), arrays["original"][0])
    last = Image.open(io.BytesIO(base64.b64decode(images[-1]["src"].removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(last), arrays["pasted"][1, 2])
    assert all(image["alt"] and image["width"] == "16" for image in images)


def test_large_pictures_are_made_small(run):
    big = np.zeros((2, 1, 400, 300, 3), np.uint8)
    score = np.ones((2, 1))
    np.savez(
        run / "figures" / "reconstruction.npz", original=big[0], masked=big, predicted=big, pasted=big,
        hidden_share=np.array([0.5, 0.6]), psnr_hidden=score, psnr_whole=score, ssim_hidden=score * np.nan,
        ssim_whole=score, indices=np.arange(1), paths=np.array(["a.png"]), note="",
    )  # fmt: skip
    _, found = read(write_report(run))
    sizes = {(attributes["width"], attributes["height"]) for tag, attributes in found.tags if tag == "img"}
    assert sizes == {("96", "128")}
    assert "SSIM not defined" in found.text


@pytest.mark.parametrize(
    "missing",
    [
        "evaluations/knn.json",
        "figures/reconstruction.npz",
        "metrics.jsonl",
        "health.jsonl",
        "data.json",
        "config.yaml",
        "environment.json",
    ],
)
def test_a_missing_file_leaves_the_rest(run, missing):
    (run / missing).unlink()
    _, found = read(write_report(run))
    assert "halfseen report" in found.text
    assert ("71.2" in found.text) is (missing != "evaluations/knn.json")
    assert any(tag == "img" for tag, _ in found.tags) is (missing != "figures/reconstruction.npz")
    assert any("data-chart" in attributes for _, attributes in found.tags) is (missing != "metrics.jsonl")


@pytest.mark.parametrize(
    "broken", ["evaluations/knn.json", "figures/reconstruction.npz", "data.json", "environment.json"]
)
def test_a_broken_file_is_named(run, broken):
    whole = (run / broken).read_bytes()
    (run / broken).write_bytes(whole[: len(whole) // 2])
    _, found = read(write_report(run))
    assert Path(broken).name in found.text
    assert "left out" in found.text


def test_several_runs_are_compared(run, tmp_path):
    other = write_run(tmp_path / "second", seed=1, loss=2.0)
    path = write_report([run, other])
    assert path == run / "comparison.html"
    page, found = read(path)
    curves = json.loads(re.search(r'id="curves">(.*?)</script>', page, re.S)[1])
    assert [series["name"] for series in curves["loss"]["series"]] == ["my-run", "second"]
    assert "71.2 (66.0 - 76.1)" in found.text
    assert "72.2 (66.0 - 76.1)" in found.text
    assert re.search(r"seed\s+0\s+1", found.text)  # the only setting that differs
    assert not re.search(r"data\.image_size\s+32", found.text)


def rows_of(found: Elements, page: str, kind: str) -> list[str]:
    """The rows of the table with that class, as text."""
    table = re.search(rf'<table class="{kind}">.*?</table>', page, re.S)[0]
    return [Elements(row).text for row in re.findall(r"<tr>.*?</tr>", table, re.S)]


def test_every_result_has_a_row(run):
    """Whatever its measure and its baselines; a result of an older version, without `primary`, is one of top-1."""
    (run / "evaluations" / "cluster.json").write_text(json.dumps(clusters()))
    segmentation = result() | {
        "protocol": "viny-segmentation", "primary": "miou", "headline": {"epoch": 100, "lr": 0.002}, "n": 40,
        "metrics": {"miou": 55.5, "accuracy": 80.25}, "baselines": {"most_frequent": {"miou": 20.0, "accuracy": 60.0}},
        "confidence_interval": {"encoder": [50.0, 60.0]}, "seed": 7, "features": "patch tokens",
    }  # fmt: skip
    (run / "evaluations" / "viny-segmentation.json").write_text(json.dumps(segmentation))
    page, found = read(write_report(run))
    head, *rows = rows_of(found, page, "overview")
    assert "most frequent" in head
    expected = {
        "cluster": ("Accuracy of the best one-to-one map", "41.8", "36.0 - 47.6", "my_photos (test)", "300"),
        "knn": (
            "Top-1 accuracy, k = 20",
            "71.2",
            "60.5",
            "81.1",
            "54.9 - 65.9",
            "1,000",
            "mean of patch tokens (student)",
        ),
        "viny-segmentation": ("Mean IoU", "55.5", "20.0", "50.0 - 60.0", "40", " 7 "),
    }
    assert len(rows) == len(expected)
    for row, (name, words) in zip(rows, expected.items(), strict=True):
        assert name in row
        assert [word for word in words if word not in f"{row} "] == []
    assert "NMI 32.5 ± 1.2 61.0 ± 0.5" in found.text
    assert "Images: my_photos (test), 300 of them. Seed 0." in found.text
    assert "In percent, n = 40" in found.text
    assert "pixel accuracy" in found.text


def test_runs_are_compared_by_one_measure(run, tmp_path):
    other = write_run(tmp_path / "second")
    (other / "evaluations" / "knn.json").unlink()
    (other / "evaluations" / "cluster.json").write_text(json.dumps(clusters()))
    _, found = read(write_report([run, other]))
    table = found.text[found.text.index("All runs.") : found.text.index("mae trained")]
    assert "Top-1 accuracy: this encoder" in table
    assert "71.2 (66.0 - 76.1)" in table
    assert "41.8" not in table


def test_no_finding_is_said_too(run):
    (run / "health.jsonl").unlink()
    assert "watch found nothing" in read(write_report(run))[1].text


def test_what_is_no_run_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither config\.yaml nor metrics\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no run was given"):
        write_report([])


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_it_without_complaint(run, tmp_path):
    write_analysis(run / "analysis")
    path = write_report(run)
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
        "--enable-logging=stderr", "--window-size=390,900", "--dump-dom",
    )  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    drawn = Elements(done.stdout)
    assert next(text for tag, text in zip(["title"], drawn.texts, strict=False)) != "owned"
    assert "<title>my-run - halfseen report</title>" in done.stdout
    paths = [attributes["d"] for tag, attributes in drawn.tags if tag == "path" and attributes.get("class") == "curve"]
    assert len(paths) == 5  # loss, lr, images per second, waiting; mse is folded but drawn
    assert paths[0].count("L") == 199

"""What the report shows of an analysis: its arrays, within a budget, as safe text; what is missing is a sentence."""

import base64
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from halfseen.cli.main import run as command_line
from halfseen.errors import CheckpointError
from halfseen.reports.figures.analysis import FIGURES, remove_figures
from halfseen.reports.inside.attention import build_attention
from halfseen.reports.inside.drawn import CAPTIONS, LIGHT, MOVING
from halfseen.reports.inside.looked_at import Inside, gather
from halfseen.reports.inside.numbers import WORDS, number_row, number_text
from halfseen.reports.inside.packing import evenly, plan_layers, quantise_pairs, thumbnail_sheet
from halfseen.reports.inside.similarity import build_explorer
from halfseen.reports.page import write_report
from halfseen.reports.segmentation import BACKGROUND, class_colours
from reports.test_page import Elements, read
from reports.written_analysis import CLASS_NAMES, HEADS, IMAGES, SHOWN, SIZE, write_analysis
from reports.written_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "my-run")
    write_analysis(folder / "analysis")
    return folder


def block(page: str, key: str) -> str:
    found = re.search(rf'<script type="[^"]*" id="{key}">(.*?)</script>', page, re.DOTALL)
    assert found, key
    return found[1]


def data_of(page: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(block(page, "inside"))
    return found


def decoded(page: str, key: str) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(block(page, key)), np.uint8)


def looked_at(folder: Path) -> Inside:
    return gather([], folder)


def test_every_section_has_its_controls(run: Path) -> None:
    _, found = read(write_report(run))
    hooks = {name for _, attributes in found.tags for name in attributes if name.startswith("data-")}
    expected = {
        "data-explorer", "data-image", "data-layer", "data-layer-words", "data-range", "data-board", "data-panel",
        "data-readout", "data-attention", "data-block", "data-query", "data-head", "data-colours", "data-colour-layer",
        "data-neighbours", "data-near", "data-mask", "data-neighbour", "data-map", "data-way", "data-highlight",
        "data-cloud-board", "data-chart", "data-ratios",
    }  # fmt: skip
    assert expected - hooks == set()
    sections = [attributes["id"] for tag, attributes in found.tags if tag == "section"]
    assert sections == [
        "summary", "training", "reconstructions", "patches", "attention", "colours", "neighbours", "map", "analysis",
        "evaluations", "skipped", "reproduce",
    ]  # fmt: skip
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a" and attributes.get("href", "")]
    assert {f"#{name}" for name in sections} <= set(links)
    for tag, attributes in found.tags:
        if attributes.get("tabindex") == "0" and tag == "div":
            assert attributes.get("role") and attributes.get("aria-label"), attributes


def test_similarities_are_those_of_the_analysis(run: Path) -> None:
    page, _ = read(write_report(run))
    arrays = np.load(run / "analysis" / "run.npz")
    explorer = data_of(page)["explorer"]
    assert isinstance(explorer, list)
    assert explorer[0]["layers"] == ["block 1 of 2", "block 2 of 2", "final norm"]
    assert explorer[0]["grids"] == [[4, 4]] * 3
    values = decoded(page, "pairs-0").reshape(3, SHOWN, 16 * 17 // 2)
    for layer, name in enumerate(("1", "2", "final")):
        low, high = explorer[0]["ranges"][layer]
        pairs = arrays[f"similarity/pairs.{name}"].astype(np.float64)
        for i, j in ((0, 0), (0, 15), (3, 9), (15, 15)):
            at = i * 16 - i * (i - 1) // 2 + j - i
            assert low + (high - low) * values[layer, :, at] / 255 == pytest.approx(pairs[:, i, j], abs=0.006)


def test_close_similarities_keep_their_differences() -> None:
    pairs = np.array([[[1.0, 0.99], [0.99, 1.0]], [[1.0, 0.98], [0.98, 1.0]]])
    found = quantise_pairs(pairs)
    assert found.values.tolist() == [[255, 128, 255], [255, 0, 255]]
    assert (found.low, found.high) == (0.98, 1.0)


def test_attention_and_colours_are_those_of_the_analysis(run: Path) -> None:
    page, found = read(write_report(run))
    arrays = np.load(run / "analysis" / "run.npz")
    attention = data_of(page)["attention"]
    assert isinstance(attention, list)
    maps = arrays["attention/maps"].astype(np.float64)
    peaks = np.array(attention[0]["peaks"]).reshape(maps.shape[:-2])
    shown = decoded(page, "attention-0").reshape(maps.shape) / 255 * peaks[..., None, None]
    assert np.abs(shown - maps).max() < 0.004
    assert attention[0]["queries"] == ["row 2, column 3", "class token"]
    assert sum("data-head" in attributes for _, attributes in found.tags) == HEADS
    colours = decoded(page, "colours-0").reshape(3, SHOWN, 4, 4, 3)
    assert np.array_equal(colours[2], arrays["similarity/colours.final"])


def test_neighbours_and_points_name_all_images(run: Path) -> None:
    page, _ = read(write_report(run))
    data = data_of(page)
    neighbours, points = data["neighbours"], data["points"]
    assert isinstance(neighbours, list) and isinstance(points, dict)
    assert neighbours[0]["whole"][2] == [[0, 0.5], [1, -0.25]]
    assert len(neighbours[0]["masked"]) == SHOWN and len(neighbours[0]["hidden"][0][0]) == 16
    assert len(data["names"]) == len(points["labels"]) == IMAGES  # type: ignore[arg-type]
    assert data["names"][5] == "number 15"  # type: ignore[index]
    assert points["labels"] == [0, 1, 2, 0, 1, 2, -1]
    assert set(points["encoders"][0]["places"]) == {"tsne", "pca"}
    places = np.array(points["encoders"][0]["places"]["pca"])
    assert places.min() >= 0 and places.max() <= 1 and (places.max(axis=0) - places.min(axis=0)).max() == 1
    sheet = Image.open(io.BytesIO(base64.b64decode(block(page, "thumbnails").split(",")[1])))
    thumbnails = np.load(run / "analysis" / "run.npz")["images/thumbnails"]
    if sheet.format == "PNG":
        assert np.array_equal(np.asarray(sheet)[8:16, 16:24], thumbnails[5])
    assert sheet.size == (24, 24)


@pytest.mark.parametrize(("classes", "many"), [(12, False), (13, True)])
def test_more_classes_than_colours_are_said(run: Path, classes: int, many: bool) -> None:
    folder = run / "analysis"
    summary = json.loads((folder / "analysis.json").read_text())
    summary["class_names"] = [f"class {number}" for number in range(classes)]
    (folder / "analysis.json").write_text(json.dumps(summary))
    arrays = dict(np.load(folder / "run.npz"))
    for key in ("images/labels", "images/indices"):
        arrays[key] = np.arange(classes)
    arrays["images/thumbnails"] = np.zeros((classes, 4, 4, 3), np.uint8)
    arrays["embedding/images_pca"] = arrays["embedding/images_tsne"] = np.zeros((classes, 2))
    np.savez(folder / "run.npz", **arrays)
    page, found = read(write_report(run))
    assert data_of(page)["points"]["many"] is many  # type: ignore[index]
    assert (f"{classes} classes are more than colours can tell apart" in found.text) is many
    assert any("data-legend" in attributes for _, attributes in found.tags) is not many


def test_a_sheet_has_a_place_for_each() -> None:
    stack = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    found = thumbnail_sheet(stack)
    assert (found.columns, found.rows, found.side) == (3, 2, 2)


def test_hostile_names_are_text_everywhere(run: Path) -> None:
    page, found = read(write_report(run))
    data = data_of(page)
    assert data["classes"][1] == CLASS_NAMES[1]  # type: ignore[index]
    assert "<script>alert" not in page and "\u202e" not in page
    assert html.escape(CLASS_NAMES[1]) in page
    assert any(r"\u202e" in str(name) for name in data["names"])  # type: ignore[attr-defined]
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert sum("type" not in attributes for attributes in scripts) == 1
    assert all(attributes.get("type") in (None, "application/json", "text/plain") for attributes in scripts)
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:"), tag


@pytest.mark.parametrize(
    ("budget", "layers", "images"),
    [
        (10**6, [[0, 1, 2, 3, 4], [0, 1, 2]], 4),
        (4 * 6 * 4 * 6, [[0, 2, 4], [0, 1, 2]], 4),
        (100, [[0, 2, 4], [0, 1, 2]], 0),
    ],
)
def test_a_budget_takes_layers_first(budget: int, layers: list[list[int]], images: int) -> None:
    plan = plan_layers([5, 3], 4, [18, 18], budget)
    if images:
        assert plan == (layers, images)
    else:
        assert plan is not None and plan.images == 1 and all(len(each) < 3 for each in plan.layers)
    assert plan_layers([5, 3], 4, [18, 18], 40) is None


def test_layers_are_evenly_chosen() -> None:
    assert evenly(13, 4) == [0, 4, 8, 12]
    assert evenly(13, 1) == [12]
    assert evenly(2, 5) == [0, 1]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    inside = looked_at(write_analysis(tmp_path, layers=6))
    whole = build_explorer(inside)
    assert whole is not None and whole.notes == [] and len(whole.encoders[0].layers) == 7
    size = len(whole.blocks[0].text)
    fewer = build_explorer(inside, size * 4 // 7 + 4)
    assert fewer is not None and len(fewer.encoders[0].layers) == 4 and fewer.images == SHOWN
    assert fewer.notes == ["run: 4 of 7 layers, evenly chosen, so that the page stays small."]
    single = build_explorer(inside, size // 7 + 4)
    assert single is not None and single.images == 1
    assert "The first 1 of 3 images, so that the page stays small." in single.notes
    assert build_explorer(inside, 10) is None
    blocks = build_attention(inside, 60)
    assert blocks is not None and blocks.encoders == [] and "too large" in blocks.notes[0]


def test_encoders_with_other_grids_stand_side_by_side(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_analysis(folder / "analysis", ("coarse", "fine"), ((2, 2), (8, 4)))
    page, found = read(write_report(folder))
    explorer = data_of(page)["explorer"]
    assert isinstance(explorer, list)
    assert [each["grids"][0] for each in explorer] == [[2, 2], [8, 4]]
    assert len(decoded(page, "pairs-1")) == 3 * SHOWN * 32 * 33 // 2
    panels = [attributes for _, attributes in found.tags if "data-panel" in attributes]
    assert len(panels) == 2


def test_runs_that_looked_at_the_same_images_share_the_page(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{number}", seed=number) for number in range(6)]
    for number, folder in enumerate(runs[:5]):
        write_analysis(folder / "analysis", seed=number, fingerprint="cd" if number == 1 else "ab")
    page, found = read(write_report(runs))
    data = data_of(page)
    assert data["encoders"] == ["run0", "run2", "run3", "run4"]
    assert "run1: its analysis looked at other images" in found.text
    assert "Without an analysis: run5." in found.text
    assert not any("data-chooser" in attributes for _, attributes in found.tags)
    colours = re.findall(r"--run(\d)\)\"></span><bdi>run\d</bdi>: 2 blocks", page)
    assert colours == ["0", "2", "3", "4"]
    figures = [attributes for tag, attributes in found.tags if tag == "img" and "data-figure" in attributes]
    assert [each["data-figure"] for each in figures] == ["figure-cosine_distance"]
    assert "Across: Manhattan distance" in str(figures[0]["alt"])
    assert "run3: cosine at 1 0.75." in str(figures[0]["alt"])
    with Image.open(io.BytesIO(base64.b64decode(block(page, "figure-cosine_distance").split(",")[1]))) as picture:
        assert (str(picture.width), str(picture.height)) == (figures[0]["width"], figures[0]["height"])


def test_untrained_networks_stay_out_of_a_comparison(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("left", "right")]
    for folder in runs:
        write_analysis(folder / "analysis", (folder.name, "random_init"), ((4, 4), (4, 4)))
    page, found = read(write_report(runs))
    assert data_of(page)["encoders"] == ["left", "right"]
    assert "Networks with fresh weights are left out of a comparison" in found.text
    page, found = read(write_report(runs[0]))
    assert data_of(page)["encoders"] == ["left", "random_init"]
    assert "Networks with fresh weights" not in found.text


def test_the_only_analysis_of_a_comparison_has_its_run_s_name(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("left", "right")]
    write_analysis(runs[1] / "analysis", ("right", "random_init"), ((4, 4), (4, 4)))
    page, found = read(write_report(runs))
    assert data_of(page)["encoders"] == ["right"]
    assert "Networks with fresh weights are left out of a comparison" in found.text
    assert re.findall(r"--run(\d)\)\"></span><bdi>right</bdi>: 2 blocks", page) == ["1"]


def test_runs_keep_their_colours_in_a_joint_analysis(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("left", "right")]
    joint = write_analysis(tmp_path / "joint", ("right", "random_init", "left", "more"), ((4, 4),) * 4)
    looked = gather([(run.name, run) for run in runs], joint).encoders
    assert {each.label: each.colour for each in looked} == {"right": 1, "random_init": 2, "left": 0, "more": 3}


def test_pictures_are_as_many_as_any_encoder_shows(run: Path) -> None:
    write_analysis(run / "analysis", ("few", "many"), ((4, 4), (4, 4)))
    path = run / "analysis" / "few.npz"
    arrays = {key: array for key, array in np.load(path).items() if key.startswith("images/")}
    arrays["images/shown"] = np.zeros((SHOWN - 1, 2 * SIZE, 2 * SIZE, 3), np.uint8)
    np.savez(path, **arrays)
    page, found = read(write_report(run))
    attention = page[page.index('<section id="attention"') : page.index('<section id="colours"')]
    assert attention.count("data-image=") == SHOWN, "the script counts them to find a map"
    assert f"{IMAGES} images of my_photos (test) were looked at; {SHOWN} of them are shown." in found.text


def test_tokens_are_told_by_their_own_size(run: Path) -> None:
    path = run / "analysis" / "analysis.json"
    summary = json.loads(path.read_text())
    summary["encoders"][0] |= {"image_size": 224, "patch_size": 4, "grid": [7, 7]}
    path.write_text(json.dumps(summary))
    _, found = read(write_report(run))
    assert "224 px in 7 x 7 tokens of 32 px" in found.text


def test_similarities_that_are_no_numbers_leave_a_page_that_can_be_read(run: Path) -> None:
    path = run / "analysis" / "run.npz"
    arrays = dict(np.load(path))
    arrays["rank/nearest_similarity"][0, 1] = np.nan
    np.savez(path, **arrays)
    page, _ = read(write_report(run))
    assert "NaN" not in block(page, "inside")
    assert data_of(page)["neighbours"][0]["whole"][0] == [[4, 0.9]]  # type: ignore[index]


def test_figures_of_an_older_analysis_go(run: Path) -> None:
    figures = run / "analysis" / "figures"
    figures.mkdir()
    for name in ("cosine_distance.png", "cosine_distance.svg", "similarity.json", "my own.png"):
        (figures / name).write_bytes(b"old")
    remove_figures(run / "analysis")
    assert [path.name for path in figures.iterdir()] == ["my own.png"]
    page, _ = read(write_report(run))
    assert block(page, "figure-cosine_distance").startswith("data:image/png;base64,")


def test_more_than_four_encoders_are_chosen_from(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    names = ("a", "b", "c", "d", "e")
    write_analysis(folder / "analysis", names, ((2, 2),) * 5)
    _, found = read(write_report(folder))
    assert any("data-chooser" in attributes for _, attributes in found.tags)
    hidden = ["hidden" in attributes for _, attributes in found.tags if "data-panel" in attributes]
    assert hidden == [False, False, False, False, True]


def test_a_joint_analysis_takes_the_place_of_the_runs_own(run: Path, tmp_path: Path) -> None:
    joint = write_analysis(tmp_path / "joint", ("left", "right"), ((4, 4), (2, 2)))
    assert command_line(["report", str(run), "--out", str(tmp_path / "a.html"), "--analysis", str(joint)]) == 0
    assert data_of((tmp_path / "a.html").read_text())["encoders"] == ["left", "right"]
    assert command_line(["report", str(run), "--analysis", str(tmp_path / "nowhere")]) == 2
    with pytest.raises(CheckpointError, match="can't be read as an analysis"):
        write_report(run, analysis=tmp_path / "nowhere")


def test_a_damaged_analysis_leaves_the_rest(run: Path) -> None:
    write_analysis(run / "analysis", ("whole", "broken"), ((4, 4), (4, 4)))
    path = run / "analysis" / "broken.npz"
    path.write_bytes(path.read_bytes()[:500])
    page, found = read(write_report(run))
    assert data_of(page)["encoders"] == ["whole"]
    assert "broken.npz' can't be read" in found.text
    (run / "analysis" / "analysis.json").write_text("{")
    page, found = read(write_report(run))
    assert "can't be read as an analysis" in found.text and 'id="inside"' not in page
    assert "71.2" in found.text


def test_arrays_that_do_not_fit_leave_the_rest(run: Path) -> None:
    path = run / "analysis" / "run.npz"
    arrays = dict(np.load(path))
    arrays["similarity/grid.final"] = np.array([3, 3])
    np.savez(path, **arrays)
    page, found = read(write_report(run))
    assert "The patch explorer can't be shown: the arrays don't fit together" in found.text
    assert 'id="patches"' not in page and 'id="colours"' in page


def test_an_older_analysis_says_what_it_lacks(run: Path) -> None:
    path = run / "analysis" / "run.npz"
    newer = ("images/thumbnails", "embedding/images_pca", "embedding/images_tsne", "rank/nearest")
    np.savez(path, **{key: array for key, array in np.load(path).items() if key not in newer})
    page, found = read(write_report(run))
    assert "kept no thumbnails" in found.text
    assert 'id="neighbours"' not in page and 'id="map"' not in page and 'id="patches"' in page


def test_an_encoder_without_attention_says_so(run: Path) -> None:
    sentence = "Left out: this encoder's tokens attend within windows."
    write_analysis(run / "analysis", notes={"attention": [sentence]})
    path = run / "analysis" / "run.npz"
    np.savez(path, **{key: array for key, array in np.load(path).items() if not key.startswith("attention/")})
    page, _ = read(write_report(run))
    section = Elements(page[page.index('<section id="attention"') : page.index('<section id="colours"')])
    assert "attend within windows" in section.text and not any(tag == "canvas" for tag, _ in section.tags)


def test_a_single_image(run: Path) -> None:
    path = run / "analysis" / "run.npz"
    alone = {}
    for key, array in np.load(path).items():
        first = array[:, :1] if key == "attention/maps" else array[:1]
        whole = key.startswith(("similarity/layers", "similarity/grid", "attention/queries", "geometry"))
        alone[key] = array if whole else first
    del alone["rank/nearest"], alone["embedding/images_pca"], alone["embedding/images_tsne"]
    np.savez(path, **alone)
    page, found = read(write_report(run))
    assert 'id="patches"' in page and 'id="map"' not in page
    assert "can't be shown" not in found.text


def test_numbers_are_in_words(run: Path) -> None:
    page, _ = read(write_report(run))
    table = Elements(page[page.index('<table class="numbers">') :].split("</table>")[0])
    assert "cosine of neighbouring patches 0.75" in table.text
    assert "patch probe, held-out images (%) 50.0" in table.text
    assert "new one 3" in table.text and "RankMe" not in table.text


def test_a_number_keeps_its_digits_and_its_unit() -> None:
    assert number_text("rankme_mean", 999.7) == "1,000"
    assert number_text("attention_distance_last", 99.753) == "99.8 px"
    assert number_row("probe_held_out", [0.5, None, float("nan")]).cells == ["50.0", "", ""]


def test_an_analysis_without_drawn_files_gets_light_figures(run: Path) -> None:
    page, found = read(write_report(run))
    assert [a["data-figure"] for _, a in found.tags if "data-figure" in a] == ["figure-cosine_distance"]
    assert block(page, "figure-cosine_distance").startswith("data:image/png;base64,")
    assert "Only the light figures are here" in found.text
    assert CAPTIONS.keys() >= LIGHT


def test_every_figure_of_an_analysis_has_its_place() -> None:
    assert CAPTIONS.keys() | MOVING == FIGURES.keys() and not CAPTIONS.keys() & MOVING
    assert {key for caption in CAPTIONS.values() for key in caption.numbers} <= WORDS.keys()


def test_drawn_files_are_embedded_small(run: Path) -> None:
    figures = run / "analysis" / "figures"
    figures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (900, 1800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(figures / "cosine_distance.png")
    (figures / "cosine_distance.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Image.new("RGB", (2000, 500), "white").save(figures / "layer_probe.png")
    (figures / "variance.png").write_bytes(b"no picture")
    page, found = read(write_report(run))
    assert block(page, "figure-cosine_distance").startswith("data:image/svg+xml;base64,")
    assert block(page, "figure-layer_probe").startswith("data:image/png;base64,")
    sizes = {a["data-figure"]: (a["width"], a["height"]) for _, a in found.tags if "data-figure" in a}
    assert sizes == {"figure-cosine_distance": ("1400", "700"), "figure-layer_probe": ("1400", "350")}
    assert "'Variance within and across images' can't be shown" in found.text


def hexadecimal(colour: NDArray[np.uint8]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def test_segmentations_are_triples_with_a_legend(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    targets = np.zeros((2, SIZE, SIZE), np.uint8)
    targets[:, 4:, :] = 1
    targets[0, 0, 0] = 255
    np.savez(
        folder / "evaluations" / "viny-segmentation.npz",
        images=np.full((2, SIZE, SIZE, 3), 120, np.uint8), targets=targets, predictions=np.ones_like(targets),
        miou=np.array([0.375, np.nan]), names=np.array(["ground", CLASS_NAMES[1], "unused"]),
    )  # fmt: skip
    page, _ = read(write_report(folder))
    section = Elements(page[page.index('<section id="segmentation"') :].split("</section>")[0])
    pictures = [attributes for tag, attributes in section.tags if tag == "img"]
    assert len(pictures) == 6 and sum("data-triple" in attributes for _, attributes in section.tags) == 2
    assert "mean IoU 37.5 %" in section.text and "mean IoU not defined" in section.text
    assert CLASS_NAMES[1] in section.texts and "no class" in section.texts and "unused" not in section.texts
    target = Image.open(io.BytesIO(base64.b64decode(str(pictures[1]["src"]).split(",")[1]))).convert("RGB")
    colours = re.findall(r"--c:(#\w{6})", page[page.index('aria-label="Colours of the classes"') :])[:3]
    assert hexadecimal(np.asarray(target)[3, 3]) == colours[0]
    assert hexadecimal(np.asarray(target)[9, 3]) == colours[1]
    assert "75.3 % of the pixels right" in str(pictures[0]["alt"])
    assert "<script>alert" not in page


def test_every_class_has_a_colour_of_its_own() -> None:
    for count in (1, 12, 13, 60):
        names = ["background", *(f"class {number}" for number in range(count))]
        colours = class_colours(names)
        assert len(set(colours)) == count + 1 and all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
        assert colours[0] == BACKGROUND


@pytest.mark.parametrize("fault", ["no archive", "other sizes", "not bytes"])
def test_broken_examples_of_a_segmentation_are_named(run: Path, fault: str) -> None:
    path = run / "evaluations" / "viny-segmentation.npz"
    if fault == "no archive":
        path.write_bytes(b"PK")
    else:
        targets = np.zeros((2, 4 if fault == "other sizes" else SIZE, SIZE), np.uint8)
        images = np.zeros((2, SIZE, SIZE, 3), np.float32 if fault == "not bytes" else np.uint8)
        np.savez(path, images=images, targets=targets, predictions=targets, miou=np.zeros(2), names=np.array(["a"]))
    _, found = read(write_report(run))
    assert "evaluations/viny-segmentation.npz can't be read" in found.text

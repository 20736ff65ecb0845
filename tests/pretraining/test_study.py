"""A study on few small images: the whole grid, stopped and grown, and the settings that don't go together."""

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from halfseen.config.load import Layer, load_config
from halfseen.errors import ConfigError, DataError
from halfseen.evaluation.subject import OnProgress
from halfseen.pretraining.study import plan_study, run_study
from halfseen.pretraining.study_config import STUDIES, Condition, StudyConfig, study_settings

TINY = {
    "pretrain": (
        "data.image_size=32", "model.patch_size=8", "model.embed_dim=16", "model.depth=1", "model.num_heads=2",
        "model.head_dim=8", "train.epochs=1", "train.batch_size=32", "train.lr.milestones=[0.5]", "evaluate.knn=false",
        "evaluate.analyze=none",
        "runtime.threads=1", "runtime.precision=fp32",
    ),
    "pretrain_sizes": (0, 32),
    "finetune_sizes": (4, 8),
    "test_size": 6,
    "seeds": (0, 1),
    "classification": {"protocol": "viny-intel", "epochs": 1, "max_train": 16, "max_test": 8},
    "patchwise": {
        "protocol": "viny-spatial", "objective": "patchwise", "epochs": 1, "max_train": 16, "max_test": 8,
    },
    "segmentation": {"epochs": 1, "batch_size": 4},
}  # fmt: skip


def tiny(**changes: object) -> StudyConfig:
    return StudyConfig.model_validate({**TINY, **changes})


def cells_of(out: Path) -> dict[tuple[int, str, int, int], float]:
    content = json.loads((out / "study.json").read_text())
    return {(c["pretrain"], c["intermediate"], c["finetune"], c["seed"]): c["miou"] for c in content["cells"]}


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    run_study(tiny(), out, name="tiny")
    return out


def test_the_whole_grid_is_there(finished: Path) -> None:
    conditions = [(0, "none"), (32, "none"), (32, "classification"), (32, "patchwise")]
    cells = cells_of(finished)
    assert cells.keys() == {(*each, size, seed) for each in conditions for size in (4, 8) for seed in (0, 1)}
    assert len(set(cells.values())) > 8  # every condition, size and seed is a training of its own
    content = json.loads((finished / "study.json").read_text())
    assert (content["name"], content["planned"]) == ("tiny", 16)
    assert {(s["intermediate"], s["seed"]) for s in content["stages"]} == {
        (stage, seed) for stage in ("classification", "patchwise") for seed in (0, 1)
    }
    assert "| pre-trained on 32 images, then patchwise |" in (finished / "study.md").read_text()
    assert {path.name for path in finished.glob("*.svg")} == {"miou_by_finetune_size.svg", "change_by_intermediate.svg"}
    result = json.loads((finished / "segmentation/32-none-8-seed1/viny-segmentation.json").read_text())
    assert (result["n_train"], result["n"], result["seed"]) == (8, 6, 1)


def test_what_is_finished_is_read_and_the_grid_may_grow(finished: Path) -> None:
    before, cells = stamps(finished), cells_of(finished)
    plan = plan_study(tiny(), finished)
    assert plan == ((1, 1), (4, 4), (16, 16))
    run_study(tiny(), finished)
    assert stamps(finished) == before
    grown = tiny(finetune_sizes=(4, 6, 8), seeds=(0,))
    assert plan_study(grown, finished).segmentations == (12, 8)
    run_study(grown, finished)
    after = cells_of(finished)
    assert len(after) == 12 and all(after[key] == cells[key] for key in after.keys() & cells.keys())
    assert before.items() <= stamps(finished).items()


def test_a_study_that_was_stopped_ends_in_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    calls = 0

    @contextlib.contextmanager
    def stopping() -> Iterator[OnProgress]:
        def note(words: str, done: int, of: int) -> None:
            nonlocal calls
            calls += "training: encoder" in words
            if calls == 3 and "training: encoder" in words:
                signal.raise_signal(signal.SIGINT)

        yield note

    config = tiny(
        seeds=(0,),
        finetune_sizes=(8,),
        intermediates=("none", "patchwise"),
        segmentation={"epochs": 1, "batch_size": 2},
    )
    whole = tmp_path / "whole"
    run_study(config, whole)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "stopped", watching=stopping)
    assert len(cells_of(tmp_path / "stopped")) < 3
    run_study(config, tmp_path / "stopped")
    assert cells_of(tmp_path / "stopped") == cells_of(whole)


def test_other_settings_in_the_same_folder_are_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"segmentation.epochs: got 2, but the study in .* was begun with 1"):
        run_study(tiny(segmentation={"epochs": 2, "batch_size": 4}), finished)
    with pytest.raises(ConfigError, match="pretrain: got"):
        plan_study(tiny(pretrain=(*TINY["pretrain"], "train.lr.base=1e-4")), finished)
    with pytest.raises(ConfigError, match="the first of seeds: got 1"):
        plan_study(tiny(seeds=(1, 0)), finished)
    plan_study(tiny(pretrain=(*TINY["pretrain"], "runtime.threads=2")), finished)


def test_other_images_in_the_same_folder_are_refused(image_folder: Path, tmp_path: Path) -> None:
    few = {"pretrain_sizes": (32,), "intermediates": ("classification",), "finetune_sizes": (4,), "seeds": (0,)}
    config = tiny(classification_data=str(image_folder), **few)
    run_study(config, tmp_path / "out")
    assert plan_study(config, tmp_path / "out").segmentations == (1, 1)
    sorted(image_folder.rglob("*.png"))[0].unlink()
    with pytest.raises(DataError, match=r"images \(train\)' holds other images, labels or masks than when the study"):
        plan_study(config, tmp_path / "out")


def test_parts_are_the_same_whether_pretraining_ran_in_this_process(finished: Path, tmp_path: Path) -> None:
    """Sums of many numbers depend on the number of threads, which pre-training sets for the whole process."""
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    found: set[int] = set()

    @contextlib.contextmanager
    def watching() -> Iterator[OnProgress]:
        yield lambda words, done, of: found.add(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run_study(tiny(seeds=(0,), finetune_sizes=(4,)), tmp_path, watching=watching)
    finally:
        torch.set_num_threads(before)
    assert found == {1}
    made = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors") if "pretrain" not in path.parts]
    assert len(made) > 8
    assert all((tmp_path / path).read_bytes() == (finished / path).read_bytes() for path in made)


def test_what_was_seen_before_is_in_the_results(finished: Path) -> None:
    pretrained = json.loads((finished / "segmentation/32-patchwise-4-seed0/viny-segmentation.json").read_text())
    assert "Pre-training used another set of images than the classified ones, and no labels." in pretrained["notes"]
    assert not any("has learned labels or masks" in note for note in pretrained["notes"])


def test_stages_do_not_learn_from_what_is_tested(tmp_path: Path) -> None:
    """With images of both splits the stage's own training images would be among those of the test."""
    plan_study(tiny(own_splits=True, intermediates=("patchwise",)), tmp_path)
    plan_study(tiny(own_splits=False, intermediates=("none",)), tmp_path)
    plan_study(tiny(own_splits=False, pretrain_sizes=(0,)), tmp_path)
    with pytest.raises(ConfigError, match="patchwise_data: the stage would learn from 'bundled:fashion-scenes', and"):
        plan_study(tiny(own_splits=False, intermediates=("patchwise",)), tmp_path)
    other = tiny(own_splits=False, classification_data="bundled:fashion", intermediates=("classification",))
    plan_study(other, tmp_path)


def test_pretraining_for_each_seed_makes_runs_of_their_own(tmp_path: Path) -> None:
    config = tiny(pretrain_each_seed=True)
    assert plan_study(config, tmp_path).pretrainings == (2, 0)
    config = tiny(pretrain_each_seed=True, intermediates=("none",), finetune_sizes=(4,), pretrain_sizes=(32,))
    run_study(config, tmp_path)
    runs = sorted(path.name for path in (tmp_path / "pretrain").iterdir())
    assert runs == ["32-seed0", "32-seed1"]
    weights = [(tmp_path / "pretrain" / name / "encoder.safetensors").read_bytes() for name in runs]
    assert weights[0] != weights[1]


def test_images_of_both_splits_together_are_drawn_as_viny_does(tmp_path: Path) -> None:
    grid = {"pretrain_sizes": (0, 32), "intermediates": ("none",), "finetune_sizes": (4,), "seeds": (0,)}
    config = tiny(own_splits=False, split_seed=1, **grid)
    run_study(config, tmp_path)
    result = json.loads((tmp_path / "segmentation/0-none-4-seed0/viny-segmentation.json").read_text())
    assert (result["settings"]["train_size"], result["settings"]["test_size"]) == (4, 6)
    assert (result["settings"]["split_seed"], result["n_train"], result["n"]) == (1, 4, 6)
    pretrained = json.loads((tmp_path / "segmentation/32-none-4-seed0/viny-segmentation.json").read_text())
    assert any("of which some or all were seen in pre-training" in note for note in pretrained["notes"])


def test_the_split_seed_chooses_other_images(tmp_path: Path) -> None:
    found = []
    for seed in (42, 43):
        config = tiny(pretrain_sizes=(0,), finetune_sizes=(4,), seeds=(0,), split_seed=seed)
        run_study(config, tmp_path / str(seed))
        folder = tmp_path / str(seed) / "segmentation" / "0-none-4-seed0"
        found.append(json.loads((folder / "viny-segmentation.json").read_text())["data"])
    assert found[0]["train"]["fingerprint"] != found[1]["train"]["fingerprint"]
    assert found[0]["test"]["fingerprint"] != found[1]["test"]["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pretrain_sizes": (0, 20_000)}, r"pretrain_sizes: got 20000, but .* has 10000 images"),
        ({"finetune_sizes": (4, 20_000)}, r"finetune_sizes: got 20000, but .* has 10000 images for fine-tuning"),
        ({"test_size": 5000}, r"test_size: got 5000, but .* has 2000 images for testing"),
        ({"segmentation_data": "bundled:fashion"}, "has no mask"),
        ({"patchwise_data": "bundled:fashion"}, "needs a mask for each image"),
    ],
)
def test_data_that_do_not_go_with_the_grid_are_said_first(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence):
        run_study(tiny(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_without_a_test_split_need_the_joint_draw(image_folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    for kind in ("images", "masks"):
        (plain / kind).mkdir(parents=True)
    for number, path in enumerate(sorted(image_folder.rglob("*.png"))[:12]):
        shutil.copy(path, plain / "images" / f"{number}.png")
        mask = Image.new("L", (32, 32), 0)
        mask.paste(1, (0, 0, 16, 16))
        mask.save(plain / "masks" / f"{number}.png")
    with pytest.raises(DataError, match="has no test split"):
        plan_study(tiny(segmentation_data=str(plain)), tmp_path / "out")
    plan_study(tiny(segmentation_data=str(plain), own_splits=False, test_size=3), tmp_path / "out")


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        run_study(tiny(), tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"finetune_sizes": (8, 4)}, "ascending"),
        ({"pretrain_sizes": (32, 32)}, "ascending"),
        ({"seeds": (0, 0)}, "each once"),
        ({"intermediates": ("none", "none")}, "each once"),
        ({"segmentation": {"train_size": 4, "test_size": 2}}, "finetune_sizes"),
        ({"own_splits": False, "test_size": None}, "test_size: missing"),
        ({"pretrain_sizes": (0,), "pretrain_each_seed": True}, "no effect"),
        ({"intermediates": ("none",), "classification_data": "photos"}, "no effect"),
        ({"patchwise": {"protocol": "x"}}, "what their names say"),
    ],
)
def test_grids_that_make_no_sense_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        tiny(**changes)


def test_the_shipped_grids_are_what_they_say() -> None:
    mini, viny = (
        load_config(StudyConfig, [Layer(name, json.loads(json.dumps(study_settings(name))))]).config for name in STUDIES
    )
    assert len(mini.cells) == 36 and mini.conditions[0] == Condition(0, "none")
    assert len(viny.conditions) == 7 and len(viny.cells) == 126
    assert (viny.classification.epochs, viny.classification.mixup_alpha) == (200, 0.1)
    assert (viny.segmentation.epochs, viny.segmentation.lr, viny.own_splits) == (100, 2e-3, False)
    with pytest.raises(ConfigError, match="expected one of miniature, viny"):
        study_settings("minature")

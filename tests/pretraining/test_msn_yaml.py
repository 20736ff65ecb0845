"""The published files of MSN: what each key becomes, and what is said where one can't be followed."""

import re
from pathlib import Path

import pytest
import yaml

from command_line import run
from halfseen.backbones.build import build_encoder
from halfseen.config.load import leaves, load_config
from halfseen.config.recipes import recipe_layer
from halfseen.config.yaml_text import parse_settings
from halfseen.engine.config import science_settings
from halfseen.errors import ConfigError
from halfseen.pretraining.config import RunConfig
from halfseen.pretraining.msn_yaml import (
    ALWAYS,
    NEEDED,
    RENAMED,
    WITHOUT_EFFECT,
    LoadedMSNFile,
    ModelName,
    MSNFile,
    load_msn_file,
)

PUBLISHED = """
criterion:
  ent_weight: 0.0
  final_sharpen: 0.25
  me_max: true
  memax_weight: 1.0
  num_proto: 1024
  start_sharpen: 0.25
  temperature: 0.1
  batch_size: 64
  use_ent: true
  use_sinkhorn: true
data:
  color_jitter_strength: 0.5
  pin_mem: true
  num_workers: 10
  image_folder: imagenet_full_size/061417/
  label_smoothing: 0.0
  patch_drop: 0.15
  rand_size: 224
  focal_size: 96
  rand_views: 1
  focal_views: 10
  root_path: /datasets01/
logging:
  folder: outputs/
  write_tag: msn-experiment-1
meta:
  bottleneck: 1
  copy_data: false
  drop_path_rate: 0.0
  hidden_dim: 2048
  load_checkpoint: false
  model_name: deit_small
  output_dim: 256
  read_checkpoint: null
  use_bn: true
  use_fp16: false
  use_pred_head: false
optimization:
  clip_grad: 3.0
  epochs: 800
  final_lr: 1.0e-06
  final_weight_decay: 0.4
  lr: 0.001
  start_lr: 0.0002
  warmup: 15
  weight_decay: 0.04
"""
TINY = {
    "criterion.batch_size": 4,
    "criterion.num_proto": 8,
    "data.rand_size": 32,
    "data.focal_size": 16,
    "data.focal_views": 2,
    "data.num_workers": 0,
    "meta.model_name": "deit_tiny",
    "meta.hidden_dim": 16,
    "meta.output_dim": 8,
    "optimization.epochs": 1,
    "optimization.warmup": 0.5,
}


def write(tmp_path: Path, changes: dict[str, object] | None = None, without: tuple[str, ...] = ()) -> Path:
    """The published file with some keys changed (or added) or left out."""
    values = yaml.safe_load(PUBLISHED)
    for dotted, value in (changes or {}).items():
        section, key = dotted.split(".")
        values[section][key] = value
    for dotted in without:
        section, key = dotted.split(".")
        del values[section][key]
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def read(tmp_path: Path, changes: dict[str, object] | None = None, without: tuple[str, ...] = ()) -> LoadedMSNFile:
    return load_msn_file(write(tmp_path, changes, without), 1)


def sentence(found: LoadedMSNFile, key: str) -> str:
    (one,) = [text for text in found.sentences if text.split()[0] == key]
    return one


def test_the_published_file_is_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    loaded, sentences = load_msn_file(path, processes=16)
    recipe = load_config(RunConfig, [recipe_layer("msn_vit_small_imagenet1k_800ep")]).config
    found, expected = (science_settings(config.model_dump(mode="json")) for config in (loaded.config, recipe))
    assert found.pop("data.source") == "/datasets01/imagenet_full_size/061417"
    expected.pop("data.source")
    assert found == expected
    assert loaded.config.evaluate == recipe.evaluate
    assert loaded.config.runtime.precision == "fp32" and loaded.config.runtime.workers == 10
    assert loaded.config.run_dir == "outputs/msn-experiment-1"
    given = [f"{section}.{key}" for section, group in parse_settings(PUBLISHED, "x").items() for key in group]
    assert {text.split()[0] for text in sentences} == {*given, "criterion.freeze_proto"}
    assert len(sentences) == len(given) + 1


def test_each_key_has_one_place_in_the_tables() -> None:
    keys = set(leaves(MSNFile.model_validate(yaml.safe_load(PUBLISHED))))
    assert len(keys) == 44
    special = {"criterion.batch_size", "data.root_path", "data.image_folder", "logging.folder", "logging.write_tag"}
    tables = [*RENAMED, *WITHOUT_EFFECT, *special, "meta.model_name"]
    assert sorted(tables) == sorted(keys)
    assert set(NEEDED) | set(NEEDED.values()) <= set(RENAMED)
    assert not set(ALWAYS) & set(RENAMED.values())


def test_the_sentences_name_both_sides(tmp_path: Path) -> None:
    found = read(tmp_path, {"meta.use_fp16": True, "meta.copy_data": True, "optimization.lr": 0.002})
    for key, text in {
        "criterion.batch_size": "criterion.batch_size 64 -> train.batch_size 64 (64 images on each of 1 process).",
        "criterion.num_proto": "criterion.num_proto 1024 -> method.num_prototypes 1024.",
        "meta.model_name": "meta.model_name 'deit_small' -> model.name 'vit_small', model.patch_size 16.",
        "optimization.lr": "optimization.lr 0.002 -> train.lr.base 0.002 (not scaled by the batch).",
    }.items():
        assert sentence(found, key) == text
    for key, word in {
        "meta.use_fp16": "runtime.precision=bf16",
        "meta.copy_data": "DATA",
        "data.pin_mem": "cuda",
    }.items():
        assert ": no effect, " in sentence(found, key) and word in sentence(found, key)


@pytest.mark.parametrize(
    ("name", "model", "patch_size"),
    [
        ("deit_tiny", "vit_tiny", 16),
        ("deit_small_p7", "vit_small", 7),
        ("deit_base_p4", "vit_base", 4),
        ("deit_large", "vit_large", 16),
        ("deit_huge", "vit_huge", 16),  # The preset's own patches are 14 pixels.
        ("deit_huge_p10", "vit_huge", 10),
        ("vitc_4gf", "vitc_4gf", None),
        ("deit_small_convstem", "vit_small_convstem", None),
    ],
)
def test_models(name: ModelName, model: str, patch_size: int | None, tmp_path: Path) -> None:
    found = read(tmp_path, {"meta.model_name": name}).loaded.config.model
    assert (found.name, found.patch_size, found.position_rule) == (model, patch_size, "scale")


@pytest.mark.parametrize(
    ("name", "side", "cut"),
    [
        ("deit_huge_p10", 224, True),
        ("deit_small_p7", 224, False),
        ("deit_small", 224, False),
        ("deit_small", 100, True),
    ],
)
def test_a_side_that_fills_no_whole_patch_is_cut_as_published(
    name: ModelName, side: int, cut: bool, tmp_path: Path
) -> None:
    found = read(tmp_path, {"meta.model_name": name, "data.rand_size": side}).loaded.config
    assert found.model.crop_to_patches is cut
    build_encoder(found.model.model_copy(update={"depth": 1}), found.data.image_size)


@pytest.mark.parametrize(
    ("changes", "without", "key", "setting", "value"),
    [
        ({"criterion.me_max": False, "criterion.memax_weight": 5.0}, (), "criterion.memax_weight", "memax_weight", 1.0),
        ({"criterion.use_ent": False, "criterion.ent_weight": 0.5}, (), "criterion.ent_weight", "ent_weight", 0.0),
        ({"data.focal_views": 0, "data.focal_size": 64}, (), "data.focal_size", "focal_size", 96),
        ({}, ("criterion.use_ent", "criterion.ent_weight"), "criterion.ent_weight", "use_ent", False),
    ],
)
def test_weights_of_what_is_switched_off_are_left_aside(
    changes: dict[str, object], without: tuple[str, ...], key: str, setting: str, value: object, tmp_path: Path
) -> None:
    found = read(tmp_path, changes, without)
    assert getattr(found.loaded.config.method, setting) == value
    assert f": no effect, as {NEEDED[key]} is " in sentence(found, key)


def test_absent_weights_count_as_in_the_original(tmp_path: Path) -> None:
    found = read(tmp_path, without=("criterion.memax_weight", "criterion.ent_weight", "data.num_workers"))
    method = found.loaded.config.method
    assert (method.memax_weight, method.ent_weight, found.loaded.config.runtime.workers) == (1.0, 1.0, 1)
    assert "1.0 (not in the file) -> method.ent_weight 1.0" in sentence(found, "criterion.ent_weight")


def test_no_clipping_and_no_warm_up(tmp_path: Path) -> None:
    found = read(tmp_path, {"optimization.clip_grad": 0.0, "optimization.warmup": 0})
    assert found.loaded.config.train.clip_norm is None
    assert (found.loaded.config.train.lr.warmup_epochs, found.loaded.config.train.lr.warmup_start) == (0.0, 0.0)
    assert "no effect, as optimization.warmup is 0" in sentence(found, "optimization.start_lr")


def test_words_and_a_second_file_are_stronger(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("train:\n  epochs: 3\n")
    found = load_msn_file(write(tmp_path), 2, own, ["data.source=photos", "method.patch_drop_scope=per_sample"])
    config = found.loaded.config
    assert (config.train.epochs, config.train.batch_size, config.data.source) == (3, 128, "photos")
    assert config.method.patch_drop_scope == "per_sample"
    assert sentence(found, "optimization.epochs").endswith(f", overruled by file '{own}'.")
    assert sentence(found, "data.root_path").endswith(", overruled by data.source=photos.")
    assert "overruled" not in sentence(found, "optimization.lr")


@pytest.mark.parametrize(
    ("changes", "without", "sentences"),
    [
        ({}, ("criterion.temperature",), ["criterion.temperature: missing, expected a float > 0"]),
        ({"criterion.num_prot": 5}, (), ["criterion.num_prot: unknown key. Did you mean 'criterion.num_proto'?"]),
        ({"criterion.num_proto": 0}, (), ["criterion.num_proto: got 0, expected an integer >= 2"]),
        ({"data.patch_drop": 15}, (), ["data.patch_drop: got 15, expected a float in [0, 1). Write 0.15 for 15 %"]),
        ({"data.rand_views": 0, "data.focal_views": 0}, (), ["data.rand_views: got 0", "one anchor view is needed"]),
        ({"meta.model_name": "deit_smal"}, (), ["meta.model_name: unknown 'deit_smal'", "Did you mean 'deit_small'?"]),
        ({"meta.load_checkpoint": True}, (), ["meta.load_checkpoint: got true", "--resume RUN"]),
        ({"optimization.final_lr": 0.1}, (), ["optimization.final_lr: got 0.1, which is above lr = 0.001"]),
        (
            {"criterion.use_sinkhorn": 1, "meta.hidden_dim": 2.5, "optimization.warmup": "long"},
            (),
            ["criterion.use_sinkhorn: got 1", "meta.hidden_dim: got 2.5", "optimization.warmup: got 'long'"],
        ),
    ],
)
def test_what_can_not_be_followed_is_said(
    changes: dict[str, object], without: tuple[str, ...], sentences: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, changes, without)
    for each in sentences:
        assert each in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("method:\n  name: msn\n")
    with pytest.raises(ConfigError, match=r"(?s)criterion: missing.*method: unknown key"):
        load_msn_file(path, 1)


@pytest.mark.parametrize("words", [("--recipe", "mae_small"), ("--resume", "runs/first")])
def test_one_option_says_which_run_it_is(words: tuple[str, str], tmp_path: Path) -> None:
    done = run("pretrain", "--msn-config", str(write(tmp_path)), *words, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--msn-config and {words[0]} both say which run this is" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_published_file_trains(processes: int, tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    sizes = ("model.embed_dim=24", "model.depth=2", "data.subset_size=32", "runtime.threads=1", "runtime.device=cpu")
    options = () if processes == 1 else ("--devices", "2")
    done = run(
        "pretrain", "bundled:fashion", "--msn-config", str(path), *options, *sizes, "evaluate.knn=false",
        "train.max_steps=2", "train.log_every_steps=1", "train.health_every_steps=null", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("criterion.batch_size 4 -> train.batch_size") == 1
    assert re.search(rf"train\.batch_size {4 * processes} \(4 images on each of {processes} ", done.stderr)
    written = yaml.safe_load((tmp_path / "outputs" / "msn-experiment-1" / "config.yaml").read_text())
    assert written["train"]["batch_size"] == 4 * processes
    lines = (tmp_path / "outputs" / "msn-experiment-1" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all('"prototypes_used"' in line and '"sharpening"' in line for line in lines)

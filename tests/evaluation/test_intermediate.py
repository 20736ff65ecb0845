"""Intermediate stages: what is learned from what, written, resumed bit by bit, and refused in sentences."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from evaluation.subjects import subject_of
from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import load_encoder
from halfseen.data.config import DataConfig
from halfseen.data.sources import ArraySource, Source, open_source
from halfseen.errors import CheckpointError, ConfigError, DataError, ShapeError
from halfseen.evaluation.intermediate.config import (
    INTERMEDIATE_PROTOCOLS,
    IntermediateConfig,
    intermediate_settings,
)
from halfseen.evaluation.intermediate.models import with_class_token
from halfseen.evaluation.intermediate.protocol import intermediate_stage
from halfseen.evaluation.intermediate.saved import StageResult, keep_encoder
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.protocol import segmentation_protocol
from halfseen.evaluation.statements import Split
from parity.discovery import load_arrays, parity_files, state_under

VINY = {"name": "viny_4m", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "head_dim": 8}
SWIN = {"name": "swin_tiny", "patch_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": 2, "window_size": 4}
VIT = {"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def encoder_of(model: dict[str, object] = VINY, image_size: int = 32) -> Encoder:
    torch.manual_seed(1)
    return build_encoder(ModelConfig.model_validate(model), image_size)


def settings(name: str = "classification", **changes: object) -> IntermediateConfig:
    quick = {"epochs": 2, "batch_size": 16, "milestones": ()}
    return IntermediateConfig.model_validate({**intermediate_settings(name), **quick, **changes})


def run(
    train: Split,
    out: Path,
    config: IntermediateConfig | None = None,
    test: Split | None = None,
    encoder: Encoder | None = None,
    **changes: object,
) -> StageResult:
    subject, rest = subject_of(encoder or encoder_of(), None, **changes)
    return intermediate_stage(subject, train, test, config or settings(), out=out, **rest)


def weights(result: StageResult) -> dict[str, Tensor]:
    return load_file(result.weights)


def same(first: StageResult, second: StageResult) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def scenes() -> Source:
    return open_source("bundled:fashion-scenes", config=DataConfig(source="bundled:fashion-scenes", image_size=40))


@pytest.fixture(scope="module")
def train(scenes: Source) -> Split:
    return Split(scenes.subset(np.arange(40)), "train")


@pytest.fixture(scope="module")
def test(scenes: Source) -> Split:
    return Split(scenes.subset(np.arange(40, 60)), "test")


def stripes(count: int, seed: int) -> Split:
    """Two classes of pictures that a few steps tell apart: stripes that lie or stand."""
    drawing = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = drawing.integers(0, 60, (count, 32, 32, 3))
    bright = np.arange(32) % 4 < 2
    images[np.ix_(labels == 0, bright)] += 180
    images[np.ix_(labels == 1, np.full(32, True), bright)] += 180
    return Split(ArraySource("stripes", images.astype(np.uint8), labels, ("lying", "standing")), f"set{seed}")


@pytest.mark.parametrize("model", [VINY, VIT, SWIN], ids=["viny", "vit", "swin"])
def test_classification_is_learned_and_the_encoder_is_taken_by_every_command(
    model: dict[str, object], tmp_path: Path
) -> None:
    encoder = encoder_of(model)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = run(stripes(64, 0), tmp_path, settings(epochs=6, contrast=0.0), stripes(32, 1), encoder)
    assert found.result.metrics["top1"] == found.result.metrics["top1_test"] > 90
    assert found.result.metrics["top1_train"] > 90
    assert found.result.baselines["largest_class"]["top1"] == 50.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    loaded = load_encoder(tmp_path)
    assert (loaded.encoder.config, loaded.encoder.has_class_token) == (encoder.config, encoder.has_class_token)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.25,) * 3)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.encoder.eval()(images).patches, found.encoder(images).patches)
    head = load_file(tmp_path / "head.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {
        "head.weight": (2, encoder.embed_dim),
        "head.bias": (2,),
    }
    about = json.loads((tmp_path / "encoder.json").read_text())
    assert about["head"]["classes"] == ["lying", "standing"]
    assert about["head"]["reads"] == ("mean of the patch tokens" if model is SWIN else "class token")
    assert about["intermediate"]["protocol"] == "viny-intel"


def test_the_class_token_of_viny_learns_and_then_rests(tmp_path: Path) -> None:
    encoder = encoder_of()
    twin = with_class_token(encoder)
    assert twin.has_class_token and not encoder.has_class_token
    found = run(stripes(16, 0), tmp_path, encoder=encoder)
    assert not torch.equal(weights(found)["cls_token"], encoder.trunk.cls_token)
    assert not torch.equal(weights(found)["pos_embed"][:, 0], encoder.trunk.pos_embed[:, 0])
    assert not found.encoder.has_class_token
    assert any("looks at patches without it" in note for note in found.result.notes)


@pytest.mark.parametrize("model", [VINY, SWIN], ids=["viny", "swin"])
def test_patchwise_labels_are_learned(model: dict[str, object], train: Split, test: Split, tmp_path: Path) -> None:
    first = run(train, tmp_path / "a", settings("patchwise", epochs=1), test, encoder_of(model))
    found = run(train, tmp_path / "b", settings("patchwise", epochs=40, lr=3e-3), test, encoder_of(model))
    result = found.result
    assert result.metrics["top1_train"] > max(first.result.metrics["top1_train"], 1.0)
    assert result.metrics["top1_train"] > result.baselines["largest_class"]["top1_train"]
    assert (result.n, result.n_train, result.num_classes) == (20, 40, 11)
    assert result.per_class[0].name == "background" and sum(row.n for row in result.per_class) == 20 * 16
    low, high = result.confidence_interval["encoder"]
    assert low <= result.metrics["top1"] <= high
    assert (load_encoder(tmp_path / "b").mean, load_encoder(tmp_path / "b").std) == ((0.0,) * 3, (1.0,) * 3)
    about = json.loads((tmp_path / "b" / "encoder.json").read_text())
    assert about["head"]["reads"] == "patch tokens" and len(about["head"]["classes"]) == 11
    assert len(result.curves["loss"]) == len(result.curves["epoch"]) and result.curves["epoch"][-1] == 40
    assert result.curves["loss"][-1] < result.curves["loss"][0]


def test_interrupted_and_resumed_equals_unbroken(train: Split, tmp_path: Path) -> None:
    config = settings("classification", epochs=3, mixup_alpha=0.5)
    unbroken = run(train, tmp_path / "unbroken", config)

    def stop(words: str, done: int, of: int) -> None:
        if words.startswith("training") and done >= 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(train, tmp_path / "broken", config, on_progress=stop)
    assert not (tmp_path / "broken" / "encoder.json").exists()
    resumed = run(train, tmp_path / "broken", config, resume=True)
    assert same(resumed, unbroken)
    assert resumed.result.metrics == unbroken.result.metrics
    assert resumed.result.curves == unbroken.result.curves


def test_a_finished_stage_is_read_not_repeated(train: Split, test: Split, tmp_path: Path) -> None:
    first = run(train, tmp_path)
    stamp = (tmp_path / "encoder.safetensors").stat().st_mtime_ns
    again = run(train, tmp_path, resume=True)
    assert again.result == first.result and same(again, first)
    assert (tmp_path / "encoder.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="holds a stage already"):
        run(train, tmp_path)
    with pytest.raises(CheckpointError, match="other settings, images or weights"):
        run(train, tmp_path, settings(lr=1e-4), resume=True)
    with pytest.raises(CheckpointError, match="other settings, images or weights"):
        run(train, tmp_path, encoder=encoder_of({**VINY, "norm_eps": 1e-4, "depth": 2}), resume=True)
    with pytest.raises(CheckpointError, match="other settings, images or weights"):
        run(train, tmp_path, test=test, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"batch_size": 8},
        {"lr": 1e-4},
        {"weight_decay": 0.1},
        {"milestones": (1,)},
        {"mixup_alpha": 1.0},
        {"resize": "bilinear"},
        {"flip": 0.0},
        {"contrast": 0.0},
        {"normalise": False},
        {"max_train": 20},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_something(train: Split, changes: dict[str, object], tmp_path: Path) -> None:
    base = run(train, tmp_path / "base", settings(mixup_alpha=None))
    other = run(train, tmp_path / "other", settings(**{"mixup_alpha": None, **changes}))
    assert not same(base, other)
    assert other.result.n_train == changes.get("max_train", 40)


def test_gamma_is_the_factor_at_a_milestone(train: Split, tmp_path: Path) -> None:
    some = run(train, tmp_path / "a", settings(milestones=(1,)))
    other = run(train, tmp_path / "b", settings(milestones=(1,), gamma=0.5))
    assert not same(some, other)


def test_seeds_differ_and_the_test_images_have_no_influence(train: Split, test: Split, tmp_path: Path) -> None:
    base = run(train, tmp_path / "a")
    assert same(base, run(train, tmp_path / "b", test=test))
    assert not same(base, run(train, tmp_path / "c", seed=1))
    few = run(train, tmp_path / "d", settings(max_test=7), test)
    assert same(base, few) and few.result.n == 7


def test_test_images_that_lack_a_class_are_counted_in_the_right_ones(tmp_path: Path) -> None:
    train, test = stripes(64, 0), stripes(32, 1).source
    standing = np.flatnonzero(test.labels == 1)
    images = np.stack([test.read(int(row)) for row in standing])
    alone = Split(ArraySource("alone", images, np.zeros(len(standing), np.int64), ("standing",)), "test")
    result = run(train, tmp_path, settings(epochs=6, contrast=0.0), alone).result
    assert result.metrics["top1"] > 90 and [row.name for row in result.per_class] == ["standing"]


def test_without_test_images_the_result_says_so(train: Split, tmp_path: Path) -> None:
    result = run(train, tmp_path).result
    assert result.metrics["top1"] == result.metrics["top1_train"] and "top1_test" not in result.metrics
    assert any("no test images with labels" in note for note in result.notes)
    assert result.split == "train" and set(result.data) == {"train"}


def test_whose_labels_were_learned_is_handed_on(tmp_path: Path) -> None:
    train = stripes(12, 0)
    subject, _ = subject_of(encoder_of(), None, taught_on=("before",))
    intermediate_stage(subject, train, None, settings(epochs=1), out=tmp_path / "stage")
    keep_encoder(subject, tmp_path / "kept")
    assert {"before", train.source.fingerprint()} <= set(load_encoder(tmp_path / "stage").taught_on)
    assert load_encoder(tmp_path / "kept").taught_on == ("before",)


@pytest.mark.parametrize("own", [True, False], ids=["learned", "others"])
def test_a_segmentation_says_whether_masks_of_its_test_images_were_learned(
    own: bool, train: Split, test: Split, tmp_path: Path
) -> None:
    if not own:
        config = DataConfig(source="bundled:fashion-scenes", image_size=40)
        test = Split(open_source("bundled:fashion-scenes", "test", config=config), "test")
    run(train, tmp_path / "stage", settings("patchwise", epochs=1))
    loaded = load_encoder(tmp_path / "stage")
    subject, rest = subject_of(loaded.encoder, None, taught_on=loaded.taught_on)
    quick = SegmentationConfig.model_validate({"epochs": 1})
    result = segmentation_protocol(subject, train, Split(test.source.subset(np.arange(10)), "test"), quick, **rest)
    assert any("has learned labels or masks" in note for note in result.notes) is own


def test_the_encoder_can_be_kept_beside_its_descendants(tmp_path: Path) -> None:
    encoder = encoder_of()
    subject, _ = subject_of(encoder, None)
    keep_encoder(subject, tmp_path)
    kept = load_encoder(tmp_path).encoder.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(ConfigError, match="holds an encoder already"):
        keep_encoder(subject, tmp_path)
    keep_encoder(subject, tmp_path, resume=True)
    with torch.no_grad():
        next(encoder.parameters()).add_(1)
    with pytest.raises(CheckpointError, match="holds another encoder than"):
        keep_encoder(subject, tmp_path, resume=True)


@pytest.mark.parametrize(
    "path", parity_files("simmim", "vit_seed_simmim") + parity_files("simmim", "vit_seed_finetune")
)
def test_whole_models_of_viny_are_taken(path: Path, tmp_path: Path) -> None:
    """`mim_*.pth` with decoder and mask token, or a segmentation model with heads: the encoder is what counts."""
    arrays = load_arrays(path)
    state = state_under(arrays, "sd/")
    if path.name.startswith("vit_seed_finetune"):
        width = state["encoder.cls_token"].shape[-1]
        state |= {"encoder.head.weight": torch.zeros(6, width), "encoder.head.bias": torch.zeros(6)}
    torch.save(state, tmp_path / "mim_tiny.pth")
    loaded = load_encoder(tmp_path / "mim_tiny.pth", num_heads=int(arrays["meta/heads"]))
    drawing = np.random.default_rng(0)
    images = drawing.integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
    data = Split(ArraySource("noise", images, np.array([0, 1, 0, 1]), ("a", "b")), "train")
    found = run(data, tmp_path / "out", settings(lr=1e-12), encoder=loaded.encoder)
    trained = weights(found)
    torch.testing.assert_close(trained["pos_embed"], state["encoder.pos_embedding"], rtol=0, atol=1e-6)
    assert not any(name.startswith(("head", "mlp", "decoder")) for name in trained)


def unlabelled(count: int = 8) -> Split:
    images = np.zeros((count, 32, 32, 3), np.uint8)
    return Split(ArraySource("bare", images, np.full(count, -1), ()), "train")


def test_what_cannot_be_learned_is_said(train: Split, scenes: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 8 training images of 'bare' has one"):
        run(unlabelled(), tmp_path)
    with pytest.raises(DataError, match=r"needs a mask for each image, but 'bare' \(train\) has none"):
        run(unlabelled(), tmp_path, settings("patchwise"))
    with pytest.raises(DataError, match=r"needs a mask for each image, but 'stripes' \(set1\) has none"):
        run(train, tmp_path, settings("patchwise"), stripes(8, 1))
    one = scenes.subset(np.flatnonzero(scenes.labels == scenes.labels[0])[:8])
    with pytest.raises(DataError, match="at least 2 classes among the training images"):
        run(Split(one, "train"), tmp_path)
    with pytest.raises(DataError, match="has classes that"):
        run(train, tmp_path, test=stripes(8, 1))
    cropping = encoder_of({**VIT, "crop_to_patches": True}, image_size=36)
    with pytest.raises(ShapeError, match="got 36, which is no multiple of the 8 pixels"):
        run(train, tmp_path, settings("patchwise"), encoder=cropping)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        run(train, tmp_path / "file")


def test_the_published_stages() -> None:
    found = {name: IntermediateConfig.model_validate(intermediate_settings(name)) for name in INTERMEDIATE_PROTOCOLS}
    intel = found["viny-intel"]
    assert (intel.epochs, intel.lr, intel.milestones, intel.gamma, intel.mixup_alpha, intel.resize) == (
        200, 8e-4, (180, 190), 0.1, 0.1, "nearest",
    )  # fmt: skip
    diagnostics = [found[name] for name in ("viny-cls-intel", "viny-cls-pets", "viny-spatial")]
    assert {(each.epochs, each.milestones, each.mixup_alpha, each.batch_size) for each in diagnostics} == {
        (20, (), None, 64)
    }
    assert [each.lr for each in diagnostics] == [8e-4, 1e-3, 5e-4]
    assert [each.weight_decay for each in diagnostics] == [0.0, 0.01, 0.0]
    assert [each.normalise for each in diagnostics] == [True, True, False]
    train = intel.training(steps_per_epoch=220, num_images=14034)
    assert (train.optimizer.betas, train.optimizer.eps, train.drop_last) == ((0.9, 0.999), 1e-8, False)
    assert intermediate_settings("classification") == intermediate_settings("viny-intel")
    assert intermediate_settings("patchwise") == intermediate_settings("viny-spatial")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"gamma": 0.5}, "no effect with milestones"),
        ({"objective": "patchwise", "mixup_alpha": 0.1}, "no effect with objective=patchwise"),
        ({"milestones": (5, 3)}, "Sort them"),
        ({"milestones": (20,)}, "the last one changes nothing"),
    ],
)
def test_settings_without_effect_are_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        IntermediateConfig.model_validate(given)


def test_an_unknown_objective_is_said() -> None:
    with pytest.raises(ConfigError, match="got 'patches', expected one of classification, patchwise, viny-intel"):
        intermediate_settings("patches")

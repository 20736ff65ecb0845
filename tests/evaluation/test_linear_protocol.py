"""The linear protocols: cached and augmented, baselines, honesty about the choice, nothing learned from test images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.subjects import subject_of
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.sources import open_source
from halfseen.data.transforms import cut_views
from halfseen.errors import ConfigError, DataError
from halfseen.evaluation.features import EncoderFeatures, RawPixels, extract_features
from halfseen.evaluation.linear import protocol as linear_protocol_module
from halfseen.evaluation.linear.config import LINEAR_PROTOCOLS, LinearConfig, linear_protocol_settings
from halfseen.evaluation.linear.probes import linear_probe
from halfseen.evaluation.linear.protocol import linear_protocol, training_views
from halfseen.evaluation.statements import Split
from halfseen.types import ViewPlan, ViewSpec

SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
MODEL = ModelConfig.model_validate({"name": "vit_tiny", **SIZES})
SWIN = ModelConfig.model_validate(
    {"name": "swin_tiny", "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
)
QUICK = {"epochs": 3, "batch_size": 16, "crop_ratio": 1.0, "lr": (0.01, 0.1)}


def built(model=MODEL):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder(model, 32)


def settings(protocol="linear", encoder=None, **changes) -> LinearConfig:
    return LinearConfig.model_validate(linear_protocol_settings(protocol, encoder) | QUICK | changes)


def measure(train, test, config=None, encoder=None, random_encoder=built, **changes):
    subject, changes = subject_of(encoder or built(), random_encoder, **changes)
    return linear_protocol(subject, train, test, config or settings(), **changes)


@pytest.fixture
def train(tmp_path, make_images) -> Split:
    return Split(open_source(str(make_images(tmp_path / "train", 60, classes=3, seed=1))), "train")


@pytest.fixture
def test(tmp_path, make_images) -> Split:
    return Split(open_source(str(make_images(tmp_path / "other", 30, classes=3, seed=2))), "test")


@pytest.mark.parametrize("protocol", LINEAR_PROTOCOLS)
def test_every_protocol_gives_a_complete_result(train, test, tmp_path, protocol):
    changes = {"last_blocks": 2} if protocol in ("ibot-linear", "dino-linear") else {}
    changes |= {"layer": 1, "extra_epochs": 1} if protocol == "kamim-linear" else {}
    changes |= {"lr": (0.1,), "warmup_epochs": 1} if LINEAR_PROTOCOLS[protocol].get("choose") == "last" else {}
    config = settings(protocol, **changes)
    result = measure(train, test, config, seed=3)
    written = json.loads(result.write(tmp_path / "evaluations").read_text())
    assert (tmp_path / "evaluations" / f"{protocol}.json").is_file()
    assert (written["protocol"], written["n"], written["n_train"], written["seed"]) == (protocol, 30, 60, 3)
    assert set(written["baselines"]) == {"random_init", "raw_pixels"}
    for metrics in (written["metrics"], *written["baselines"].values()):
        assert set(metrics) == {"top1"}  # 3 classes: no top-5
    for name, (low, high) in written["confidence_interval"].items():
        assert low <= (written["metrics"] if name == "encoder" else written["baselines"][name])["top1"] <= high
    right = np.trace(np.array(written["confusion"]))
    assert 100 * right / 30 == pytest.approx(written["metrics"]["top1"], abs=1e-3)
    assert written["settings"]["cached_features"] is (protocol == "linear")
    assert written["headline"]["lr"] in written["curves"]["lr"]
    # The encoder is its own random initialisation: the same views, order and first weights give the same numbers.
    assert written["metrics"] == written["baselines"]["random_init"]
    text, notes = written["protocol_text"], " ".join(written["notes"])
    assert ("computed once and kept" in text) is (protocol == "linear")
    if config.choose == "test":
        assert "chosen on the test images themselves" in text
        assert "the number is optimistic" in notes
    elif protocol == "linear":
        assert "kept apart" in text
        assert "held-out training images" in notes
    else:
        assert "Nothing is chosen" in text
    assert ("Departs from the published protocol in: " in notes) is (protocol != "linear")


def test_cached_features_are_those_of_the_probe(train, test):
    result = measure(train, test)
    found = [
        extract_features({"raw": RawPixels()}, split.source, image_size=32, crop_ratio=1.0)["raw"]
        for split in (train, test)
    ]
    expected = linear_probe(found[0].features, found[0].labels, found[1].features, found[1].labels, settings())
    assert result.baselines["raw_pixels"]["top1"] == pytest.approx(expected.top(1), abs=1e-3)
    assert result.curves["held_out_top1_raw_pixels"] == pytest.approx(expected.held_out_top1, abs=1e-3)
    assert expected.top(1) > 60


def test_augmented_views_without_augmentation_give_the_cached_numbers(train, test, monkeypatch):
    """The loop over images and the loop over features are one: with the whole image as view they agree."""
    whole = ViewPlan((ViewSpec(32, crop="whole", hflip=0.0),))
    monkeypatch.setattr(linear_protocol_module, "training_views", lambda config, size: whole)
    cached, augmented = (measure(train, test, settings(resize="squash", augmentation=how)) for how in ("none", "crop"))
    for name, values in cached.curves.items():
        assert augmented.curves[name] == pytest.approx(values, rel=1e-3, abs=1e-4), name


def test_views_are_those_of_the_protocol():
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    specs = {name: training_views(settings(augmentation=name), 32).views[0] for name in ("crop", "tf-crop", "trivial")}
    assert [specs[name].crop for name in specs] == ["random", "clamped", "whole"]
    assert (specs["crop"].interpolation, specs["tf-crop"].interpolation) == ("bilinear", "bicubic")
    assert specs["crop"].crop_scale == specs["tf-crop"].crop_scale == (0.08, 1.0)
    assert (specs["trivial"].hflip, specs["trivial"].antialias) == (0.0, False)
    for spec in specs.values():
        plan = training_views(settings(augmentation="trivial"), 32)
        one, two = (cut_views(image, plan, np.random.default_rng(seed))[0] for seed in (0, 0))
        assert np.array_equal(one, two)
        assert spec.size == 32


@pytest.mark.parametrize("augmentation", ["none", "crop"])
def test_test_images_influence_nothing_but_their_own_numbers(train, test, tmp_path, make_images, augmentation):
    other = Split(open_source(str(make_images(tmp_path / "third", 24, classes=3, seed=9))), "test")
    one, two = (measure(train, split, settings(augmentation=augmentation)) for split in (test, other))
    for name in ("encoder", "raw_pixels"):
        for curve in ("held_out_top1", "chosen_lr", "loss"):
            assert one.curves[f"{curve}_{name}"] == two.curves[f"{curve}_{name}"]
    assert one.curves["test_top1_raw_pixels"] != two.curves["test_top1_raw_pixels"]


def test_one_split_is_cut_in_two_by_class(train):
    for same in (None, train):
        result = measure(train, same)
        assert (result.n, result.n_train) == (12, 48)
        assert [row.n for row in result.per_class] == [4, 4, 4]
        assert any("a fifth of each class was kept apart" in note for note in result.notes)
    assert result.split == "train (a fifth)"


def test_the_class_order_of_the_test_split_may_differ(train, test):
    """A test split without class 0 numbers the others from 0."""
    whole = measure(train, test)
    rows = np.flatnonzero(test.source.labels > 0)
    part = test.source.subset(rows)
    part.class_names = part.class_names[1:]
    part.labels = part.labels - 1
    partial = measure(train, Split(part, "test"))
    assert [row.name for row in partial.per_class] == ["class1", "class2"]
    assert [row.encoder for row in partial.per_class] == [row.encoder for row in whole.per_class[1:]]


def test_a_swin_is_measured_by_its_own_rules(train, test):
    swin = built(SWIN)
    ibot, kamim = (linear_protocol_settings(name, swin) for name in ("ibot-linear", "kamim-linear"))
    assert (ibot["feature"], ibot["last_blocks"]) == ("mean", 4)
    assert (kamim["layer"], kamim["clip_norm"]) == (None, 1.0)
    result = measure(
        train, test, settings("ibot-linear", swin, last_blocks=2), encoder=swin, random_encoder=lambda: built(SWIN)
    )
    assert result.feature_dim == 12 + 24
    wide = built()
    wide.embed_dim = 768
    assert linear_protocol_settings("ibot-linear", wide)["feature"] == "cls+mean"


def test_bad_files_are_left_out_or_stood_in_for(train, test):
    Path(train.source.path(4)).write_bytes(b"no image")
    for augmentation in ("none", "crop"):
        result = measure(train, test, settings(augmentation=augmentation))
        assert result.data["train"].skipped == 1
        assert result.n == 30


def test_faults_are_sentences_before_any_feature(train, test, tmp_path, make_images):
    def refuse():
        raise AssertionError("features were computed")

    flat = Split(open_source(str(make_images(tmp_path / "flat", 6, classes=0))), "train")
    with pytest.raises(DataError, match="none of the 6"):
        measure(flat, None, random_encoder=refuse)
    one = Split(open_source(str(make_images(tmp_path / "one", 10, classes=2))), "train")
    one.source.labels[:] = 1
    with pytest.raises(DataError, match="at least 2 classes"):
        measure(one, None, random_encoder=refuse)
    four = Split(open_source(str(make_images(tmp_path / "four", 8, classes=4))), "test")
    with pytest.raises(DataError, match=r"has classes that .* has not: 'class3'"):
        measure(train, four, random_encoder=refuse)
    few = Split(open_source(str(make_images(tmp_path / "few", 4, classes=2))), "train")
    with pytest.raises(DataError, match="no class has the 3 images"):
        measure(few, None, random_encoder=refuse)
    with pytest.raises(ConfigError, match="has the blocks 1 to 2"):
        measure(train, test, settings("kamim-linear", lr=(0.1,), warmup_epochs=1))


def test_the_features_of_a_forward_pass_need_no_gradient(train):
    encoder = built()
    views = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not EncoderFeatures(encoder, (0.5,) * 3, (0.25,) * 3).on_device(views).requires_grad

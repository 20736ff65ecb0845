"""The k-NN protocol: baselines, honesty about the data, classes that differ, nothing learned from shuffled labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.subjects import subject_of
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.sources import open_source
from halfseen.errors import DataError
from halfseen.evaluation.features import RawPixels, extract_features
from halfseen.evaluation.knn.protocol import knn_protocol
from halfseen.evaluation.knn.votes import weighted_knn
from halfseen.evaluation.results import EvaluateConfig
from halfseen.evaluation.statements import Split

MODEL = ModelConfig.model_validate({"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2})


def settings(**changes) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"crop_ratio": 1.0, "k": (5,)} | changes)


def measure(train, test, config=None, random_encoder=lambda: build_encoder(MODEL, 32), **changes):
    subject, changes = subject_of(build_encoder(MODEL, 32), random_encoder, **changes)
    return knn_protocol(subject, train, test, config or settings(), **changes)


@pytest.fixture
def voters(tmp_path, make_images) -> Split:
    return Split(open_source(str(make_images(tmp_path / "train", 60, classes=3, seed=1))), "train")


@pytest.fixture
def queries(tmp_path, make_images) -> Split:
    return Split(open_source(str(make_images(tmp_path / "other", 30, classes=3, seed=2))), "test")


def test_a_result_is_complete(voters, queries, tmp_path):
    result = measure(voters, queries, settings(k=(5, 20), temperature=(0.07, 0.5)), seed=3)
    written = json.loads(result.write(tmp_path / "evaluations").read_text())
    assert (tmp_path / "evaluations" / "knn.json").is_file()
    assert written["protocol"] == "knn"
    assert written["n"] == 30
    assert written["n_train"] == 60
    assert written["seed"] == 3
    assert set(written["baselines"]) == {"random_init", "raw_pixels"}
    keys = {"top1", "top1_k5", "top1_k20", "top1_k5_T0.5", "top1_k20_T0.5"}  # 3 classes: no top-5
    for metrics in (written["metrics"], *written["baselines"].values()):
        assert set(metrics) == keys
    assert written["metrics"]["top1"] == written["metrics"]["top1_k20"]
    for name, (low, high) in written["confidence_interval"].items():
        value = (written["metrics"] if name == "encoder" else written["baselines"][name])["top1"]
        assert low <= value <= high
    assert sum(row["n"] for row in written["per_class"]) == 30
    assert np.array(written["confusion"]).sum() == 30
    right = np.trace(np.array(written["confusion"]))
    assert 100 * right / 30 == pytest.approx(written["metrics"]["top1"], abs=1e-3)
    assert written["data"]["test"]["fingerprint"] == queries.source.fingerprint()
    assert not list((tmp_path / "evaluations").glob("*.part"))


def test_the_pixel_baseline_is_knn_on_pixels(voters, queries):
    result = measure(voters, queries)
    raw = [
        extract_features({"raw": RawPixels()}, split.source, image_size=32, crop_ratio=1.0)["raw"]
        for split in (voters, queries)
    ]
    expected = weighted_knn(raw[0].features, raw[0].labels, raw[1].features, raw[1].labels, k=(5,))[0].top(1)
    assert result.baselines["raw_pixels"]["top1"] == pytest.approx(expected, abs=1e-3)
    assert expected > 60  # gradients in three directions are easy for pixels


def test_the_same_images_twice_are_left_one_out(voters):
    result = measure(voters, voters, settings(k=(1,)))
    assert result.settings["leave_one_out"] is True
    assert result.metrics["top1"] < 100
    assert any("leave-one-out" in note for note in result.notes)
    assert result.split == "train (leave-one-out)"


def test_a_split_without_one_class_keeps_the_others_apart(voters, queries):
    """Folders a, b, c against b, c: the labels 0, 1 of the second are 1, 2 of the first."""
    folder = Path(queries.source.path(0)).parent.parent
    whole = measure(voters, queries)
    shutil.rmtree(folder / "class0")
    partial = measure(voters, Split(open_source(str(folder)), "test"))
    assert [row.name for row in partial.per_class] == ["class1", "class2"]
    assert [row.baselines["raw_pixels"] for row in partial.per_class] == [
        row.baselines["raw_pixels"] for row in whole.per_class[1:]
    ]


def test_classes_unknown_to_training_are_a_sentence(voters, tmp_path, make_images):
    stranger = Split(open_source(str(make_images(tmp_path / "four", 8, classes=4))), "test")
    with pytest.raises(DataError, match=r"has classes that .* has not: 'class3'"):
        measure(voters, stranger)


def test_no_labels_and_one_class_are_sentences_before_any_feature(tmp_path, make_images):
    def refuse():
        raise AssertionError("features were computed")

    flat = Split(open_source(str(make_images(tmp_path / "flat", 6, classes=0))), "train")
    with pytest.raises(DataError, match="none of the 6 training images has one"):
        measure(flat, None, random_encoder=refuse)
    one = Split(open_source(str(make_images(tmp_path / "one", 6, classes=1))), "train")
    with pytest.raises(DataError, match=r"at least 2 classes|needs labels"):
        measure(one, None, random_encoder=refuse)


def test_too_large_k_is_left_out_or_refused(voters, queries):
    result = measure(voters, queries, settings(k=(10, 200)))
    assert result.settings["k"] == [10]
    assert any("k = 200 left out: only 60 images can vote" in note for note in result.notes)
    assert measure(voters, queries, settings(k=(200,))).settings["k"] == [60]
    with pytest.raises(DataError, match="k=200 was given, but only 60"):
        measure(voters, queries, settings(k=(200,)), strict_k=True)
    voters.source.labels = np.where(np.arange(60) < 10, -1, voters.source.labels)
    alone = measure(voters, None, settings(k=(10, 49, 50)))
    assert alone.settings["k"] == [10, 49]
    assert any("k = 50 left out: only 49 images can vote" in note for note in alone.notes)


def test_what_was_seen_in_pretraining_is_said(voters, queries):
    seen = measure(voters, queries, pretrained_on=queries.source.fingerprint()).notes
    assert any("were seen in pre-training, without their labels" in note for note in seen)
    part = Split(queries.source.subset(range(20)), "test")
    drawn = measure(voters, part, pretrained_on=queries.source.fingerprint()).notes
    assert any("some or all were seen in pre-training" in note for note in drawn)
    pretrained = queries.source.subset(range(20, 30))
    several = tuple(each.fingerprint() for each in pretrained.drawn_from())
    for asked in (queries, part):
        notes = measure(voters, asked, pretrained_on=pretrained.fingerprint(), pretrained_from=several).notes
        assert any("some or all were seen in pre-training" in note for note in notes)
    other = measure(voters, queries, pretrained_on="0" * 64, pretrained_from=("1" * 64,)).notes
    assert any("another set of images" in note for note in other)
    assert any("not known" in note for note in measure(voters, queries).notes)


def test_labels_learned_before_are_noticed(voters, queries):
    def warned(*fingerprints, test=queries):
        return any(
            "Careful: the encoder has learned labels" in n for n in measure(voters, test, taught_on=fingerprints).notes
        )

    assert not warned() and not warned(voters.source.fingerprint())
    assert warned("0", queries.source.fingerprint())
    assert warned(queries.source.fingerprint(), test=Split(queries.source.subset(range(9)), "test"))


def test_shared_files_are_noticed(voters, tmp_path):
    some = Split(voters.source.subset(range(10)), "test")
    assert any(
        "10 of the classified images are among the training images" in note for note in measure(voters, some).notes
    )


def test_who_wins_is_said_with_its_doubt(voters, queries):
    notes = measure(voters, queries).notes
    assert any("random initialisation" in note for note in notes)
    assert any("raw pixels" in note for note in notes)
    same = torch.nn.Module.state_dict(build_encoder(MODEL, 32))

    def twin():
        encoder = build_encoder(MODEL, 32)
        encoder.load_state_dict(same)
        return encoder

    result = knn_protocol(subject_of(twin(), twin)[0], voters, queries, settings())
    assert result.metrics["top1"] == result.baselines["random_init"]["top1"]
    assert "The encoder is as good as the same network at random initialisation." in result.notes


def test_subsets_limit_both_sides(voters, queries):
    result = measure(voters, queries, settings(max_train=40, max_test=12))
    assert result.n_train == 40
    assert result.n == 12

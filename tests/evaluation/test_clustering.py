"""Clusters beside classes: k-means and heads, baselines, what labels may and may not influence."""

import json

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from evaluation.subjects import subject_of
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.sources import open_source
from halfseen.errors import DataError
from halfseen.evaluation.clustering import ClusterConfig, cluster_protocol
from halfseen.evaluation.features import RawPixels, extract_features
from halfseen.evaluation.metrics import cluster_scores
from halfseen.evaluation.statements import Split
from halfseen.ops.randomness import stream_seed

MODEL = ModelConfig.model_validate({"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2})


def built():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder(MODEL, 32)


def settings(**changes) -> ClusterConfig:
    return ClusterConfig.model_validate({"crop_ratio": 1.0, "runs": 2} | changes)


def measure(data, config=None, random_encoder=built, **changes):
    subject, changes = subject_of(built(), random_encoder, **changes)
    return cluster_protocol(subject, data, config or settings(), **changes)


@pytest.fixture
def images(tmp_path, make_images) -> Split:
    return Split(open_source(str(make_images(tmp_path / "images", 60, classes=3, seed=1))), "all")


def test_a_result_is_complete(images, tmp_path):
    result = measure(images, seed=3)
    written = json.loads(result.write(tmp_path / "evaluations").read_text())
    assert (tmp_path / "evaluations" / "cluster.json").is_file()
    assert (written["protocol"], written["n"], written["n_train"], written["seed"]) == ("cluster", 60, 0, 3)
    assert (written["primary"], written["headline"]) == ("acc", {"clusters": 3, "runs": 2})
    assert set(written["baselines"]) == {"random_init", "raw_pixels"}
    for metrics in (written["metrics"], *written["baselines"].values()):
        assert set(metrics) == {each + end for each in ("nmi", "ari", "fmi", "acc") for end in ("", "_std")}
    for name, (low, high) in written["confidence_interval"].items():
        assert low <= (written["metrics"] if name == "encoder" else written["baselines"][name])["acc"] <= high
    assert np.array(written["confusion"]).sum() == 60
    mean = sum(row["n"] * row["encoder"] for row in written["per_class"]) / 60
    assert mean == pytest.approx(written["metrics"]["acc"], abs=0.01)
    # The encoder is its own random initialisation: the same starts give the same clusters.
    assert written["metrics"] == written["baselines"]["random_init"]
    assert "this much is taken from the labels" in " ".join(written["notes"])


def test_the_numbers_are_those_of_scikit_learn(images):
    result = measure(images, seed=5)
    pixels = extract_features({"raw": RawPixels()}, images.source, image_size=32, crop_ratio=1.0)["raw"].features
    pixels = (pixels / pixels.norm(dim=1, keepdim=True)).numpy()
    found = [
        cluster_scores(
            images.source.labels,
            KMeans(3, n_init=1, random_state=stream_seed(5, "k-means", run) % 2**32).fit_predict(pixels).astype(int),
        )
        for run in range(2)
    ]
    metrics = result.baselines["raw_pixels"]
    for key, values in {
        "nmi": [each.nmi for each in found],
        "ari": [each.ari for each in found],
        "fmi": [each.fmi for each in found],
        "acc": [each.accuracy for each in found],
    }.items():
        assert metrics[key] == pytest.approx(100 * np.mean(values), abs=1e-3)
        assert metrics[f"{key}_std"] == pytest.approx(100 * np.std(values, ddof=1), abs=1e-3)
    assert metrics["acc"] > 60  # gradients in three directions are easy for pixels


def test_labels_are_used_to_compare_only(images):
    """Renamed classes give the same numbers; shuffled labels leave nothing that agrees."""
    before = measure(images)
    images.source.labels = 2 - images.source.labels
    assert measure(images).metrics == before.metrics
    images.source.labels = np.random.default_rng(0).permutation(images.source.labels)
    shuffled = measure(images)
    for metrics in (shuffled.metrics, *shuffled.baselines.values()):
        assert abs(metrics["ari"]) < 10
        assert metrics["nmi"] < 15


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize": False},
        {"clusters": 2},
        {"restarts": 8},
        {"max_iterations": 1},
        {"minibatch_above": 20},
        {"feature": "cls"},
        {"last_blocks": 2},
        {"max_images": 40},
        {"crop_ratio": 0.5},
        {"runs": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_something(make_images, tmp_path, changes):
    noisy = Split(open_source(str(make_images(tmp_path / "noisy", 90, classes=6, size=20, seed=4))), "all")
    usual, other = measure(noisy), measure(noisy, settings(**changes))
    seen = [(each.curves, each.feature_dim) for each in (usual, other)]
    assert seen[0] != seen[1]


def test_pictures_are_squashed_where_asked(make_images, tmp_path):
    from PIL import Image

    make_images(tmp_path / "wide", 40, classes=2, size=32)
    for path in (tmp_path / "wide").rglob("*.png"):
        Image.open(path).resize((64, 32)).save(path)
    wide = Split(open_source(str(tmp_path / "wide")), "all")
    assert measure(wide).curves != measure(wide, settings(resize="squash")).curves


def test_more_clusters_than_classes_have_no_accuracy(images):
    result = measure(images, settings(clusters=7))
    assert result.primary == "nmi"
    assert "acc" not in result.metrics
    assert result.confidence_interval == {}
    assert result.per_class == []
    assert any("no one-to-one map" in note for note in result.notes)


def test_one_run_has_no_spread(images):
    assert set(measure(images, settings(runs=1)).metrics) == {"nmi", "ari", "fmi", "acc"}


def test_a_head_groups_by_its_largest_output(images):
    """A head that looks at one number of the summary: two clusters, those above its median and those below."""
    subject, _ = subject_of(built(), built)
    summary = extract_features(
        subject.extractors("cls"), images.source, image_size=32, crop_ratio=1.0
    )["encoder"].features  # fmt: skip
    median = summary[:, 0].median()

    def head(rows):
        return torch.stack([rows[:, 0] - median, median - rows[:, 0]], dim=1)

    result = measure(images, settings(source="head"), heads={"encoder": head, "random_init": head})
    expected = cluster_scores(images.source.labels, (summary[:, 0] < median).long().numpy())
    assert result.protocol == "ibot-cluster"
    assert result.metrics["nmi"] == pytest.approx(100 * expected.nmi, abs=1e-3)
    assert result.metrics["acc"] == pytest.approx(100 * expected.accuracy, abs=1e-3)
    assert "nmi_std" not in result.metrics
    assert "nmi_std" in result.baselines["raw_pixels"]
    assert any("uses 2 of its outputs" in note for note in result.notes)
    assert any("Raw pixels have no head" in note for note in result.notes)


def test_images_without_a_label_play_no_part(images):
    part = Split(images.source.subset(range(40)), "all")
    expected = measure(part)
    images.source.labels[40:] = -1
    result = measure(images)
    assert result.metrics == expected.metrics
    assert any("20 images without a label were left out" in note for note in result.notes)


def test_identical_features_are_said(images, tmp_path):
    from pathlib import Path

    first = Path(images.source.path(0)).read_bytes()
    for index in range(len(images.source)):
        Path(images.source.path(index)).write_bytes(first)
    assert any("clusters stayed empty" in note for note in measure(images).notes)


def test_faults_are_sentences(tmp_path, make_images, images):
    flat = Split(open_source(str(make_images(tmp_path / "flat", 6, classes=0))), "all")
    with pytest.raises(DataError, match="have 0 classes"):
        measure(flat)
    with pytest.raises(DataError, match="61 clusters of 60 labelled images"):
        measure(images, settings(clusters=61))
    subject, _ = subject_of(built(), built)
    torch.nn.init.constant_(next(subject.encoder.parameters()), float("nan"))
    with pytest.raises(DataError, match="features of 'encoder' are not finite"):
        cluster_protocol(subject, images, settings())

"""`halfseen embed` through the real entry point."""

import numpy as np
import pytest
import torch

from halfseen.backbones.weights import load_encoder
from halfseen.cli.main import run
from halfseen.data.loader import evaluation_batches
from halfseen.data.sources import open_source


def test_features_of_a_folder_in_both_forms(trained_run, image_folder, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    (image_folder / "class0" / "broken.png").write_bytes(b"no image")
    words = ["embed", str(trained_run), str(image_folder), "--precision", "fp32", "--out"]
    assert run([*words, str(tmp_path / "new" / "f.npz")]) == 0
    told = capsys.readouterr()
    assert "20 images, 32 numbers each, 1 files skipped" in told.out
    assert "broken.png" in told.err
    with np.load(tmp_path / "new" / "f.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    source = open_source(str(image_folder))
    loaded = load_encoder(trained_run)
    images = next(evaluation_batches(source, found["indices"], 28, 20, crop_ratio=1.0)).images
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (loaded.mean, loaded.std))
    with torch.no_grad():
        expected = loaded.encoder.eval().encode((images / 255 - mean) / std).patches.mean(dim=1)
    np.testing.assert_allclose(found["features"], expected.numpy(), atol=1e-5)
    assert found["paths"].tolist() == [source.path(int(index)) for index in found["indices"]]
    assert found["labels"].tolist() == source.labels[found["indices"]].tolist()
    assert found["class_names"].tolist() == ["class0", "class1"]

    assert run([*words, str(tmp_path / "f.parquet")]) == 0
    table = pq.read_table(tmp_path / "f.parquet")
    assert np.array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), found["features"])
    assert table["path"].to_pylist() == found["paths"].tolist()
    assert table["class_name"].to_pylist() == [f"class{label}" for label in found["labels"]]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("DATA", "--out", "f.txt"), "ends in .npz or .parquet"),
        (("DATA", "--out", "f.npz", "--split", "val"), "expected train or test"),
        (("DATA", "--out", "f.npz", "--feature", "tokens"), "expected one of cls"),
        (("nowhere", "--out", "f.npz"), "'nowhere' does not exist"),
        (("DATA",), "--out"),
    ],
)
def test_the_users_faults_are_sentences(trained_run, image_folder, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert run(["embed", str(trained_run), *(word.replace("DATA", str(image_folder)) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("f.*"))

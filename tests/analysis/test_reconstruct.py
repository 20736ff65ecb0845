"""Reconstructions: un-normalised rightly, pasted where hidden, scored against recorded values, the same every time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.analysis.reconstruct import psnr, reconstruct_images, spread_indices, ssim_map
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.loader import evaluation_batches
from halfseen.data.sources import open_source
from halfseen.errors import DataError, ShapeError
from halfseen.methods.table import METHODS, build_method

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
MODEL = {"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def build(name: str, **changes):
    encoder = build_encoder(ModelConfig.model_validate(MODEL), 32)
    small = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2} if name == "mae" else {}
    config = METHODS[name].config_class.model_validate({"name": name, **small, **changes})
    return build_method(config, encoder, 32, MEAN, STD)


@pytest.fixture
def source(image_folder):
    return open_source(str(image_folder))


def show(method, source, **changes):
    arguments = {"mean": MEAN, "std": STD, "image_size": 32, "crop_ratio": 1.0, "count": 4} | changes
    return reconstruct_images(method, source, **arguments)


def test_pictures_are_those_of_the_data(source):
    found = show(build("mae"), source, mask_ratios=(None, 0.25))
    views = next(evaluation_batches(source, found.indices, 32, 4, crop_ratio=1.0)).images
    assert np.array_equal(found.original, views.permute(0, 2, 3, 1).numpy())
    assert found.masked.shape == found.predicted.shape == found.pasted.shape == (2, 4, 32, 32, 3)
    assert found.hidden_share.tolist() == [0.75, 0.25]
    assert found.paths == tuple(source.path(int(index)) for index in found.indices)
    for number, share in enumerate(found.hidden_share):
        kept = (found.masked[number] == found.original).all(axis=-1)
        assert kept.mean() == pytest.approx(1 - share, abs=0.01)  # a grey pixel may be grey by nature
        assert np.array_equal(found.pasted[number][kept], found.original[kept])
        assert np.array_equal(found.pasted[number][~kept], found.predicted[number][~kept])
        assert (found.masked[number][~kept] == 128).all()


def test_the_same_arguments_show_the_same(source):
    method = build("mae")
    first, again = show(method, source, seed=1), show(method, source, seed=1)
    assert np.array_equal(first.pasted, again.pasted)
    assert not np.array_equal(first.masked, show(method, source, seed=2).masked)


def test_scores_are_of_the_pictures_shown(source):
    found = show(build("mae"), source)
    hidden = (found.masked[0] != found.original).any(axis=-1)
    error = (found.predicted[0].astype(float) - found.original) / 255
    for index in range(4):
        expected = 10 * np.log10(1 / (error[index][hidden[index]] ** 2).mean())
        assert found.psnr_hidden[0, index] == pytest.approx(expected, abs=0.1)
    assert (found.psnr_whole > found.psnr_hidden).all()
    assert (found.ssim_whole > found.ssim_hidden).all()


@pytest.mark.parametrize("name", ["mae", "simmim", "kamim"])
def test_every_pixel_method_shows_something_and_keeps_its_mode(source, name):
    changes = {} if name == "mae" else {"mask_cell_size": 8}
    method = build(name, **changes)
    for training in (True, False):
        method.train(training)
        found = show(method, source)
        assert method.training is training
        assert found.note
        assert 0 < found.hidden_share[0] < 1


def test_written_arrays_are_plain(source, tmp_path):
    found = show(build("mae"), source)
    path = found.write(tmp_path / "figures")
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays.files) == set(found._fields)
        assert np.array_equal(arrays["pasted"], found.pasted)
        assert str(arrays["note"]) == found.note
        assert arrays["paths"].tolist() == list(found.paths)


def test_bad_files_are_passed_over(source):
    wanted = spread_indices(source, 4)
    Path(source.path(int(wanted[1]))).write_bytes(b"broken")
    assert show(build("mae"), source).indices.tolist() == np.delete(wanted, 1).tolist()
    for index in wanted:
        Path(source.path(int(index))).write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the images to reconstruct"):
        show(build("mae"), source)


def test_images_are_spread_over_the_classes(source, tmp_path, make_images):
    labels = source.labels[spread_indices(source, 4)]
    assert labels.tolist() == [0, 1, 0, 1]
    flat = open_source(str(make_images(tmp_path / "flat", 10, classes=0)))
    assert spread_indices(flat, 4).tolist() == [0, 3, 6, 9]
    assert len(spread_indices(flat, 99)) == 10


def test_psnr_by_hand():
    target = torch.zeros(2, 3, 4, 4)
    prediction = target.clone()
    prediction[1, :, 0, 0] = 0.5
    where = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    where[:, :, 0, :2] = True
    whole = psnr(prediction, target)
    assert whole[0] == torch.inf
    assert whole[1].item() == pytest.approx(10 * np.log10(16 / 0.25))
    assert psnr(prediction, target, where=where)[1].item() == pytest.approx(10 * np.log10(2 / 0.25))
    assert psnr(prediction, target, 2.0)[1].item() == pytest.approx(10 * np.log10(4 * 16 / 0.25))


def test_ssim_by_the_formula_written_out(generator):
    x, y = torch.rand(2, 1, 2, 15, 13, generator=generator).double()
    x, y = x.float(), y.float()
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    found = ssim_map(x, y, 1.0)
    assert found.shape == (1, 5, 3)
    a, b = x[0, :, 2:13, 1:12].double().numpy(), y[0, :, 2:13, 1:12].double().numpy()
    per_colour = []
    for p, q in zip(a, b, strict=True):
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq, c = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2, (window * p * q).sum() - mp * mq
        per_colour.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert found[0, 2, 1].item() == pytest.approx(np.mean(per_colour), abs=1e-6)
    assert ssim_map(x, x).mean().item() == pytest.approx(1.0)


def test_ssim_of_tiny_pictures_is_refused():
    with pytest.raises(ShapeError, match="at least 11 pixels"):
        ssim_map(torch.zeros(1, 3, 8, 20), torch.zeros(1, 3, 8, 20))

"""Frozen features: what they are made of, one pass for all extractors, bad files left out, evaluation mode."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.loader import evaluation_batches
from halfseen.data.sources import open_source
from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.evaluation.features import EncoderFeatures, RawPixels, draw_subset, extract_features
from halfseen.evaluation.results import FeatureKind

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def tiny(name: str = "vit_tiny", **changes):
    small = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2} | changes
    return build_encoder(ModelConfig.model_validate({"name": name, **small}), 32)


def tiny_swin():
    sizes = {"name": "swin_tiny", "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    return build_encoder(ModelConfig.model_validate(sizes), 32)


@pytest.fixture
def views(image_folder):
    source = open_source(str(image_folder))
    return next(evaluation_batches(source, range(6), 32, 6, crop_ratio=1.0)).images


@pytest.mark.parametrize("feature", get_args(FeatureKind))
def test_features_are_the_tokens_they_say(views, feature):
    encoder = tiny()
    found = EncoderFeatures(encoder, MEAN, STD, feature=feature)(views)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        output = encoder.encode((views / 255 - mean) / std, layers=(2,))
    expected = {
        "cls": output.prefix[:, 0],
        "mean": output.patches.mean(dim=1),
        "cls+mean": torch.cat([output.prefix[:, 0], output.patches.mean(dim=1)], dim=1),
        "cls-before-norm": output.layers[0].prefix[:, 0],
        "mean-before-norm": output.layers[0].patches.mean(dim=1),
        "mean-plain-norm": F.layer_norm(output.layers[0].patches.mean(dim=1), (24,), eps=1e-6),
    }[feature]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_earlier_blocks_are_normed_and_put_in_front(views):
    encoder = tiny(depth=3)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        output = encoder.encode((views / 255 - mean) / std, layers=(1, 2, 3))
        normed = [encoder.final_norm(layer.prefix[:, 0]) for layer in output.layers]
        patches = [encoder.final_norm(layer.patches).mean(dim=1) for layer in output.layers]
    expected = {
        "cls": normed[1:],
        "mean": patches[1:],
        "cls+mean": [*normed[1:], patches[2]],
        "cls-before-norm": [layer.prefix[:, 0] for layer in output.layers[1:]],
    }
    for feature, parts in expected.items():
        found = EncoderFeatures(encoder, MEAN, STD, feature=feature, last_blocks=2)(views)
        torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=0, atol=1e-5)
    middle = EncoderFeatures(encoder, MEAN, STD, feature="mean-before-norm", layer=2)(views)
    torch.testing.assert_close(middle, output.layers[1].patches.mean(dim=1), rtol=0, atol=1e-6)
    for wrong in ({"layer": 4}, {"layer": 0}, {"last_blocks": 4}, {"layer": 2, "last_blocks": 3}):
        with pytest.raises(ConfigError, match="blocks"):
            EncoderFeatures(encoder, MEAN, STD, **wrong)


def test_narrower_blocks_of_a_swin_stay_without_the_norm(views):
    swin = tiny_swin()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        output = swin.encode((views / 255 - mean) / std, layers=(1, 2))
    found = EncoderFeatures(swin, MEAN, STD, feature="mean", last_blocks=2)(views)
    expected = torch.cat([output.layers[0].patches.mean(dim=1), output.patches.mean(dim=1)], dim=1)
    assert found.shape == (6, 12 + 24)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_encoder_is_in_evaluation_mode(views):
    encoder = tiny(drop_path=0.5).train()
    extract = EncoderFeatures(encoder, MEAN, STD)
    assert torch.equal(extract(views), extract(views))


def test_half_precision_gives_float32_close_to_it(views):
    encoder = tiny()
    exact = EncoderFeatures(encoder, MEAN, STD)(views)
    rough = EncoderFeatures(encoder, MEAN, STD, precision="bf16")(views)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_no_class_token_is_a_sentence():
    with pytest.raises(ShapeError, match=r"no class token\. Use 'mean'"):
        EncoderFeatures(tiny_swin(), MEAN, STD, feature="cls")


def test_raw_pixels_are_the_picture(views):
    assert torch.equal(RawPixels(32)(views), (views.float() / 255).flatten(1))
    halved = RawPixels(16)(views).view(6, 3, 16, 16)
    expected = (views.float() / 255).view(6, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    torch.testing.assert_close(halved, expected)


def test_one_pass_equals_single_passes_whatever_the_batch(image_folder):
    source = open_source(str(image_folder))
    encoder = EncoderFeatures(tiny(), MEAN, STD)
    both = extract_features({"a": encoder, "b": RawPixels()}, source, image_size=32, batch_size=7)
    single = extract_features({"a": encoder}, source, image_size=32, batch_size=20)["a"]
    assert both["a"].features.shape == (20, 24)
    torch.testing.assert_close(both["a"].features, single.features, rtol=0, atol=1e-6)
    assert torch.equal(both["b"].indices, torch.arange(20))
    assert both["a"].labels.tolist() == source.labels.tolist()


def test_chosen_rows_come_in_their_order(image_folder):
    source = open_source(str(image_folder))
    whole = extract_features({"raw": RawPixels()}, source, image_size=32)["raw"]
    some = extract_features({"raw": RawPixels()}, source, [7, 2, 19], image_size=32, batch_size=2)["raw"]
    assert some.indices.tolist() == [7, 2, 19]
    assert torch.equal(some.features, whole.features[[7, 2, 19]])
    assert torch.equal(some.labels, whole.labels[[7, 2, 19]])


def test_bad_files_have_no_row_and_are_listed(image_folder):
    broken = sorted(image_folder.rglob("*.png"))[3]
    broken.write_bytes(b"not an image")
    source = open_source(str(image_folder))
    done: list[tuple[int, int]] = []
    found = extract_features(
        {"raw": RawPixels()}, source, image_size=32, batch_size=6, on_progress=lambda at, of: done.append((at, of))
    )["raw"]
    assert len(found.features) == len(found.labels) == len(found.indices) == 19
    assert [source.path(each.index) for each in found.skipped] == [str(broken)]
    assert found.skipped[0].index not in found.indices.tolist()
    assert done[-1] == (20, 20)


def test_only_bad_files_are_a_sentence(image_folder):
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 20 images could be read"):
        extract_features({"raw": RawPixels()}, open_source(str(image_folder)), image_size=32)


def test_subsets_are_a_function_of_their_key():
    first = draw_subset(1000, 50, 3, "evaluate", "train")
    assert np.array_equal(first, draw_subset(1000, 50, 3, "evaluate", "train"))
    assert len(np.unique(first)) == 50
    assert np.all(np.diff(first) > 0)
    assert not np.array_equal(first, draw_subset(1000, 50, 4, "evaluate", "train"))
    assert np.array_equal(draw_subset(5, None, 0), np.arange(5))
    assert np.array_equal(draw_subset(5, 9, 0), np.arange(5))

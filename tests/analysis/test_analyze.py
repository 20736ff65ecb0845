"""The shared pass: what it gives is what each analysis gives by itself, for any batches, and faults are sentences."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.analysis.analyze import analyze
from halfseen.analysis.analyze_config import ANALYSES, AnalysisName, AnalyzeConfig
from halfseen.analysis.attention import attention_distance, patch_distances
from halfseen.analysis.findings import AnalyzedEncoder, EncoderAnalysis
from halfseen.analysis.geometry import TokenGeometry
from halfseen.analysis.masked_views import agreement, draw_visible, learned_half_seen, retrieve, shared_neighbours
from halfseen.analysis.watchers.attention import AttentionWatcher
from halfseen.analysis.watchers.base import Place
from halfseen.analysis.watchers.features import GeometryWatcher, RankWatcher
from halfseen.analysis.watchers.spectra import FourierWatcher
from halfseen.analysis.watchers.tokens import SimilarityWatcher
from halfseen.backbones.base import BlockView, Encoder, Features, Tokens
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.sources import ArraySource, Source, open_source
from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.ops.effective_rank import rankme
from halfseen.reports.figures.analysis import draw_analysis

QUICK = {"tsne": False, "masked_images": 3, "noise_images": 4, "shown_images": 2, "embedding_images": 3}
VIT = {"name": "vit_tiny", "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"name": "swin_tiny", "embed_dim": 8, "depths": (2, 2), "num_heads": 1}


@cache
def network(kind: str, size: int = 16) -> Encoder:
    torch.manual_seed(3)
    settings = {**(SWIN if kind == "swin" else VIT), **({"patch_size": 8} if kind == "vit8" else {})}
    encoder = build_encoder(ModelConfig.model_validate(settings), size).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return encoder


def subject(kind: str = "vit", name: str | None = None) -> AnalyzedEncoder:
    return AnalyzedEncoder(name or kind, network(kind), (0.5,) * 3, (0.25,) * 3, "here")


def pictures(count: int = 12, classes: int = 2) -> Source:
    drawing = np.random.default_rng(0)
    labels = np.arange(count) % classes if classes else np.full(count, -1)
    images = drawing.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    images[labels == 1] //= 2
    names = tuple(f"class{label}" for label in range(classes))
    return ArraySource("pictures", images, labels.astype(np.int64), names)


def one(source: Source, only: list[AnalysisName], kind: str = "vit", **settings: object) -> EncoderAnalysis:
    config = AnalyzeConfig.model_validate({**QUICK, **settings})
    return analyze([subject(kind)], source, config, only).encoders[0]


def normalised(source: Source) -> Tensor:
    images = np.stack([source.read(row) for row in range(len(source))])
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def same(first: EncoderAnalysis, second: EncoderAnalysis) -> None:
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        if array.dtype.kind in "US":
            assert array.tolist() == second.arrays[name].tolist()
        else:
            np.testing.assert_allclose(
                array.astype(np.float64), second.arrays[name].astype(np.float64), rtol=1e-3, atol=2e-3, err_msg=name
            )


SHARED: list[AnalysisName] = ["attention", "fourier", "spectra", "cka", "geometry", "similarity", "rank", "layers"]


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_batches_of_any_size_give_the_same(kind: str) -> None:
    source = pictures()
    same(one(source, SHARED, kind, batch_size=12), one(source, SHARED, kind, batch_size=5))


@torch.no_grad()
def test_the_pass_gives_what_each_analysis_gives_by_itself() -> None:
    source = pictures()
    found = one(source, ["attention", "geometry", "rank", "cka"], crop_ratio=1.0, batch_size=5)
    encoder, images = network("vit"), normalised(source)
    views = list(encoder.block_views(images))
    distances = patch_distances((4, 4), 4)
    for layer in (1, 2):
        attention = views[layer].attention
        assert attention is not None
        plain = attention_distance(attention[..., 1:, 1:], distances)
        np.testing.assert_allclose(found.arrays["attention/distance"][layer - 1], plain.numpy(), rtol=1e-4)
    assert found.numbers["attention_distance_last"] == pytest.approx(float(plain.mean()), rel=1e-4)
    features = encoder.encode(images)
    geometry = TokenGeometry((4, 4))
    geometry.update(features.patches)
    assert found.numbers["variance_within"] == pytest.approx(geometry.result().within, rel=1e-4)
    assert found.numbers["rankme_mean"] == pytest.approx(rankme(features.patches.mean(dim=1)), rel=1e-3)
    assert found.numbers["rankme_cls"] == pytest.approx(rankme(features.prefix[:, 0]), rel=1e-3)
    np.testing.assert_allclose(np.diag(found.arrays["cka/tokens"]), 1, atol=1e-5)


def test_only_what_is_wanted_is_measured_and_everything_can_be() -> None:
    source = open_source("bundled:fashion-scenes", "test").subset(np.arange(10))
    config = AnalyzeConfig.model_validate({**QUICK, "images": 10, "mask_ratios": (0.5,), "neighbours": 2})
    every = analyze([subject()], source, config)
    measured = {name.split("/")[0] for name in every.encoders[0].arrays} - {"images"}
    assert measured == set(ANALYSES) - {"reconstruction"}
    assert "Left out: only a run whose method" in every.encoders[0].notes["reconstruction"][0]
    few = analyze([subject()], source, config, ["layers"]).encoders[0]
    assert {name.split("/")[0] for name in few.arrays} == {"layers", "images"}


def test_settings_change_what_they_say() -> None:
    source = pictures(24)
    shown = one(source, ["attention", "embedding", "cka", "spectra", "similarity"], embedding_layer=1)
    assert shown.arrays["attention/maps"].shape == (2, 2, 2, 4, 4, 4)  # [L, S, heads, three queries + class, h, w]
    assert shown.arrays["attention/queries"].tolist() == [[2, 2], [1, 1], [3, 3]]
    assert int(shown.arrays["embedding/layer"]) == 1
    assert len(shown.arrays["embedding/pca"]) == 3 * 16 and "embedding/tsne" not in shown.arrays
    assert int(shown.arrays["spectra/num_images"]) == 24 and int(shown.arrays["cka/num_tokens"]) == 24 * 16
    asked = one(
        source, ["attention", "embedding", "cka", "spectra"], queries=[[3, 0]], shown_images=1, embedding_images=2,
        embedding_layer=2, tsne=True, tsne_tokens=30, token_rows=48, spectrum_images=7, images=20, batch_size=6,
    )  # fmt: skip
    assert asked.arrays["images/indices"].size == 20
    assert asked.arrays["attention/maps"].shape[1:4] == (1, 2, 2)
    assert asked.arrays["attention/queries"].tolist() == [[3, 0]]
    assert int(asked.arrays["embedding/layer"]) == 2 and asked.arrays["embedding/tsne"].shape == (30, 2)
    assert int(asked.arrays["cka/num_tokens"]) == 20 * 3 and int(asked.arrays["spectra/num_images"]) == 7
    assert one(source, ["rank"], fraction_per_class=0.25).arrays["images/indices"].tolist() == [0, 1, 2, 3, 4, 5]
    cut = one(source, ["rank"], crop_ratio=0.5).numbers["rankme_mean"]
    assert cut != one(source, ["rank"], crop_ratio=1.0).numbers["rankme_mean"]


def test_how_images_become_square_and_are_resized() -> None:
    drawing = np.random.default_rng(0)
    wide = ArraySource(
        "wide", drawing.integers(0, 256, (3, 20, 40, 3), dtype=np.uint8), np.zeros(3, dtype=np.int64), ("a",)
    )

    def seen(**settings: object) -> np.ndarray:
        return one(wide, ["fourier"], **settings).arrays["images/shown"]

    assert not np.array_equal(seen(resize="squash"), seen(resize="crop"))
    assert not np.array_equal(seen(interpolation="bilinear"), seen(interpolation="bicubic"))


def test_masking_counts_agreement_neighbours_and_ranks() -> None:
    source = pictures(12)
    found = one(source, ["masking"], mask_ratios=[0.75, 0.0], masks_per_image=2, neighbours=3, masked_images=4)
    arrays = found.arrays
    assert arrays["masking/ratios"].tolist() == [0.0, 0.75]
    assert arrays["masking/agreement"][0] == pytest.approx(1, abs=1e-5)
    assert arrays["masking/agreement"][1] < 0.999
    assert arrays["masking/own_first"][0] == 1 and arrays["masking/own_rank"][0] == 0
    assert (
        arrays["masking/nearest"].shape == (4, 2, 3)
        and arrays["masking/hidden"].sum(axis=-1).tolist() == [[12] * 2] * 2
    )
    places = arrays["masking/gallery_places"]
    assert set(arrays["masking/nearest"][:2].ravel()) == set(places.tolist())
    assert len(arrays["masking/gallery"]) == len(places)
    assert "lidar" in found.numbers
    assert found.notes["masking"][0].startswith("Retrieval, not generation")
    alone = one(source, ["masking"], masks_per_image=1)
    assert "lidar" not in alone.numbers
    by_class = one(source, ["masking"], mask_ratios=[0.75], feature="cls")
    assert (
        by_class.numbers["agreement_least"] != one(source, ["masking"], mask_ratios=[0.75]).numbers["agreement_least"]
    )


def test_masks_and_neighbours_by_hand() -> None:
    visible = draw_visible(3, 10, 0.7, seed=0, draw=1)
    assert visible.shape == (3, 3)  # floor(10 * (1 - 0.7)), as the float64 product is
    assert torch.equal(draw_visible(5, 10, 0.7, seed=0, draw=1)[:3], visible)
    assert torch.equal(draw_visible(3, 10, 0.3, seed=0, draw=1)[:, :3], visible)
    assert not torch.equal(draw_visible(3, 10, 0.7, seed=0, draw=2), visible)
    with pytest.raises(ConfigError, match="leaves none to look at"):
        draw_visible(1, 4, 0.9, seed=0, draw=0)
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    found = retrieve(gallery[:2] + 0.0, gallery, torch.tensor([0, 1]), torch.tensor([5, 5, 6, -1]), k=2)
    assert found.nearest.tolist() == [[1, 2], [0, 2]]
    assert found.own_rank.tolist() == [0, 0] and found.precision.tolist() == [0.5, 0.5]
    lost = retrieve(gallery[2:3], gallery, torch.tensor([0]), torch.tensor([-1] * 4), k=9)
    assert lost.own_rank.tolist() == [2] and lost.precision.isnan().all() and lost.nearest.shape == (1, 3)
    assert agreement(gallery[:1], gallery[3:]).tolist() == [-1]
    masks = [torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4, 9, 2, 8]]), torch.tensor([[2, 4, 5, 6]])]
    assert shared_neighbours(masks).tolist() == [0.5]


def test_what_is_learned_from_half_seen_images_is_measured_on_whole_ones() -> None:
    drawing = np.random.default_rng(0)
    labels = torch.tensor([0, 1, 0, 1, -1, 0, 1, 1, -1])
    gallery = torch.from_numpy(drawing.normal(size=(9, 4))) + 4 * labels[:, None]
    assert learned_half_seen([gallery[:5]], gallery, labels) == 1
    assert learned_half_seen([gallery[:5], gallery[:5]], gallery, labels) == 1
    turned = gallery[[1, 0, 3, 2, 4]]  # Every image is learned under the other's class.
    assert learned_half_seen([turned], gallery, labels) == 0
    with pytest.raises(ShapeError, match="at least two classes among masked_images"):
        learned_half_seen([gallery[:1]], gallery, labels)
    found = one(pictures(12), ["masking"], mask_ratios=[0.5, 0.75], masked_images=6)
    assert found.arrays["masking/learned_ratios"].tolist() == [0, 0.5, 0.75]
    assert found.arrays["masking/learned_accuracy"].shape == (3,)
    assert found.numbers["learned_whole"] == found.arrays["masking/learned_accuracy"][0]
    blind = one(pictures(12, classes=0), ["masking"])
    assert "masking/learned_accuracy" not in blind.arrays
    assert "Without a classifier of half-seen images" in " ".join(blind.notes["masking"])


def test_noise_by_frequency_and_size() -> None:
    source = pictures(12)
    weak = one(source, ["noise"], noise_eps=0.01)
    strong = one(source, ["noise"], noise_eps=2.0)
    assert strong.arrays["noise/agreement"].min() < weak.arrays["noise/agreement"].min() <= 1
    assert weak.arrays["noise/accuracy_change"].shape == (9,) and "nearest class mean" in weak.notes["noise"][1]
    wider = one(source, ["noise"], noise_eps=2.0, noise_half_width=1.0)
    assert not np.allclose(wider.arrays["noise/agreement"], strong.arrays["noise/agreement"])
    blind = one(pictures(12, classes=0), ["noise"])
    assert "noise/accuracy_change" not in blind.arrays and "Without accuracies" in blind.notes["noise"][1]


def test_the_patch_probe_has_two_forms() -> None:
    source = open_source("bundled:fashion-scenes", "test").subset(np.arange(10))
    found = one(source, ["probe"], probe_epochs=2)
    assert found.arrays["probe/losses"].shape == (2,)
    assert {"probe_train", "probe_held_out", "probe_most_frequent"} <= found.numbers.keys()
    assert one(source, ["probe"], probe_lr=0.5).numbers["probe_train"] != found.numbers["probe_train"]
    assert "has no masks" in one(pictures(), ["probe"]).notes["probe"][0]


def test_encoders_side_by_side_and_on_other_grids(tmp_path: Path) -> None:
    config = AnalyzeConfig.model_validate(QUICK)
    source = pictures()
    twins = analyze([subject(name="a"), subject(name="b")], source, config, ["cka"])
    np.testing.assert_allclose(np.diag(twins.between["a|b/tokens"]), 1, atol=1e-5)
    np.testing.assert_allclose(twins.between["a|b/images"], twins.encoders[0].arrays["cka/images"], atol=1e-5)
    assert twins.notes == []
    mixed = analyze([subject(), subject("vit8"), subject("swin")], source, config, ["cka", "attention", "masking"])
    assert set(mixed.between) == {"vit|vit8/images", "vit|swin/images", "vit8|swin/images"}
    assert any("patch grids differ" in note for note in mixed.notes)
    assert any("cut images in different ways" in note for note in mixed.notes)
    swin = mixed.encoders[2]
    assert "attend within windows" in swin.notes["attention"][0] and "can't drop patches" in swin.notes["masking"][0]
    summary = json.loads(mixed.write(tmp_path).read_text())
    assert [each["file"] for each in summary["encoders"]] == ["vit.npz", "vit8.npz", "swin.npz"]
    with np.load(tmp_path / "vit8.npz", allow_pickle=False) as arrays:
        assert arrays["attention/distance"].shape == (2, 12, 2)
    twins.between.clear()
    twins.write(tmp_path)
    assert not (tmp_path / "between.npz").exists()


def test_one_image_only() -> None:
    config = AnalyzeConfig.model_validate(QUICK)
    found = analyze([subject(name="a"), subject(name="b")], pictures(1, classes=1), config)
    alone = found.encoders[0]
    few = one(pictures(1, classes=1), ["embedding"], tsne=True)
    assert "embedding/pca" in few.arrays and "Without tsne: t-SNE: got 16 points" in few.notes["embedding"][0]
    assert found.notes == ["a|b: CKA between encoders needs at least two images."]
    for name, sentence in {
        "rank": "at least two images",
        "masking": "at least two images",
        "geometry": "no variance across",
        "spectra": "at least two images",
        "embedding": "need two images",
        "layers": "at least 5 images",
    }.items():
        assert sentence in " ".join(alone.notes[name]), name
    assert {"attention/distance", "fourier/highest", "cka/tokens", "similarity/pairs.final"} <= alone.arrays.keys()
    assert found.summary()["encoders"][0]["numbers"]["variance_across"] is None


def test_no_image_is_an_error() -> None:
    with pytest.raises(DataError, match="holds no image to analyse"):
        one(pictures(0), ["rank"])
    with pytest.raises(DataError, match=r"fraction_per_class: 0\.01 of each class"):
        one(pictures(), ["rank"], fraction_per_class=0.01)


def test_what_an_encoder_has_not_is_said_and_the_rest_goes_on() -> None:
    found = one(pictures(), ["attention", "embedding", "fourier"], queries=[[9, 0]], embedding_layer=5)
    assert found.notes["attention"][0].startswith("Left out: query: got row 9")
    assert found.notes["embedding"][0].startswith("Left out: embedding_layer: got 5")
    assert "fourier/highest" in found.arrays


@torch.no_grad()
def test_grids_that_are_not_square() -> None:
    """Attention is defined for them, the Fourier diagonal and patch geometry are not."""
    encoder = network("vit")
    images = torch.randn(2, 3, 16, 8)
    attention, fourier, geometry = AttentionWatcher(4, shown=1, class_token=True), FourierWatcher(), GeometryWatcher()
    views = list(encoder.block_views(images))
    for view in views:
        attention.block(view, Place(0, 2))
    assert attention.result().arrays["maps"].shape[-2:] == (4, 2)
    with pytest.raises(ShapeError, match="needs a square grid, got 4x2"):
        fourier.block(views[0], Place(0, 2))
    last = views[-1].tokens
    with pytest.raises(ShapeError, match="needs a square grid"):
        geometry.output(Features(last.prefix, last.patches, last.grid), Place(0, 2))


def test_chosen_reference_patches_are_drawn_and_must_exist(tmp_path: Path) -> None:
    config = AnalyzeConfig.model_validate({**QUICK, "references": [[3, 1]]})
    found = analyze([subject()], pictures(4), config, ["similarity"])
    assert found.encoders[0].arrays["images/references"].tolist() == [[13]] * len(
        found.encoders[0].arrays["images/shown"]
    )
    assert one(pictures(4), ["similarity"]).arrays["images/references"][0, 0] == 0
    summary = found.write(tmp_path)
    draw_analysis(summary)
    assert json.loads((tmp_path / "figures" / "similarity.json").read_text())["refs"] == {"[3, 1]": 13}
    with pytest.raises(ConfigError, match=r"references: got \[4, 0\], but 'vit' has 4 rows"):
        one(pictures(4), ["similarity"], references=[[4, 0]])


def test_a_register_is_not_taken_for_a_class_token() -> None:
    tokens = Tokens(torch.randn(3, 2, 8), torch.randn(3, 16, 8), (4, 4))
    attention = torch.rand(3, 2, 18, 18).softmax(dim=-1)
    for class_token, maps in ((True, 4), (False, 3)):
        watcher = AttentionWatcher(4, shown=2, class_token=class_token)
        watcher.block(BlockView(1, tokens, attention=attention), Place(0, 3))
        assert watcher.result().arrays["maps"].shape == (1, 2, 2, maps, 4, 4)
        rank = RankWatcher(2, 1, class_token)
        rank.output(Features(tokens.prefix, tokens.patches, tokens.grid), Place(0, 3))
        assert ("rankme_cls" in rank.result().numbers) == class_token


def test_similarities_of_large_grids_are_left_out() -> None:
    watcher = SimilarityWatcher(1)
    tokens = network("vit").encode(torch.randn(1, 3, 16, 16))
    large = tokens._replace(patches=torch.randn(1, 441, 4), grid=(21, 21))
    watcher.output(large, Place(0, 1))
    watcher.block(BlockView(1, Tokens(large.prefix, large.patches, large.grid)), Place(0, 1))
    found = watcher.result()
    assert "pairs.final" in found.arrays and "pairs.1" not in found.arrays and "colours.1" in found.arrays
    assert "without layer 1" in found.notes[0]


def test_every_image_is_kept_small_and_as_a_point() -> None:
    source = pictures(24)
    found = one(source, ["embedding", "rank"], tsne=True, tsne_tokens=30, shown_images=3, neighbours=4).arrays
    assert found["images/thumbnails"].shape == (24, 16, 16, 3)
    np.testing.assert_array_equal(found["images/thumbnails"][:3], found["images/shown"])
    assert found["embedding/images_pca"].shape == found["embedding/images_tsne"].shape == (24, 2)
    assert "embedding/images_tsne" not in one(source, ["embedding"]).arrays
    few = one(pictures(8), ["embedding"], tsne=True, tsne_tokens=30)
    assert "embedding/images_tsne" not in few.arrays and "got 8 points" in few.notes["embedding"][-1]
    assert found["rank/nearest"].shape == found["rank/nearest_similarity"].shape == (3, 4)
    assert (np.diff(found["rank/nearest_similarity"]) <= 0).all()
    assert not (found["rank/nearest"] == np.arange(3)[:, None]).any()


def test_large_images_are_kept_small() -> None:
    large = ArraySource("large", np.full((2, 48, 48, 3), 9, dtype=np.uint8), np.zeros(2, dtype=np.int64), ("a",))
    config = AnalyzeConfig.model_validate(QUICK)
    wide = AnalyzedEncoder("wide", network("vit", 48), (0.5,) * 3, (0.25,) * 3, "here")
    assert analyze([wide], large, config, ["rank"]).encoders[0].arrays["images/thumbnails"].shape == (2, 32, 32, 3)


def test_features_that_are_not_finite_are_a_sentence() -> None:
    ill = subject()
    with torch.no_grad():
        next(ill.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="'vit': its features are not finite"):
        analyze([ill], pictures(4), AnalyzeConfig.model_validate(QUICK), ["rank", "geometry"])

"""Geometry of patch tokens: accumulated batch by batch it is what the formulas say of all images at once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from halfseen.analysis.geometry import (
    TokenGeometry,
    manhattan_distances,
    probe_accuracy,
    similarity_maps,
    train_patch_probe,
)
from halfseen.errors import ShapeError


@given(images=st.integers(2, 9), side=st.integers(2, 4), batch=st.integers(1, 5), seed=st.integers(0, 99))
def test_streaming_equals_the_plain_formulas(images: int, side: int, batch: int, seed: int) -> None:
    drawing = torch.Generator().manual_seed(seed)
    features = torch.randn(images, side * side, 5, generator=drawing) + 100 * torch.rand(5, generator=drawing)
    geometry = TokenGeometry((side, side))
    for part in features.split(batch):
        geometry.update(part)
    found = geometry.result()
    exact = features.double()
    assert found.within == pytest.approx(float(exact.var(dim=1).mean()), rel=1e-9)
    assert found.across == pytest.approx(float(exact.mean(dim=1).var(dim=0).mean()), rel=1e-9)
    assert found.total == found.within + found.across
    units = exact / exact.norm(dim=-1, keepdim=True)
    pairs = torch.einsum("npd,nqd->pq", units, units) / images
    apart = manhattan_distances((side, side))
    plain = torch.stack([pairs[apart == distance].mean() for distance in found.distances.tolist()])
    torch.testing.assert_close(found.cosines, plain, rtol=0, atol=1e-5)


def test_distances_count_steps_on_the_grid() -> None:
    apart = manhattan_distances((2, 3))
    assert apart[0].tolist() == [0, 1, 2, 1, 2, 3]
    assert torch.equal(apart, apart.T)


def test_one_image_has_no_variance_across() -> None:
    geometry = TokenGeometry((2, 2))
    geometry.update(torch.randn(1, 4, 3))
    found = geometry.result()
    assert math.isnan(found.across) and math.isnan(found.total) and found.within > 0


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ShapeError, match="square grid of at least 2x2 patches, got 2x3"):
        TokenGeometry((2, 3))
    with pytest.raises(ShapeError, match="got 5 patch tokens"):
        TokenGeometry((2, 2)).update(torch.randn(1, 5, 3))
    with pytest.raises(ShapeError, match="no features"):
        TokenGeometry((2, 2)).result()
    with pytest.raises(ShapeError, match="tokens: got 5"):
        similarity_maps(torch.randn(5, 3), torch.tensor([0]), (2, 2))


def test_a_token_is_most_like_itself() -> None:
    maps = similarity_maps(torch.randn(6, 8), torch.tensor([4, 1]), (2, 3))
    assert maps.shape == (2, 2, 3)
    assert maps.flatten(1).argmax(dim=1).tolist() == [4, 1]
    torch.testing.assert_close(maps.flatten(1).amax(dim=1), torch.ones(2))


def patches_of_two_kinds(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 2, (images, 4), generator=generator)
    tokens = torch.randn(images, 4, 6, generator=generator)
    tokens[..., 0] += 4.0 * (2 * labels - 1)
    return tokens, labels


def test_a_probe_learns_what_tokens_tell_and_leaves_them_alone(generator: torch.Generator) -> None:
    tokens, labels = patches_of_two_kinds(16, generator)
    tokens.requires_grad_()
    held_out = patches_of_two_kinds(16, generator)
    batches = [(tokens[:10], labels[:10]), (tokens[10:], labels[10:])]
    probe = nn.Linear(6, 2)
    trace = train_patch_probe(probe, [batches] * 20, lr=0.05)
    assert tokens.grad is None
    assert len(trace.losses) == len(trace.accuracies) == 20
    assert trace.train_accuracy == trace.accuracies[-1] > 0.95 and trace.losses[-1] < trace.losses[0]
    assert probe_accuracy(probe, [held_out]) > 0.95
    assert probe_accuracy(probe, [(held_out[0], 1 - held_out[1])]) < 0.05


def test_patches_without_a_label_are_left_out() -> None:
    tokens = torch.randn(2, 4, 6)
    labels = torch.tensor([[0, 1, -1, -1], [1, -1, -1, 0]])
    probe = nn.Linear(6, 2)
    known = (probe(tokens).argmax(-1) == labels).sum() / 4
    assert probe_accuracy(probe, [(tokens, labels)]) == pytest.approx(float(known))
    trace = train_patch_probe(probe, [[(tokens, labels)]])
    assert trace.train_accuracy == pytest.approx(float(known))


def test_a_probe_without_patches_is_refused() -> None:
    probe = nn.Linear(6, 2)
    with pytest.raises(ShapeError, match="no epoch"):
        train_patch_probe(probe, [])
    with pytest.raises(ShapeError, match="without a batch"):
        train_patch_probe(probe, [[]])
    with pytest.raises(ShapeError, match="no patch with a label"):
        probe_accuracy(probe, [])

"""Fourier amplitudes, singular values, alignment, band noise and components against plain formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.analysis.embedding import component_colours, neighbour_embedding, principal_components
from halfseen.analysis.robustness import band_noise, nearest_class, sign_noise
from halfseen.analysis.similarity import linear_cka
from halfseen.analysis.spectrum import (
    feature_variance,
    image_singular_values,
    log_amplitudes,
    spectrum_change,
    token_singular_values,
)
from halfseen.errors import ShapeError


@given(side=st.integers(2, 7), seed=st.integers(0, 50))
def test_the_diagonal_is_that_of_the_whole_transform(side: int, seed: int) -> None:
    tokens = torch.randn(2, side * side, 5, generator=torch.Generator().manual_seed(seed))
    planes = tokens.double().transpose(1, 2).reshape(2, 5, side, side)
    whole = torch.log(torch.fft.fft2(planes).abs() + 1e-6)
    whole = torch.roll(whole, (side // 2, side // 2), dims=(2, 3)).mean(dim=1)
    plain = whole.diagonal(dim1=1, dim2=2)[:, side // 2 :]
    found = log_amplitudes(tokens, (side, side))
    assert found.shape == (2, math.ceil(side / 2))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 9, 5), (3, 5, 9)])
def test_singular_values_are_those_of_a_decomposition(shape: tuple[int, int, int], generator: torch.Generator) -> None:
    tokens = torch.randn(shape, generator=generator)
    centred = tokens.double() - tokens.double().mean(dim=1, keepdim=True)
    torch.testing.assert_close(token_singular_values(tokens), torch.linalg.svdvals(centred), rtol=1e-6, atol=1e-6)
    means = tokens.mean(dim=1)
    plain = torch.linalg.svdvals(means.double() - means.double().mean(dim=0))
    torch.testing.assert_close(image_singular_values(means), plain, rtol=1e-6, atol=1e-6)


def test_the_change_of_a_spectrum_leaves_out_what_is_noise() -> None:
    before = torch.tensor([[8.0, 4.0, 2.0, 0.0]]).double()
    after = torch.tensor([[4.0, 4.0, 1e-5, 0.0]]).double()
    change = spectrum_change(before, after, num_patches=4)
    assert change.delta.shape == (3,) and change.reliable.tolist() == [True, True, False]
    assert change.delta[:2].tolist() == pytest.approx([-math.log(2), 0.0])


def test_variance_is_unbiased_and_over_patches(generator: torch.Generator) -> None:
    tokens = torch.randn(3, 7, 4, generator=generator)
    plain = tokens.numpy().var(axis=1, ddof=1).mean(axis=1)
    np.testing.assert_allclose(feature_variance(tokens).numpy(), plain, rtol=1e-6)


def test_alignment_ignores_rotation_scale_and_shift(generator: torch.Generator) -> None:
    rows = torch.randn(40, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    other = torch.randn(40, 3, generator=generator)
    found = linear_cka([rows, 5 * rows @ rotation + 3], [rows, other, torch.ones(40, 2)])
    assert found[:, 0].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert found[0, 1] == pytest.approx(float(found[1, 1]), abs=1e-6) and 0 < found[0, 1] < 0.5
    assert found[:, 2].isnan().all()
    with pytest.raises(ShapeError, match=r"matrices of \[39, 40\] rows"):
        linear_cka([rows], [other[:39]])


def test_bands_of_noise_hold_their_frequencies_only(generator: torch.Generator) -> None:
    noise = sign_noise(2, 32, 0.25, generator)
    assert noise.abs().unique().tolist() == [0.25]
    low, high = (band_noise(noise, tenth * math.pi / 10) for tenth in (1, 9))
    rows = torch.fft.fftfreq(32).abs()
    radius = torch.maximum(rows[:, None], rows) * 2 * math.pi
    for band, centre in ((low, 0.1 * math.pi), (high, 0.9 * math.pi)):
        spectrum = torch.fft.fft2(band).abs().amax(dim=(0, 1))
        assert float(spectrum[(radius - centre).abs() > 0.2 + 2 * math.pi / 32].max()) < 1e-3
        assert float(spectrum.max()) > 1
    assert not torch.equal(band_noise(noise, 0.5, 0.1), band_noise(noise, 0.5, 0.4))
    with pytest.raises(ShapeError, match="square images of an even side, got 31x31"):
        band_noise(noise[..., :31, :31], 1.0)


def test_the_nearest_class_is_that_of_the_mean_direction() -> None:
    known = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [9.0, 9.0]])
    labels = torch.tensor([4, 4, 7, -1])
    found = nearest_class(known, labels, torch.tensor([[3.0, 1.0], [0.1, 5.0]]))
    assert found is not None and found.tolist() == [4, 7]
    assert nearest_class(known, torch.tensor([4, 4, -1, -1]), known) is None


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_components_are_scikit_learns(shape: tuple[int, int], generator: torch.Generator) -> None:
    from sklearn.decomposition import PCA

    rows = torch.randn(shape, generator=generator)
    found, other = principal_components(rows, 3), PCA(3).fit(rows.numpy())
    np.testing.assert_allclose(found.points.abs().numpy(), np.abs(other.transform(rows.numpy())), atol=1e-4)
    np.testing.assert_allclose(found.share.numpy(), other.explained_variance_ratio_, rtol=1e-4)
    assert (found.points.gather(0, found.points.abs().argmax(dim=0, keepdim=True)) > 0).all()
    with pytest.raises(ShapeError, match="got 5 rows" if shape[0] == 5 else "got 30 rows"):
        principal_components(rows, 6)


def test_colours_mean_the_same_in_all_images(generator: torch.Generator) -> None:
    tokens = torch.randn(2, 6, 4, generator=generator)
    tokens[1, 0] = tokens[0, 3]
    colours = component_colours(tokens, (2, 3))
    assert colours.shape == (2, 2, 3, 3)
    assert torch.equal(colours[1, 0, 0], colours[0, 1, 0])


def test_neighbour_embedding_repeats_by_its_seed(generator: torch.Generator) -> None:
    rows = torch.randn(24, 3, generator=generator)
    first = neighbour_embedding(rows, seed=1)
    assert torch.equal(first, neighbour_embedding(rows, seed=1))
    assert not torch.equal(first, neighbour_embedding(rows, seed=2))
    with pytest.raises(ShapeError, match="more than its perplexity"):
        neighbour_embedding(rows[:20])

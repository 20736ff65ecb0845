"""Colours and sharpness change as in the original pipelines: same distribution, and Pillow's pixels."""

import colorsys
import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision import transforms as v1
from torchvision.transforms import functional as v1f

from halfseen.data.photometric import (
    Changes,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    apply_changes,
    draw_changes,
    gaussian_blur,
    solarize,
    to_grayscale,
)
from halfseen.types import Photometric

ALL = Photometric(
    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.2
)
NAMES = ("brightness", "contrast", "saturation", "hue")
OURS = dict(zip(NAMES, (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue), strict=True))
THEIRS = dict(
    zip(NAMES, (v1f.adjust_brightness, v1f.adjust_contrast, v1f.adjust_saturation, v1f.adjust_hue), strict=True)
)
# Odd sizes, because vectorised kernels treat the last few pixels by themselves.
SIZES = pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 53), (5, 3), (1, 1)])


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with edges and some noise."""
    drawing = np.random.default_rng(seed)
    small = Image.fromarray(drawing.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.array(small.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 120)
    pixels += drawing.normal(scale=6, size=pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """All colours, side by side."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def differences(ours: np.ndarray, theirs: Image.Image) -> np.ndarray:
    assert ours.dtype == np.uint8
    assert ours.shape == (theirs.height, theirs.width, 3)
    return np.abs(ours.astype(int) - np.asarray(theirs.convert("RGB")).astype(int))


# ---- each change


@SIZES
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.2, 0.6, 0.93, 1.0, 1.07, 1.4, 1.8])
def test_a_mixture_is_pillows_to_one_level(name: str, factor: float, height: int, width: int) -> None:
    for image in (photograph(height, width), noise(height, width)):
        assert differences(OURS[name](image, factor), THEIRS[name](Image.fromarray(image), factor)).max() <= 1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_factor_of_one_changes_nothing(name: str) -> None:
    image = noise(64, 64)
    np.testing.assert_array_equal(OURS[name](image, 1.0), image)


@pytest.mark.parametrize("turn", [-0.5, -0.31, -0.1, -0.003, 0.0, 0.04, 0.1, 0.25, 0.5])
def test_hue_is_pillows_to_a_few_levels(turn: float) -> None:
    """Pillow keeps hue and saturation in 8 bits: a step of its hue is up to 6 levels of a full colour, a step of its
    saturation 1; we keep fractions. On a photograph that is seldom seen."""
    vivid, natural = noise(96, 96), photograph(96, 128)
    far = differences(adjust_hue(vivid, turn), v1f.adjust_hue(Image.fromarray(vivid), turn))
    near = differences(adjust_hue(natural, turn), v1f.adjust_hue(Image.fromarray(natural), turn))
    assert far.max() <= 10 and far.mean() < 0.8
    assert np.percentile(near, 99) <= 5 and near.mean() < 0.7


@SIZES
@pytest.mark.parametrize("turn", [-0.4, 0.0, 0.2])
def test_hue_is_the_textbooks_to_one_level(turn: float, height: int, width: int) -> None:
    image = noise(height, width)
    image[0, 0] = 77  # A grey has no hue to turn.
    degrees = (int(turn * 255) - 0.5) / 255

    def turned(pixel: np.ndarray) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return colorsys.hsv_to_rgb((hue + degrees) % 1, saturation, value)

    expected = 255 * np.array([[turned(pixel) for pixel in row] for row in image])
    assert np.abs(adjust_hue(image, turn) - expected).max() <= 0.51


@SIZES
def test_grayscale_is_pillows_to_one_level_and_equal_in_all_channels(height: int, width: int) -> None:
    for image in (photograph(height, width), noise(height, width)):
        gray = to_grayscale(image)
        assert differences(gray, v1f.rgb_to_grayscale(Image.fromarray(image), 3)).max() <= 1
        assert (gray == gray[..., :1]).all()


@SIZES
def test_solarize_is_pillows(height: int, width: int) -> None:
    image = noise(height, width)
    np.testing.assert_array_equal(solarize(image), np.asarray(ImageOps.solarize(Image.fromarray(image), 128)))
    edge = np.array([[[0, 127, 128], [129, 255, 1]]], np.uint8)
    assert solarize(edge).tolist() == [[[0, 127, 127], [126, 0, 1]]]


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.5, 0.8, 1.1, 1.4, 1.5, 1.8, 2.0, 4.5])
def test_blur_is_pillows(radius: float) -> None:
    """Inside, Pillow's six passes round six times and ours once; at the edge each of its passes repeats the outermost
    pixel anew."""
    for image, mean, most in ((photograph(96, 128), 0.8, 3), (noise(96, 128), 1.0, 4)):
        difference = differences(
            gaussian_blur(image, radius), Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
        )
        margin = 3 * math.ceil(radius) + 1
        assert difference[margin:-margin, margin:-margin].max() <= most
        assert difference[margin:-margin, margin:-margin].mean() < mean
        assert difference.mean() < 1.5 * mean


@given(radius=st.floats(0.0, 5.0))
def test_blur_spreads_by_its_radius_and_keeps_the_sum(radius: float) -> None:
    image = np.zeros((65, 65, 3), np.uint8)
    image[:, 32] = 255
    profile = gaussian_blur(image, radius)[20, :, 0].astype(float)
    np.testing.assert_array_equal(profile, profile[::-1])
    # Each of up to about 30 values is rounded, and each weight before it.
    assert profile.sum() == pytest.approx(255, abs=8)
    deviation = math.sqrt((profile * (np.arange(65) - 32.0) ** 2).sum() / profile.sum())
    assert deviation == pytest.approx(radius, rel=0.1, abs=0.1)


@given(radius=st.floats(0.0, 3.0), level=st.integers(0, 255), size=st.integers(1, 9))
def test_blur_leaves_an_even_surface_alone(radius: float, level: int, size: int) -> None:
    image = np.full((size, 10 - size, 3), level, np.uint8)
    np.testing.assert_array_equal(gaussian_blur(image, radius), image)


# ---- all together


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_changes_come_in_the_drawn_order(order: tuple[int, ...]) -> None:
    factors = (1.35, 0.7, 1.18, 0.07)
    steps = tuple((NAMES[which], factors[which]) for which in order)
    image = photograph(96, 96)
    expected = Image.fromarray(image)
    for name, factor in steps:
        expected = THEIRS[name](expected, factor)
    ours = apply_changes(image, Changes(steps, grayscale=False, blur_radius=None, solarize=False))
    assert differences(ours, expected).mean() < 1.0
    expected = v1f.rgb_to_grayscale(expected, 3).filter(ImageFilter.GaussianBlur(1.3))
    ours = apply_changes(image, Changes(steps, grayscale=True, blur_radius=1.3, solarize=True))
    # Blurred before solarised: else edges would show, and one level at the threshold is one level after it.
    assert differences(ours, ImageOps.solarize(expected, 128)).mean() < 1.5


def test_the_picture_handed_in_is_left_alone() -> None:
    image, before = noise(32, 32), noise(32, 32)
    image.flags.writeable = False
    apply_changes(image, Changes((("hue", 0.1), ("contrast", 1.2)), grayscale=True, blur_radius=1.0, solarize=True))
    apply_changes(image, Changes((), grayscale=False, blur_radius=None, solarize=True))
    np.testing.assert_array_equal(image, before)


# ---- what is drawn


def drawn(colour: Photometric, count: int = 4000, seed: int = 0) -> list[Changes]:
    generator = np.random.default_rng(seed)
    return [draw_changes(colour, generator) for _ in range(count)]


def test_everything_comes_at_its_rate_and_independently() -> None:
    changes = drawn(ALL)
    happened = np.array([(bool(c.jitter), c.grayscale, c.blur_radius is not None, c.solarize) for c in changes])
    rates = np.array([0.8, 0.2, 0.5, 0.2])
    np.testing.assert_allclose(happened.mean(0), rates, atol=4 * 0.5 / math.sqrt(len(changes)))
    together = np.corrcoef(happened.T) - np.eye(4)
    assert np.abs(together).max() < 4 / math.sqrt(len(changes))


def test_rates_of_zero_and_one_are_certain() -> None:
    assert set(drawn(Photometric(), 500)) == {Changes((), False, None, False)}
    for change in drawn(replace(ALL, jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0), 500):
        assert len(change.jitter) == 4 and change.grayscale and change.solarize and change.blur_radius is not None


@pytest.mark.parametrize("colour", [ALL, replace(ALL, brightness=1.5, contrast=0.8, saturation=2.0, hue=0.5)])
def test_factors_are_distributed_as_torchvisions(colour: Photometric) -> None:
    jitter = v1.ColorJitter(colour.brightness, colour.contrast, colour.saturation, colour.hue)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = [v1.ColorJitter.get_params(*ranges)[1:] for _ in range(2000)]
    ours = [dict(change.jitter) for change in drawn(replace(colour, jitter=1.0))]
    for number, name in enumerate(NAMES):
        values = np.array([factors[name] for factors in ours])
        low, high = ranges[number]
        assert low <= values.min() and values.max() <= high
        assert ks_2samp(values, [factors[number] for factors in theirs]).pvalue > 0.01
    assert np.abs(np.corrcoef([[factors[name] for factors in ours] for name in NAMES]) - np.eye(4)).max() < 0.07


def test_all_orders_are_equally_likely() -> None:
    orders = Counter(tuple(name for name, _ in change.jitter) for change in drawn(replace(ALL, jitter=1.0), 9600))
    assert set(orders) == set(permutations(NAMES))
    assert chisquare(list(orders.values())).pvalue > 0.01


def test_a_strength_of_zero_leaves_its_change_out() -> None:
    only_hue = drawn(Photometric(hue=0.1, jitter=1.0), 50)
    assert {tuple(name for name, _ in change.jitter) for change in only_hue} == {("hue",)}


def test_blur_radii_are_uniform() -> None:
    radii = [change.blur_radius for change in drawn(replace(ALL, blur=1.0, blur_radius=(0.1, 2.0)))]
    assert kstest(radii, "uniform", (0.1, 1.9)).pvalue > 0.01


@pytest.mark.parametrize("colour", [Photometric(), ALL, replace(ALL, jitter=0.0, blur=1.0)])
def test_the_same_number_of_draws_whatever_is_switched_on(colour: Photometric) -> None:
    used, counted = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        draw_changes(colour, used)
        counted.random(10)
    assert used.random() == counted.random()

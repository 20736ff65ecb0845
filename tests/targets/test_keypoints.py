import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.targets.keypoints import (
    DENSITY_KEY,
    KeypointDensity,
    KeypointWeight,
    detect_keypoints,
    detector_gray,
    keypoint_density,
    keypoint_map,
    keypoint_weights,
)

DETECTORS = ["fast", "sift", "orb"]


def textured(size: int, seed: int = 0) -> np.ndarray:
    """Random coloured rectangles: plenty of corners."""
    random = np.random.default_rng(seed)
    image = np.full((size, size, 3), 90, dtype=np.uint8)
    for _ in range(30):
        y, x = random.integers(0, size - 8, 2)
        h, w = random.integers(4, size // 3, 2)
        image[y : y + h, x : x + w] = random.integers(0, 256, 3)
    return image


@pytest.mark.parametrize("detector", DETECTORS)
def test_rings_are_what_opencv_draws(detector: str) -> None:
    for seed in range(5):
        image = textured(96, seed)
        gray = detector_gray(image)
        drawn = np.zeros_like(image)
        points = [cv2.KeyPoint(float(x), float(y), 1.0) for x, y in detect_keypoints(gray, detector)[:, :2]]
        assert points
        cv2.drawKeypoints(drawn, points, drawn, color=(255, 0, 0))
        np.testing.assert_array_equal(keypoint_map(image, detector), drawn[..., 0] != 0)


def test_the_gray_picture_weighs_red_as_blue() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    red, green, blue = (image[..., channel].astype(np.int64) for channel in range(3))
    np.testing.assert_array_equal(detector_gray(image), (3735 * red + 19235 * green + 9798 * blue + 2**14) >> 15)
    np.testing.assert_array_equal(detector_gray(image, "rgb"), (9798 * red + 19235 * green + 3735 * blue + 2**14) >> 15)


def test_points_mark_the_nearest_pixel() -> None:
    image = textured(64)
    for detector in DETECTORS:
        marks = keypoint_map(image, detector, "point")
        positions = detect_keypoints(detector_gray(image), detector)[:, :2].round().astype(int)
        assert {(x, y) for x, y in positions} == {(x, y) for y, x in np.argwhere(marks)}


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("size", [16, 28, 64])
def test_a_flat_picture_of_any_size_has_weights_of_one(detector: str, size: int) -> None:
    extras = KeypointDensity(detector, size // 4)
    shipped = extras((np.full((size, size, 3), 128, np.uint8),), np.random.default_rng(0))
    density = torch.from_numpy(shipped[DENSITY_KEY])
    assert density.shape == (4, 4) and not density.any()
    assert torch.equal(keypoint_weights(density[None], 0.25), torch.ones(1, 4, 4))


@given(
    cells=st.lists(st.floats(0, 1, width=32), min_size=9, max_size=9),
    temperature=st.sampled_from([0.1, 0.25, 1.0, 2.5]),
)
def test_weights_start_at_one_and_end_at_the_exponential(cells: list[float], temperature: float) -> None:
    density = torch.tensor(cells).reshape(1, 3, 3)
    weights = keypoint_weights(density, temperature)
    assert float(weights.min()) == 1.0
    exact = torch.exp((density.double() - density.double().min()) / temperature)
    torch.testing.assert_close(weights.double(), exact, rtol=1e-5, atol=0)
    mean_one = keypoint_weights(density, temperature, "mean")
    assert float(mean_one.mean()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(mean_one / mean_one.min(), weights, rtol=1e-5, atol=0)


def test_the_exponent_is_clipped() -> None:
    density = torch.tensor([[[0.0, 1.0]]])
    assert float(keypoint_weights(density, 0.01).max()) == pytest.approx(float(np.exp(20.0)), rel=1e-5)


def test_each_image_has_its_own_minimum() -> None:
    density = torch.tensor([[[0.25, 0.5]], [[0.5, 0.75]]])
    weights = keypoint_weights(density, 0.25)
    torch.testing.assert_close(weights[0], weights[1])


def test_densities_count_marked_pixels() -> None:
    marks = np.zeros((8, 16), np.uint8)
    marks[:4, 8:12] = 1
    density = keypoint_density(marks, 8)
    assert density.dtype == np.float32
    assert density.tolist() == [[0.0, 0.25]]
    with pytest.raises(ShapeError, match="8x16 pixels can't be cut into cells of 5"):
        keypoint_density(marks, 5)


def test_the_loader_function_can_be_sent_to_a_worker() -> None:
    extras = KeypointWeight(kind="keypoints", detector="orb").extras(64, "method.loss_weight")
    copy = pickle.loads(pickle.dumps(extras))  # our own object, as a worker receives it
    image = textured(64)
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(copy((image,), random)[DENSITY_KEY], extras((image,), random)[DENSITY_KEY])


def test_cells_that_do_not_fit_and_batches_without_densities() -> None:
    weight = KeypointWeight(kind="keypoints", weight_patch_size=24)
    with pytest.raises(ConfigError, match=r"loss_weight\.weight_patch_size: 24 .* 64 px\. .* fit: 4, 8, 16"):
        weight.extras(64, "method.loss_weight")
    with pytest.raises(DataError, match="keypoint_density"):
        weight.of_patches({}, 16)
    density = torch.rand(2, 4, 4)
    per_patch = weight.of_patches({DENSITY_KEY: density}, 16)
    assert per_patch.shape == (2, 36, 2, 2)

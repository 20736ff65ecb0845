"""Views have the distribution and the pixels that the original pipelines give."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from halfseen.data.decode import decode_image
from halfseen.data.photometric import apply_changes, draw_changes
from halfseen.data.transforms import (
    REDUCING_GAP,
    CropBox,
    clamped_crop_box,
    cut_views,
    decode_floor,
    deterministic_view,
    random_crop_box,
    resize,
    resized_shorter_side,
    smallest_crop_side,
)
from halfseen.types import Photometric, ViewPlan, ViewSpec

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILTERS = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Hard to resample: noise on a slope, with edges."""
    drawing = np.random.default_rng(seed)
    slope = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    pixels = slope + drawing.normal(scale=25, size=(height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 120)
    return pixels.clip(0, 255).astype(np.uint8)


def pillow_resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Rows first, then columns, which is what Pillow has always done; version 13 chooses the cheaper order."""
    rows_done = Image.fromarray(image).resize((width, image.shape[0]), PILLOW[interpolation])
    return np.asarray(rows_done.resize((width, height), PILLOW[interpolation]))


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def mean_square(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(one.astype(float) - other).mean())


# ---- crops


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (375, 500, (0.2, 1.0)),
        (375, 500, (0.67, 1.0)),
        (224, 224, (0.05, 0.3)),
        (100, 160, (0.3, 1.0)),
        (28, 28, (0.2, 1)),
    ],
)
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    ratio, count = (3 / 4, 4 / 3), 1500
    theirs_input = torch.empty(3, height, width)
    theirs = np.array([v1.RandomResizedCrop.get_params(theirs_input, scale, ratio) for _ in range(count)])
    generator = np.random.default_rng(1)
    ours = np.array([random_crop_box(height, width, scale, ratio, generator) for _ in range(count)])
    for side in range(4):
        assert ks_2samp(ours[:, side], theirs[:, side]).pvalue > 0.01
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.01
    assert ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 0.01


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (999, 7), (1, 5000), (5000, 1), (31, 500)])
def test_a_crop_that_never_fits_becomes_torchvisions_centre_crop(height: int, width: int) -> None:
    scale, ratio = (0.9, 1.0), (3 / 4, 4 / 3)
    theirs = v1.RandomResizedCrop.get_params(torch.empty(3, height, width), scale, ratio)
    assert random_crop_box(height, width, scale, ratio, np.random.default_rng(0)) == CropBox(*theirs)


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    low=st.floats(0.01, 1.0),
    ratio=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    seed=st.integers(0, 1000),
)
def test_a_crop_lies_inside_its_image(
    height: int, width: int, low: float, ratio: tuple[float, float], seed: int
) -> None:
    box = random_crop_box(height, width, (low, 1.0), ratio, np.random.default_rng(seed))
    assert box.height >= 1 and box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_a_clamped_crop_is_drawn_once_and_cut_to_the_image() -> None:
    """Against the written-out rule on an image so long that most draws stick out of it."""
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    boxes = []
    for seed in range(400):
        draws = np.random.default_rng(seed).random(4)
        area = 40 * 160 * (0.08 + 0.92 * draws[0])
        aspect = math.exp(math.log(3 / 4) + draws[1] * (math.log(4 / 3) - math.log(3 / 4)))
        width, height = min(round(math.sqrt(area * aspect)), 160), min(round(math.sqrt(area / aspect)), 40)
        box = clamped_crop_box(40, 160, scale, ratio, np.random.default_rng(seed))
        assert (box.width, box.height) == (width, height)
        assert 0 <= box.top <= 40 - height and 0 <= box.left <= 160 - width
        boxes.append(box)
    assert np.mean([box.height == 40 for box in boxes]) > 0.5
    assert {box.left for box in boxes} > set(range(40))


def test_the_whole_image_is_squashed_and_changed_last() -> None:
    image = picture(40, 90)
    spec = ViewSpec(size=16, crop="whole", hflip=0.0, interpolation="bilinear", antialias=False)
    whole = resize(image, 16, 16, "bilinear", False)
    assert np.array_equal(cut_views(image, ViewPlan((spec,)), np.random.default_rng(0))[0], whole)

    def darken(view: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return view // int(2 + generator.integers(3))

    plain = ViewPlan((ViewSpec(size=16), ViewSpec(size=8)))
    changed = ViewPlan((ViewSpec(size=16, change=darken), ViewSpec(size=8)))
    first, second = cut_views(image, plain, np.random.default_rng(1))
    other, same = cut_views(image, changed, np.random.default_rng(1))
    assert np.array_equal(second, same)
    assert any(np.array_equal(other, first // divisor) for divisor in (2, 3, 4))


# ---- resizing


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.sampled_from([7, 28, 96, 128, 192, 224]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_antialiased_resize_is_pillows_to_one_level(height: int, width: int, size: int, interpolation: str) -> None:
    image = picture(height, width)
    theirs = pillow_resize(image, size, size, interpolation)
    difference = np.abs(resize(image, size, size, interpolation, True).astype(int) - theirs)
    # Both round twice, with weights of another precision; a bicubic weight above 1 can turn one level into two.
    assert difference.max() <= 2
    assert np.mean(difference > 1) < 2e-3


@FILTERS
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (333, 500), (480, 640), (1200, 900)])
@pytest.mark.parametrize("size", [192, 224])
def test_resized_photographs_are_pillows_to_one_level(height: int, width: int, size: int, interpolation: str) -> None:
    image = picture(height, width)
    theirs = pillow_resize(image, size, size, interpolation)
    assert largest_difference(resize(image, size, size, interpolation, True), theirs) <= 1


@FILTERS
@pytest.mark.parametrize(("height", "width", "size"), [(375, 500, 192), (40, 33, 192), (97, 301, 64), (12, 9, 28)])
def test_resize_without_antialias_is_torchvision_v2(height: int, width: int, size: int, interpolation: str) -> None:
    image = picture(height, width)
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    theirs = v2.functional.resize(tensor, [size, size], InterpolationMode(interpolation), antialias=False)
    np.testing.assert_array_equal(resize(image, size, size, interpolation, False), theirs.permute(1, 2, 0).numpy())


def test_antialias_matters_when_shrinking() -> None:
    image = picture(400, 400)
    smooth, sharp = (resize(image, 96, 96, "bilinear", antialias).astype(float) for antialias in (True, False))
    assert smooth[60:].std() < sharp[60:].std() - 1


# ---- views


def view_by_hand(image: np.ndarray, spec: ViewSpec, generator: np.random.Generator) -> np.ndarray:
    box = random_crop_box(image.shape[0], image.shape[1], spec.crop_scale, spec.crop_ratio, generator)
    cropped = Image.fromarray(image).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return pillow_resize(np.asarray(cropped), spec.size, spec.size, spec.interpolation)


@FILTERS
def test_a_view_is_pillows_crop_and_resize(interpolation: str) -> None:
    image = picture(375, 500)
    spec = ViewSpec(64, interpolation=interpolation, hflip=0.0)
    for seed in range(20):
        (view,) = cut_views(image, ViewPlan((spec,)), np.random.default_rng(seed))
        assert largest_difference(view, view_by_hand(image, spec, np.random.default_rng(seed))) <= 1


@pytest.mark.parametrize(
    ("hflip", "vflip", "flipped"),
    [
        (1.0, 0.0, lambda view: view[:, ::-1]),
        (0.0, 1.0, lambda view: view[::-1]),
        (1.0, 1.0, lambda view: view[::-1, ::-1]),
    ],
)
def test_flips_turn_the_same_crop(hflip: float, vflip: float, flipped: Callable[[np.ndarray], np.ndarray]) -> None:
    image = picture(60, 80)
    spec = ViewSpec(32, hflip=0.0)
    (plain,) = cut_views(image, ViewPlan((spec,)), np.random.default_rng(3))
    (turned,) = cut_views(image, ViewPlan((replace(spec, hflip=hflip, vflip=vflip),)), np.random.default_rng(3))
    np.testing.assert_array_equal(turned, flipped(plain))


def test_flips_come_at_their_rates_and_independently() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = 255
    spec = ViewSpec(4, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), interpolation="bilinear", hflip=0.5, vflip=0.25)
    generator = np.random.default_rng(0)
    corners = {(0, 0): 0, (0, 3): 0, (3, 0): 0, (3, 3): 0}
    for _ in range(4000):
        (view,) = cut_views(image, ViewPlan((spec,)), generator)
        row, column = np.unravel_index(int(view[..., 0].argmax()), (4, 4))
        corners[int(row), int(column)] += 1
    for (row, column), count in corners.items():
        rate = (0.25 if row else 0.75) * 0.5
        assert abs(count - 4000 * rate) < 4 * math.sqrt(4000 * rate * (1 - rate)), (row, column)


def test_all_views_of_a_plan_come_in_its_order() -> None:
    plan = ViewPlan((ViewSpec(48, count=2), ViewSpec(24, count=3, crop_scale=(0.05, 0.3))))
    views = cut_views(picture(90, 120), plan, np.random.default_rng(0))
    assert [view.shape for view in views] == [(48, 48, 3)] * 2 + [(24, 24, 3)] * 3
    assert largest_difference(views[0], views[1]) > 50
    alone = cut_views(picture(90, 120), ViewPlan(plan.views[:1]), np.random.default_rng(0))
    for view, same in zip(views[:2], alone, strict=True):
        np.testing.assert_array_equal(view, same)


COLOUR = Photometric(
    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.2
)


def test_colours_change_after_crop_and_flip() -> None:
    """A view's first draws are those of the same view without colours; what follows is the changed picture."""
    image = picture(90, 120)
    plain_spec = ViewSpec(32)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        (plain,) = cut_views(image, ViewPlan((plain_spec,)), generator)
        expected = apply_changes(plain, draw_changes(COLOUR, generator))
        (view,) = cut_views(image, ViewPlan((replace(plain_spec, colour=COLOUR),)), np.random.default_rng(seed))
        np.testing.assert_array_equal(view, expected)


def test_views_without_colours_draw_as_many_numbers_as_ever() -> None:
    """Two per attempt at a crop, two for its place, two for the flips: what older runs drew."""
    image, used, counted = picture(90, 120), np.random.default_rng(5), np.random.default_rng(5)
    spec = ViewSpec(16, count=3)
    cut_views(image, ViewPlan((spec,)), used)
    for _ in range(spec.count):
        random_crop_box(90, 120, spec.crop_scale, spec.crop_ratio, counted)
        counted.random(2)
    assert used.random() == counted.random()


def test_probabilities_and_strengths_move_no_crop() -> None:
    image = picture(90, 120)
    quiet = Photometric()
    crops = [
        cut_views(image, ViewPlan((ViewSpec(16, colour=colour), ViewSpec(16, count=2, colour=quiet))), generator)[1:]
        for colour, generator in ((quiet, np.random.default_rng(4)), (COLOUR, np.random.default_rng(4)))
    ]
    np.testing.assert_array_equal(crops[0], crops[1])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3), (7, 9)])
def test_tiny_pictures_give_global_and_local_views(height: int, width: int) -> None:
    plan = ViewPlan(
        (ViewSpec(32, count=2, colour=COLOUR), ViewSpec(16, count=6, crop_scale=(0.05, 0.25), colour=COLOUR))
    )
    for seed in range(5):
        views = cut_views(picture(height, width), plan, np.random.default_rng(seed))
        assert [view.shape for view in views] == [(32, 32, 3)] * 2 + [(16, 16, 3)] * 6
        assert all(view.dtype == np.uint8 for view in views)


def test_a_read_only_or_strided_image_will_do() -> None:
    image = picture(40, 50)
    plan = ViewPlan((ViewSpec(16, crop_scale=(0.9, 1.0)),))
    (expected,) = cut_views(image, plan, np.random.default_rng(0))
    locked = image.copy()
    locked.flags.writeable = False
    planes_first = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    for other in (locked, planes_first, image[::-1][::-1]):
        np.testing.assert_array_equal(cut_views(other, plan, np.random.default_rng(0))[0], expected)
    np.testing.assert_array_equal(image, picture(40, 50))


# ---- the deterministic view


@FILTERS
@pytest.mark.parametrize(
    ("height", "width", "size", "crop_ratio"),
    [(375, 500, 224, 0.875), (500, 375, 224, 0.875), (40, 30, 96, 0.875), (333, 500, 192, 0.875), (99, 77, 28, 1.0)],
)
def test_the_centre_view_is_torchvisions(
    height: int, width: int, size: int, crop_ratio: float, interpolation: str
) -> None:
    image = picture(height, width)
    shorter = int(size / crop_ratio)
    new_size = v1.Resize(shorter, InterpolationMode(interpolation))(Image.fromarray(image)).size
    resized = Image.fromarray(pillow_resize(image, new_size[1], new_size[0], interpolation))
    ours = deterministic_view(image, size, crop_ratio=crop_ratio, interpolation=interpolation)
    assert largest_difference(ours, np.asarray(v1.CenterCrop(size)(resized))) <= 1


def test_squash_keeps_the_whole_picture() -> None:
    image = picture(50, 200)
    theirs = pillow_resize(image, 64, 64, "bicubic")
    assert largest_difference(deterministic_view(image, 64, "squash"), theirs) <= 1


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = picture(28, 28)
    np.testing.assert_array_equal(deterministic_view(image, 28, crop_ratio=1.0), image)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 9_000), (1, 1)])
def test_an_endless_picture_does_not_fill_the_memory(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 7, np.uint8)
    long_side = int(np.argmax(shape))
    middle = shape[long_side] // 2
    image[(slice(None),) * long_side + (slice(max(0, middle - 1), middle + 1),)] = 200
    view = deterministic_view(image, 224)
    assert view.shape == (224, 224, 3)
    assert view[112, 112, 0] > 100


@pytest.mark.parametrize(("size", "crop_ratio", "side"), [(224, 0.875, 256), (96, 0.875, 109), (28, 1.0, 28)])
def test_shorter_side_before_the_crop(size: int, crop_ratio: float, side: int) -> None:
    assert resized_shorter_side(size, crop_ratio) == side


# ---- reduced decoding


@given(
    shorter=st.integers(50, 3000),
    aspect=st.floats(1.0, 4.0),
    low=st.floats(0.05, 1.0),
    seed=st.integers(0, 10_000),
)
def test_no_crop_is_smaller_than_foretold(shorter: int, aspect: float, low: float, seed: int) -> None:
    spec = ViewSpec(64, crop_scale=(low, 1.0))
    box = random_crop_box(
        shorter, round(shorter * aspect), spec.crop_scale, spec.crop_ratio, np.random.default_rng(seed)
    )
    assert min(box.height, box.width) >= smallest_crop_side(spec, shorter) - 0.5


def test_decode_floor_leaves_twice_the_pixels_of_every_view() -> None:
    large, small = ViewSpec(224, crop_scale=(0.2, 1.0)), ViewSpec(96, count=10, crop_scale=(0.05, 0.3))
    floor = decode_floor(ViewPlan((large, small)))
    assert floor is not None
    assert min(smallest_crop_side(spec, floor) / spec.size for spec in (large, small)) == pytest.approx(
        REDUCING_GAP, rel=1e-2
    )


def test_point_sampled_views_are_decoded_in_full() -> None:
    assert decode_floor(ViewPlan((ViewSpec(192, antialias=False), ViewSpec(96)))) is None


def test_local_views_decide_how_far_large_pictures_are_shrunk() -> None:
    """Two global and ten local views: 2 * 96 px must fit into a crop of 5 % of the area and the steepest ratio."""
    small = ViewSpec(96, count=10, crop_scale=(0.05, 0.25), colour=COLOUR)
    large = ViewSpec(224, count=2, crop_scale=(0.25, 1.0), colour=COLOUR)
    assert decode_floor(ViewPlan((small,))) == 992
    assert decode_floor(ViewPlan((large, small))) == decode_floor(ViewPlan((large,))) == 1035
    wide = replace(large, crop_scale=(0.4, 1.0))
    assert decode_floor(ViewPlan((wide, small))) == 992


@FILTERS
def test_reduced_decoding_changes_less_than_a_shift_by_one_pixel(interpolation: str, tmp_path: Path) -> None:
    fine = Image.fromarray(picture(300, 400)).resize((1600, 1200), Image.Resampling.BICUBIC)
    path = tmp_path / "fine.jpg"
    fine.save(path, quality=92)
    plan = ViewPlan((ViewSpec(96, crop_scale=(0.2, 1.0), interpolation=interpolation),))
    floor = decode_floor(plan)
    full, reduced = decode_image(path), decode_image(path, shrink_to=floor)
    assert reduced.shape[0] * 2 == full.shape[0]
    reducing, shifting = [], []
    for seed in range(10):
        (expected,) = cut_views(full, plan, np.random.default_rng(seed))
        (view,) = cut_views(reduced, plan, np.random.default_rng(seed))
        (shifted,) = cut_views(full[1:, 1:], plan, np.random.default_rng(seed))
        reducing.append(mean_square(expected, view))
        shifting.append(mean_square(expected, shifted))
    assert np.mean(reducing) < np.mean(shifting)
    assert 10 * np.log10(255**2 / np.mean(reducing)) > 40

"""Composed scenes: functions of the index, labelled by their dominant item, drawn on shared quiet textures."""

import hashlib
import pickle
import time

import numpy as np
import pytest

from halfseen.data.config import DataConfig
from halfseen.data.scenes import SceneSource, draw_layout, draw_textures, open_scenes
from halfseen.data.sources import has_split, open_source
from halfseen.errors import DataError


@pytest.fixture(scope="module")
def scenes() -> SceneSource:
    return open_scenes("train", 64)


def test_counts_and_labels_in_balance(scenes: SceneSource) -> None:
    test = open_scenes("test", 64)
    assert (len(scenes), len(test)) == (10_000, 2_000)
    assert np.bincount(scenes.labels).tolist() == [1000] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert has_split("bundled:fashion-scenes", "test")


@pytest.mark.parametrize("size", [32, 33, 63, 64, 97, 224])
def test_any_size(size: int) -> None:
    source = open_scenes("test", size)
    image, mask = source.read(5), source.mask(5)
    assert image.shape == (size, size, 3)
    assert mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert image.flags.c_contiguous
    assert mask.max() <= 10
    assert (mask == source.labels[5] + 1).any()


@pytest.mark.parametrize("size", [31, 225])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(DataError, match=f"got {size}, expected 32 to 224"):
        open_scenes("train", size)


@pytest.mark.parametrize(
    ("image_size", "scene_size", "side"), [(64, None, 64), (16, None, 32), (512, None, 224), (64, 96, 96)]
)
def test_the_size_comes_from_the_config(image_size: int, scene_size: int | None, side: int) -> None:
    config = DataConfig(source="bundled:fashion-scenes", image_size=image_size, scene_size=scene_size)
    assert open_source(config.source, config=config).read(0).shape == (side, side, 3)


def test_a_scene_depends_on_split_and_index_only(scenes: SceneSource) -> None:
    again = pickle.loads(pickle.dumps(open_scenes("train", 64)))
    order = np.random.default_rng(0).permutation(40)
    later = {int(index): again.read(int(index)) for index in order}
    for index in range(40):
        assert np.array_equal(scenes.read(index), later[index])
        assert np.array_equal(scenes.mask(index), again.mask(index))
    assert not np.array_equal(scenes.read(0), open_scenes("test", 64).read(0))
    assert len({hashlib.sha256(scenes.read(index)).hexdigest() for index in range(300)}) == 300


def test_the_composition_is_the_same_at_all_sizes(scenes: SceneSource) -> None:
    large = open_scenes("train", 192)
    for index in range(60):
        coarse, fine = scenes.mask(index), large.mask(index)[1::3, 1::3]
        assert (coarse == fine).mean() > 0.94


def test_the_label_is_the_class_with_the_largest_visible_area(scenes: SceneSource) -> None:
    for index in range(0, 10_000, 9):
        areas = np.bincount(scenes.mask(index).ravel(), minlength=11)[1:]
        assert areas.argmax() == scenes.labels[index]


def test_train_and_test_use_different_items_and_each_item_once_as_dominant() -> None:
    for split, count in (("train", 10_000), ("test", 2_000)):
        layout = draw_layout(split)
        assert np.array_equal(np.sort(layout.items[:, 0]), np.arange(count))
        assert layout.items.max() < count
        assert set(np.unique(layout.num_items)) == {1, 2, 3, 4}


def test_eight_textures_shared_by_all_and_quieter_than_the_items(scenes: SceneSource) -> None:
    textures = draw_textures(64)
    assert textures.shape == (8, 128, 128, 3)
    assert len({texture.tobytes() for texture in textures}) == 8
    assert set(np.unique(scenes.layout.textures)) == set(range(8))
    for texture in textures:
        assert texture.std(axis=(0, 1)).max() < 14
    contrasts, deviations = [], []
    for index in range(200):
        image, mask = scenes.read(index).astype(float), scenes.mask(index)
        inside, outside = image[mask > 0], image[mask == 0]
        contrasts.append(np.abs(inside.mean(axis=0) - outside.mean(axis=0)).max())
        deviations.append((inside.std(axis=0).mean(), outside.std(axis=0).mean()))
    assert np.median(contrasts) > 60
    inside_deviation, outside_deviation = np.median(deviations, axis=0)
    assert inside_deviation > 2 * outside_deviation


def test_background_pixels_come_from_the_texture(scenes: SceneSource) -> None:
    index = int(np.flatnonzero(scenes.layout.num_items == 1)[0])
    top, left = (scenes.layout.offsets[index] * 64).astype(int)
    texture = draw_textures(64)[scenes.layout.textures[index], top : top + 64, left : left + 64]
    image, mask = scenes.read(index), scenes.mask(index)
    far = np.ones_like(mask, dtype=bool)
    for row, column in np.argwhere(mask):
        far[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = False
    assert far.mean() > 0.2
    assert np.array_equal(image[far], texture[far])


def test_all_classes_and_many_colours_appear(scenes: SceneSource) -> None:
    seen = np.zeros(11, dtype=bool)
    hues = []
    for index in range(150):
        mask = scenes.mask(index)
        seen[np.unique(mask)] = True
        mean = scenes.read(index)[mask == scenes.labels[index] + 1].mean(axis=0)
        hues.append(int(mean.argmax()))
    assert seen.all()
    assert min(np.bincount(hues, minlength=3)) > 25


def test_fingerprint_tells_split_and_size(scenes: SceneSource) -> None:
    others = [open_scenes("test", 64), open_scenes("train", 65), open_scenes("train", 64)]
    assert len({scenes.fingerprint(), *(other.fingerprint() for other in others)}) == 3
    assert others[2].fingerprint() == scenes.fingerprint()


def test_a_thousand_scenes_a_second(scenes: SceneSource) -> None:
    """Shapes are checked at run time in the tests, which costs more than a scene: a third of the speed must remain."""
    scenes.read(0)
    started = time.process_time()
    for index in range(300):
        scenes.read(index)
    assert 300 / (time.process_time() - started) > 330

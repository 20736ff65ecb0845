"""Data that stays on the device: nearest resize, and augmentation as a function of (seed, epoch, index)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from halfseen.data.config import DataConfig
from halfseen.data.resident import (
    Resident,
    ResidentAugmentation,
    ResidentLoader,
    apply_augmentation,
    augment,
    draw_augmentation,
    read_resident,
)
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import Source, open_source
from halfseen.errors import DataError

COUNT = 12


@pytest.fixture(scope="module")
def scenes() -> Source:
    config = DataConfig(source="bundled:fashion-scenes", image_size=48)
    return open_source(config.source, config=config).subset(np.arange(3, 3 + COUNT))


@pytest.fixture(scope="module")
def resident(scenes: Source) -> Resident:
    return read_resident(scenes, 32, masks=True)


def steps(
    data: Resident, augmentation: ResidentAugmentation | None, start: int, stop: int
) -> list[tuple[np.ndarray, ...]]:
    sampler = StepSampler(COUNT, 5, 0, drop_last=False)
    loader = ResidentLoader(data, sampler, 7, augmentation)
    return [
        (batch.index.numpy(), batch.views[0].numpy(), batch.extras["mask"].numpy())
        for batches in loader.batches(start, stop)
        for batch in batches
    ]


def test_images_and_masks_are_resized_to_the_nearest_pixel(scenes: Source, resident: Resident) -> None:
    resize = Resize((32, 32), InterpolationMode.NEAREST)
    assert resident.masks is not None
    for index in range(COUNT):
        image, mask = scenes.read_with_mask(index)
        assert torch.equal(resident.images[index], resize(torch.from_numpy(image).permute(2, 0, 1)))
        assert torch.equal(resident.masks[index], resize(torch.from_numpy(mask)[None])[0])
    assert resident.labels.tolist() == scenes.labels.tolist()
    assert resident.indices.tolist() == list(range(COUNT))


def test_bilinear_squashes_as_pillow_does(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    found = read_resident(open_source(str(tmp_path)), 16, masks=False, resize="bilinear")
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))
    assert found.masks is None
    assert np.abs(found.images[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_workers_change_nothing(scenes: Source, resident: Resident) -> None:
    with_worker = read_resident(scenes, 32, masks=True, workers=1)
    assert torch.equal(with_worker.images, resident.images)
    assert with_worker.masks is not None and resident.masks is not None
    assert torch.equal(with_worker.masks, resident.masks)


def test_an_epoch_sees_each_image_once_and_keeps_the_last_batch(resident: Resident) -> None:
    found = steps(resident, None, 0, 3)
    assert [len(index) for index, _, _ in found] == [5, 5, 2]
    assert sorted(np.concatenate([index for index, _, _ in found]).tolist()) == list(range(COUNT))
    for index, views, masks in found:
        assert np.array_equal(views, resident.images[index].numpy())
        assert resident.masks is not None and np.array_equal(masks, resident.masks[index].numpy())


@pytest.mark.parametrize("frozen", [True, False])
def test_augmentation_is_a_function_of_seed_epoch_and_index(resident: Resident, frozen: bool) -> None:
    augmentation = ResidentAugmentation(frozen=frozen)
    whole = steps(resident, augmentation, 0, 6)
    for ours, again in zip(whole[2:5], steps(resident, augmentation, 2, 5), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(ours, again, strict=True))
    first: dict[int, np.ndarray] = {}
    second: dict[int, np.ndarray] = {}
    for seen, part in ((first, whole[:3]), (second, whole[3:])):
        for index, views, _ in part:
            seen.update(zip(index.tolist(), views, strict=True))
    same = [np.array_equal(first[index], second[index]) for index in range(COUNT)]
    assert all(same) if frozen else not any(same)


def test_mask_and_image_are_flipped_together(resident: Resident) -> None:
    changed = apply_augmentation(resident, ResidentAugmentation(flip=0.5, contrast=0.0), seed=1)
    flip, _ = draw_augmentation(ResidentAugmentation(), COUNT, 1, 0)
    assert 0 < int(flip.sum()) < COUNT
    assert changed.masks is not None and resident.masks is not None
    for index, flipped in enumerate(flip.tolist()):
        images, masks = resident.images[index], resident.masks[index]
        assert torch.equal(changed.images[index], images.flip(-1) if flipped else images)
        assert torch.equal(changed.masks[index], masks.flip(-1) if flipped else masks)


def test_contrast_is_torchvisions(resident: Resident) -> None:
    factors = torch.linspace(0.7, 1.3, COUNT)
    ours = augment(resident.images, torch.zeros(COUNT, dtype=torch.bool), factors)
    for image, result, factor in zip(resident.images, ours, factors.tolist(), strict=True):
        exact = tvf.adjust_contrast(image.float() / 255, factor) * 255
        assert float((result.float() - exact).abs().max()) <= 0.5 + 1e-3


def test_the_draws_of_an_image_do_not_depend_on_how_many_there_are() -> None:
    augmentation = ResidentAugmentation(frozen=False)
    few, many = draw_augmentation(augmentation, 3, 5, 2), draw_augmentation(augmentation, 300, 5, 2)
    assert torch.equal(few[0], many[0][:3]) and torch.equal(few[1], many[1][:3])
    assert 0.7 <= float(many[1].min()) < 0.75 and 1.25 < float(many[1].max()) <= 1.3
    assert 100 < int(many[0].sum()) < 200


def test_unreadable_images_are_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"nothing")
    found = read_resident(open_source(str(tmp_path)), 8, masks=True)
    assert found.indices.tolist() == [0, 2] and found.masks is not None
    assert found.masks[:, 0, 0].tolist() == [0, 2]
    assert [file.index for file in found.skipped] == [1]
    taken = found.take(torch.tensor([1]))
    assert taken.indices.tolist() == [2] and taken.masks is not None and taken.masks[0, 0, 0] == 2
    for number in (0, 2):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 3 images"):
        read_resident(open_source(str(tmp_path)), 8, masks=True)

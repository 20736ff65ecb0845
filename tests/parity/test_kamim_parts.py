"""KAMIM's parts against recorded outputs of the original: keypoint maps and weights, loss, masks, learning rates."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.masking.random import CellGrid, count_hidden, legacy_masks
from halfseen.ops.losses import masked_l1, patch_weights
from halfseen.ops.patches import gather_tokens, patchify, pixel_mask
from halfseen.ops.schedules import schedule_index, unshifted_cosine
from halfseen.targets.keypoints import (
    DENSITY_KEY,
    KeypointDensity,
    detect_keypoints,
    detector_gray,
    keypoint_density,
    keypoint_map,
    keypoint_weights,
)
from parity.discovery import load_arrays, parity_files


def detectors_of(arrays: dict[str, np.ndarray]) -> list[str]:
    return sorted({name.split(".")[0] for name in arrays if name.endswith(".map")})


@pytest.mark.parametrize("path", parity_files("kamim", "weights_"))
def test_gray_keypoints_maps_densities_and_weights(path: Path) -> None:
    arrays = load_arrays(path)
    images = arrays["images_u8"]
    gray = np.stack([detector_gray(image) for image in images])
    np.testing.assert_array_equal(gray, arrays["gray_bgr_order"])

    for detector in detectors_of(arrays):
        maps = np.stack([keypoint_map(image, detector) for image in images])
        np.testing.assert_array_equal(maps, arrays[f"{detector}.map"])

        recorded = [table for name, table in arrays.items() if name.startswith(f"{detector}.keypoints.")]
        assert len(recorded) == len(images)
        for picture, table in zip(gray, recorded, strict=True):
            found = detect_keypoints(picture, detector)
            assert found.shape == table.shape
            position_tolerance = 1e-4 if detector == "sift" else 0.0
            np.testing.assert_allclose(found[:, :2], table[:, :2], rtol=0, atol=position_tolerance)
            np.testing.assert_allclose(found[:, 2:], table[:, 2:], rtol=0, atol=1e-4)

        compared = 0
        for name, recorded_weights in arrays.items():
            wanted = re.fullmatch(rf"{detector}\.weights\.ps(\d+)\.T([\d.]+)", name)
            if not wanted:
                continue
            cell_size, temperature = int(wanted[1]), float(wanted[2])
            density = np.stack([keypoint_density(marks, cell_size) for marks in maps])
            np.testing.assert_allclose(density, arrays[f"{detector}.density.ps{cell_size}"], rtol=0, atol=1e-7)
            weights = keypoint_weights(torch.from_numpy(density), temperature).numpy()
            np.testing.assert_allclose(weights, recorded_weights, rtol=1e-5, atol=0)
            compared += 1
        assert compared > 0


@pytest.mark.parametrize("path", parity_files("kamim", "weights_"))
def test_what_the_loader_ships_is_the_recorded_density(path: Path) -> None:
    arrays = load_arrays(path)
    random = np.random.default_rng(0)
    for name, density in arrays.items():
        wanted = re.fullmatch(r"(\w+)\.density\.ps(\d+)", name)
        if not wanted:
            continue
        extras = KeypointDensity(wanted[1], int(wanted[2]))
        shipped = np.stack([extras((image,), random)[DENSITY_KEY] for image in arrays["images_u8"]])
        np.testing.assert_allclose(shipped, density, rtol=0, atol=1e-7)


@pytest.mark.parametrize("path", parity_files("kamim", "loss_"))
def test_weighted_loss_and_its_gradient(path: Path) -> None:
    arrays = load_arrays(path)
    images, mask = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["mask"]).bool()
    patch_size = images.shape[-1] // mask.shape[-1]
    grid = (mask.shape[1], mask.shape[2])
    hidden_ids = mask.flatten(1).int().argsort(dim=1, descending=True, stable=True)
    hidden_ids = hidden_ids[:, : int(mask[0].sum())]
    assert (mask.flatten(1).sum(1) == hidden_ids.shape[1]).all()
    num_hidden_pixels = int(pixel_mask(mask.flatten(1), grid, patch_size).sum())

    def compare(weights: torch.Tensor | None, loss_name: str, norm_name: str, tolerance: float) -> None:
        prediction = torch.from_numpy(arrays["prediction"]).requires_grad_()
        hidden = gather_tokens(patchify(prediction, patch_size, "channels_first"), hidden_ids)
        target = gather_tokens(patchify(images, patch_size, "channels_first"), hidden_ids)
        loss = masked_l1(hidden, target, num_hidden_pixels=num_hidden_pixels, weights=weights)
        loss.backward()
        assert loss.item() == pytest.approx(float(arrays[loss_name]), rel=tolerance)
        assert prediction.grad.norm().item() == pytest.approx(float(arrays[norm_name]), rel=tolerance)

    compare(None, "loss.simmim", "grad_norm.simmim", 1e-5)
    compared = 0
    for name in arrays:
        wanted = re.fullmatch(r"(\w+)\.loss\.ps(\d+)\.T([\d.]+)", name)
        if not wanted:
            continue
        detector, cell_size, temperature = wanted[1], int(wanted[2]), float(wanted[3])
        density = np.stack([keypoint_density(marks, cell_size) for marks in arrays[f"{detector}.map"]])
        cells = keypoint_weights(torch.from_numpy(density), temperature)
        per_patch = patch_weights(cells, cell_size, patch_size)
        rows = torch.arange(len(per_patch)).unsqueeze(1)
        tolerance = 1e-4 if temperature <= 0.1 else 1e-5
        compare(per_patch[rows, hidden_ids], name, name.replace(".loss.", ".grad_norm."), tolerance)
        compared += 1
    assert compared > 0


@pytest.mark.parametrize("path", parity_files("kamim", "masks"))
def test_masks_of_the_seeded_legacy_generator(path: Path) -> None:
    arrays = load_arrays(path)
    assert arrays
    for name, recorded in arrays.items():
        wanted = re.fullmatch(r"in(\d+)\.mask(\d+)\.model(\d+)\.ratio([\d.]+)\.seed(\d+)", name)
        assert wanted, name
        image_size, cell_size, patch_size, seed = (int(wanted[group]) for group in (1, 2, 3, 5))
        side = image_size // cell_size
        grid = CellGrid(side, cell_size // patch_size, count_hidden(side**2, float(wanted[4]), "ceil"))
        masks = legacy_masks(grid, np.random.RandomState(seed), len(recorded))
        np.testing.assert_array_equal(masks.reshape(recorded.shape).numpy(), recorded.astype(bool))


@pytest.mark.parametrize("path", parity_files("kamim", "lr_"))
def test_learning_rates_pure_and_with_the_micro_batch_quirk(path: Path) -> None:
    arrays = load_arrays(path)
    setting = {name: value.item() for name, value in arrays.items() if value.ndim == 0}
    epoch_steps = setting["epoch_steps"]
    assert epoch_steps == -(-setting["N"] // setting["batch_size"])
    accumulation = setting["accumulation"]
    micro_batches = -(-setting["N"] // (setting["batch_size"] // accumulation))

    def curve(t: int) -> float:
        return unshifted_cosine(
            t,
            base=setting["base_lr"],
            warmup_start=setting["warmup_lr_init"],
            minimum=setting["lr_min"],
            warmup=setting["warmup_epochs"] * epoch_steps,
            total=setting["epochs"] * epoch_steps,
        )

    def index(step: int, lag_steps: int) -> int:
        return schedule_index(
            step,
            lag_steps=lag_steps,
            index="microbatch",
            steps_per_epoch=-(-micro_batches // accumulation),
            micro_batches_per_epoch=micro_batches,
            accumulation=accumulation,
            epoch_stride=epoch_steps,
        )

    pure = [curve(t) for t in range(len(arrays["lr_at_t"]))]
    np.testing.assert_allclose(pure, arrays["lr_at_t"], rtol=1e-12)
    steps = range(len(arrays["lr_used_per_optimizer_step"]))
    np.testing.assert_array_equal([index(step, 0) for step in steps], arrays["t_passed_after_step"])
    used = [curve(index(step, 1)) for step in steps]
    np.testing.assert_allclose(used, arrays["lr_used_per_optimizer_step"], rtol=1e-12)

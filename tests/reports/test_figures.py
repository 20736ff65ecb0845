"""The PNGs of reconstructions and segmentations hold the pictures of the arrays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfseen.errors import CheckpointError
from halfseen.reports.figures.pictures import draw_reconstructions, draw_segmentation
from reports.written_run import write_run


def test_every_picture_is_in_the_figure(tmp_path):
    arrays = write_run(tmp_path / "run") / "figures" / "reconstruction.npz"
    content = dict(np.load(arrays))
    colours = {"original": (250, 10, 20), "masked": (10, 240, 30), "predicted": (20, 30, 230), "pasted": (200, 210, 10)}
    for name, colour in colours.items():
        content[name] = np.broadcast_to(np.array(colour, np.uint8), content[name].shape)
    np.savez(arrays, **content)
    path = draw_reconstructions(arrays)
    assert path == arrays.with_suffix(".png")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    areas = {name: (pixels == np.array(colour)).all(axis=1).sum() for name, colour in colours.items()}
    for name in ("masked", "predicted", "pasted"):  # two mask ratios each
        assert areas[name] == pytest.approx(2 * areas["original"], rel=0.05)
    assert areas["original"] > 0.05 * len(pixels)


def test_a_broken_file_is_a_sentence(tmp_path):
    path = write_run(tmp_path / "run") / "figures" / "reconstruction.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="holds no reconstructions"):
        draw_reconstructions(path)


@pytest.mark.parametrize("num_classes", [3, 14])
def test_segmentations_show_image_target_and_prediction_in_the_same_colours(tmp_path: Path, num_classes: int) -> None:
    arrays = tmp_path / "segmentation_example.npz"
    targets = np.arange(2 * 16 * 16).reshape(2, 16, 16) % num_classes
    np.savez(
        arrays,
        images=np.full((2, 16, 16, 3), 120, np.uint8),
        targets=np.where(targets == 1, 255, targets).astype(np.uint8),
        predictions=targets.astype(np.uint8),
        miou=np.array([0.5, 1.0]),
        names=np.array([f"${number}_class" for number in range(num_classes)]),
    )
    out = draw_segmentation(arrays)
    assert out == arrays.with_suffix(".png")
    with Image.open(out) as picture:
        colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
        assert picture.height > 400 and len(colours) >= num_classes + 2
    arrays.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="holds no examples of a segmentation"):
        draw_segmentation(arrays)

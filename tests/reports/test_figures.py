"""The PNG of the reconstructions holds the pictures of the arrays."""

import numpy as np
import pytest
from PIL import Image

from halfseen.errors import CheckpointError
from halfseen.reports.figures import draw_reconstructions
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

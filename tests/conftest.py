"""What all tests share: shape annotations checked at run time, fixed seeds, no network, a small folder of pictures."""

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

# The same examples in every run, none of them failed for being slow on a busy machine, nothing written to disk.
settings.register_profile("halfseen", deadline=None, derandomize=True, database=None)
settings.load_profile("halfseen")


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Every test starts from the same global random states, so the order of tests can't matter."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Connecting to anything but this machine is an error: the library promises to need no network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "unix"
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in (
            "127.0.0.1",
            "::1",
            "localhost",
            "0.0.0.0",
        ):
            refuse(host)
        connect(self, address)

    def refuse(host: object) -> NoReturn:
        raise PermissionError(f"a test tried to reach {host!r}; tests run without a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A torch generator of the test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_images() -> Callable[..., Path]:
    """`make_images(folder, count=20, size=32, classes=2, seed=0)` writes coloured PNGs in class folders.

    The classes differ (direction of a gradient), so there is something to learn. `classes=0` writes them flat.
    """

    def write(folder: Path, count: int = 20, size: int = 32, classes: int = 2, seed: int = 0) -> Path:
        drawing = np.random.default_rng(seed)
        ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
        for index in range(count):
            label = index % max(classes, 1)
            angle = np.pi * label / max(classes, 1) + drawing.normal(scale=0.1)
            slope = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
            colour = drawing.uniform(80, 200, size=3)
            noise = drawing.normal(scale=12, size=(size, size, 3))
            pixels = np.clip(slope[..., None] * colour + noise, 0, 255).astype(np.uint8)
            place = folder / f"class{label}" if classes else folder
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index:04d}.png")
        return folder

    return write


@pytest.fixture
def image_folder(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """Twenty 32-pixel PNGs in two class folders."""
    return make_images(tmp_path / "images")

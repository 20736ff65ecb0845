"""Sides that are chosen for somebody's own images."""

from collections.abc import Callable
from pathlib import Path

import pytest

from halfseen.methods.table import METHODS
from halfseen.pretraining.build import prepare_method
from halfseen.pretraining.run import resolve


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [20, 28, 36])
def test_small_pictures_suit_every_method(
    method: str, side: int, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "photos", size=side)
    loaded = resolve(None, None, [f"data.source={folder}", f"method.name={method}"])
    built = prepare_method(loaded.config)
    assert side <= built.view_plan().views[0].size < side + 8

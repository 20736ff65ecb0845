"""Linear probes of layers: what is held out, and that classes are found where they are."""

import numpy as np
import pytest
import torch

from halfseen.analysis.watchers.layers import hold_out_of_classes, probe_layers
from halfseen.errors import ShapeError


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_every_class_is_learned_and_measured_though_images_come_in_turn(classes: int) -> None:
    labels = np.arange(12 * classes) % classes
    held_out = hold_out_of_classes(labels)
    assert set(labels[held_out]) == set(labels[~held_out]) == set(range(classes))
    assert 0.15 < held_out.mean() < 0.25


def test_classes_are_found_in_the_layer_that_has_them() -> None:
    labels = torch.arange(100) % 10
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 16, generator=generator)
    known = torch.nn.functional.one_hot(labels, 16).float() * 8 + noise
    found = probe_layers([noise, known], labels)
    nothing, all_ = found.arrays["accuracy"]
    assert nothing < 0.4
    assert all_ == 1.0
    assert found.numbers["layer_probe_best"] == 1.0


def test_one_class_only_is_refused() -> None:
    with pytest.raises(ShapeError, match="two classes"):
        probe_layers([torch.randn(10, 4)], torch.zeros(10, dtype=torch.long))

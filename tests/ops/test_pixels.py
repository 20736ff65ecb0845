"""Normalising on the device and back."""

import torch
from torchvision.transforms import v2

from halfseen.ops.pixels import denormalise, normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalise_is_what_torchvision_does(generator: torch.Generator) -> None:
    views = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8, generator=generator)
    expected = v2.functional.normalize(views.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(normalise(views, MEAN, STD), expected, rtol=0, atol=2e-6)


def test_denormalise_gives_the_pixels_back() -> None:
    every_level = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    pixels = denormalise(normalise(every_level, MEAN, STD), MEAN, STD)
    torch.testing.assert_close(pixels * 255, every_level.float(), rtol=0, atol=1e-4)


def test_constants_made_in_inference_mode_can_be_differentiated_through() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    with torch.inference_mode():
        normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), mean, std)
    images = torch.ones(1, 3, 1, 1, requires_grad=True)
    denormalise(images, mean, std).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad.flatten(), torch.tensor(std))

"""PSNR and SSIM over a set: spaces, regions, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from halfseen.analysis.fidelity import Fidelity, FidelityResult, Region, Space
from halfseen.errors import ConfigError, ShapeError


def score(space: Space, region: Region, prediction: Tensor, target: Tensor, hidden: Tensor | None) -> FidelityResult:
    fidelity = Fidelity(space, region)
    fidelity.update(prediction, target, hidden)
    return fidelity.result()


@pytest.fixture
def pictures(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction that is 0.1 off where hidden and 0.3 off where visible; the right half is hidden."""
    target = 0.3 + 0.2 * torch.rand(2, 3, 16, 16, generator=generator)
    hidden = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    hidden[..., 8:] = True
    return torch.where(hidden, target + 0.1, target + 0.3), target, hidden


def test_regions_count_what_they_say(pictures: tuple[Tensor, Tensor, Tensor]) -> None:
    found = {region: score("pixel", region, *pictures) for region in ("all", "masked", "composite")}
    errors = {"all": (0.01 + 0.09) / 2, "masked": 0.01, "composite": 0.005}
    for region, error in errors.items():
        assert found[region].psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
        assert found[region].data_range == 1 and found[region].num_images == 2
    assert found["composite"].ssim > found["masked"].ssim and found["composite"].ssim > found["all"].ssim


def test_pixel_space_clips_and_normalised_space_has_its_own_range(pictures: tuple[Tensor, Tensor, Tensor]) -> None:
    prediction, target, hidden = pictures
    assert score("pixel", "all", prediction - 5, target, None).psnr == pytest.approx(
        score("pixel", "all", torch.zeros_like(target), target, None).psnr
    )
    found = score("normalized", "all", prediction, target, hidden)
    assert found.data_range == pytest.approx(float(target.max()))  # from 0, where no target is below it
    assert found.psnr == pytest.approx(10 * math.log10(found.data_range**2 / 0.05), abs=1e-4)


def test_small_pictures_have_no_structure_and_nothing_has_no_score(pictures: tuple[Tensor, Tensor, Tensor]) -> None:
    prediction, target, hidden = (each[..., :8, :8] for each in pictures)
    assert math.isnan(score("pixel", "all", prediction, target, None).ssim)
    with pytest.raises(ShapeError, match="no pixel was hidden"):
        score("pixel", "masked", prediction, target, hidden)
    with pytest.raises(ConfigError, match="'masked' needs to know"):
        score("pixel", "masked", prediction, target, None)
    with pytest.raises(ShapeError, match="no images"):
        Fidelity().result()

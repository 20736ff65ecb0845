"""The two contestants of the view benchmark do the same work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.views import PIPELINES, original_view
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor

from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.data.transforms import cut_views
from halfseen.ops.pixels import denormalise
from halfseen.types import ViewPlan, ViewSpec

SPECS = [
    pytest.param(spec, id=f"{pipeline.title.split()[0]}-{number}")
    for pipeline in PIPELINES
    for number, spec in enumerate(pipeline.plan.views)
]


def picture() -> np.ndarray:
    """Smooth colours, an edge and some noise."""
    drawing = np.random.default_rng(0)
    small = Image.fromarray(drawing.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.array(small.resize((80, 60), Image.Resampling.BICUBIC), np.float64)
    pixels[20:30, 20:40] = (250, 10, 120)
    pixels += drawing.normal(scale=6, size=pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def measures(pixels: np.ndarray) -> tuple[float, ...]:
    """Brightness, contrast, colourfulness, roughness and which half is brighter."""
    values = pixels.astype(float)
    rough = np.abs(np.diff(values, axis=1)).mean()
    return values.mean(), values.std(), np.ptp(values, axis=2).mean(), rough, values[:, :16].mean() - values.mean()


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_views_of_both_have_one_distribution(spec: ViewSpec) -> None:
    image, small, count = picture(), replace(spec, size=32, count=1), 1000
    theirs = original_view(small)
    generator = np.random.default_rng(0)

    def original() -> np.ndarray:
        view: Tensor = theirs(Image.fromarray(image))
        return (denormalise(view[None], IMAGENET_MEAN, IMAGENET_STD)[0] * 255).round().permute(1, 2, 0).numpy()

    expected = np.array([measures(original()) for _ in range(count)])
    ours = np.array([measures(cut_views(image, ViewPlan((small,)), generator)[0]) for _ in range(count)])
    for number in range(expected.shape[1]):
        assert ks_2samp(ours[:, number], expected[:, number]).pvalue > 0.005, number


def test_original_views_are_normalised_tensors_of_the_plan() -> None:
    for pipeline in PIPELINES:
        for spec in pipeline.plan.views:
            view = original_view(spec)(Image.fromarray(picture()))
            assert view.shape == (3, spec.size, spec.size) and view.dtype == torch.float32
            assert view.min() >= -2.2 and view.max() <= 2.7

"""Images per second on one core, turned into views, beside the plain Pillow and torchvision-v1 pipelines of the papers.

    python -m benchmarks.views

Ours counts reading the file, decoding, cutting the views, stacking a batch as uint8 and normalising it; theirs counts
reading to normalising, without stacking. Both run on the same generated 500x375 JPEGs, in turns, in one thread, and
drop each normalised tensor at once: else both would be measured at getting memory from the system.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as v1

from benchmarks.clock import interleaved, spread
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from halfseen.data.loader import Job, TrainingWorker
from halfseen.data.sources import Source, open_source
from halfseen.ops.pixels import normalise
from halfseen.types import Photometric, ViewPlan, ViewSpec


class Pipeline(NamedTuple):
    """What an original feeds its network with."""

    title: str
    plan: ViewPlan


class Speed(NamedTuple):
    """Source images per second on one core; `ratio` is ours over theirs."""

    title: str
    decode: float
    theirs: float
    ours: float
    ratio: float
    spread: float


BATCH = 8
"""Images that ours stacks."""

IBOT_COLOURS = Photometric(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2)
MSN_COLOURS = replace(IBOT_COLOURS, saturation=0.4, blur=0.5)

PIPELINES = (
    Pipeline(
        "SimMIM view, 192 px bilinear",
        ViewPlan((ViewSpec(192, crop_scale=(0.67, 1.0), interpolation="bilinear"),)),
    ),
    Pipeline(
        "SimMIM view, 224 px bilinear",
        ViewPlan((ViewSpec(224, crop_scale=(0.67, 1.0), interpolation="bilinear"),)),
    ),
    Pipeline("MAE view, 224 px bicubic", ViewPlan((ViewSpec(224, crop_scale=(0.2, 1.0)),))),
    Pipeline(
        "iBOT 2 x 224 px + 10 x 96 px",
        ViewPlan(
            (
                ViewSpec(224, crop_scale=(0.25, 1.0), colour=replace(IBOT_COLOURS, blur=1.0)),
                ViewSpec(224, crop_scale=(0.25, 1.0), colour=replace(IBOT_COLOURS, blur=0.1, solarize=0.2)),
                ViewSpec(96, count=10, crop_scale=(0.05, 0.25), colour=replace(IBOT_COLOURS, blur=0.5)),
            )
        ),
    ),
    Pipeline(
        "MSN 2 x 224 px + 10 x 96 px",
        ViewPlan(
            (
                ViewSpec(224, count=2, crop_scale=(0.3, 1.0), interpolation="bilinear", colour=MSN_COLOURS),
                ViewSpec(96, count=10, crop_scale=(0.05, 0.3), interpolation="bilinear", colour=MSN_COLOURS),
            )
        ),
    ),
)


def write_photographs(folder: Path, count: int, width: int = 500, height: int = 375, seed: int = 0) -> None:
    """JPEGs of about the size (80 kB) and spectrum of photographs: noise that fades with each octave, and edges."""
    drawing = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = np.full((height, width, 3), 128.0, np.float32)
        for octave in range(8):
            rows, columns = min(height, 3 * 2**octave), min(width, 4 * 2**octave)
            noise = drawing.normal(scale=40 * 0.78**octave, size=(rows, columns, 3)).astype(np.float32)
            picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(6):
            centre = (int(drawing.integers(width)), int(drawing.integers(height)))
            colour = [float(value) for value in drawing.uniform(0, 255, 3)]
            cv2.circle(picture, centre, int(drawing.integers(10, 80)), colour, thickness=int(drawing.integers(1, 6)))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)


def original(paths: list[Path], pipeline: Pipeline) -> Callable[[], None]:
    """The pipeline as the original papers' code has it: all views of each path, from the picture decoded once."""
    transforms = [original_view(spec) for spec in pipeline.plan.views for _ in range(spec.count)]

    def run() -> None:
        for path in paths:
            with path.open("rb") as file:
                picture = Image.open(file).convert("RGB")
            for transform in transforms:
                transform(picture)

    return run


def original_view(spec: ViewSpec) -> v1.Compose:
    """One view, step by step on a Pillow image."""
    steps = [
        v1.RandomResizedCrop(spec.size, scale=spec.crop_scale, interpolation=v1.InterpolationMode(spec.interpolation)),
        v1.RandomHorizontalFlip(spec.hflip),
    ]
    if spec.colour is not None:
        colour = spec.colour
        jitter = v1.ColorJitter(colour.brightness, colour.contrast, colour.saturation, colour.hue)
        steps += [
            v1.RandomApply([jitter], colour.jitter),
            v1.RandomGrayscale(colour.grayscale),
            v1.RandomApply([v1.Lambda(partial(pillow_blur, radius=colour.blur_radius))], colour.blur),
            v1.RandomSolarize(128, colour.solarize),
        ]
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def pillow_blur(picture: Image.Image, radius: tuple[float, float]) -> Image.Image:
    """Blurred with a radius drawn between the two."""
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(*radius)))


def ours(source: Source, pipeline: Pipeline) -> Callable[[], None]:
    """The same images as normalised batches, one for each view, through the library's worker."""
    worker = TrainingWorker(source, pipeline.plan, seed=0)
    rows = np.arange(len(source))

    def run() -> None:
        for at in range(0, len(rows), BATCH):
            for view in worker(Job(0, rows[at : at + BATCH])).views:
                normalise(torch.from_numpy(view), IMAGENET_MEAN, IMAGENET_STD)

    return run


def measure(count: int = 32, repetitions: int = 15) -> list[Speed]:
    """Speeds of all pipelines. Uses one thread of torch and OpenCV in this process from here on."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    speeds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photographs(folder, count)
        source = open_source(str(folder), config=DataConfig(source=str(folder)))
        paths = sorted(folder.glob("*.jpg"))
        for pipeline in PIPELINES:

            def decode() -> list[np.ndarray]:
                return [source.read(index) for index in range(len(source))]

            seconds = interleaved([decode, original(paths, pipeline), ours(source, pipeline)], repetitions)
            decoding, theirs, own = (count / statistics.median(times) for times in seconds)
            # The ratio is the median over neighbours in time, which share the machine's mood.
            ratios = [slow / quick for slow, quick in zip(seconds[1], seconds[2], strict=True)]
            speeds.append(Speed(pipeline.title, decoding, theirs, own, statistics.median(ratios), spread(ratios)))
    return speeds


def table(speeds: list[Speed]) -> str:
    """The speeds as text."""
    lines = [
        f"{'images/s on one core, 500x375 JPEG':36} {'decode':>8} {'v1 peer':>8} {'ours':>8} {'ratio':>7} {'spread':>7}"
    ]
    lines += [
        f"{speed.title:36} {speed.decode:8.0f} {speed.theirs:8.0f} {speed.ours:8.0f} {speed.ratio:6.2f}x "
        f"{speed.spread:6.1%}"
        for speed in speeds
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="View pipelines, images per second on one core.")
    parser.add_argument("--images", type=int, default=32, help="photographs to generate (default 32)")
    parser.add_argument("--repetitions", type=int, default=15, help="measurements of each pipeline (default 15)")
    arguments = parser.parse_args()
    print(table(measure(arguments.images, arguments.repetitions)))


if __name__ == "__main__":
    main()

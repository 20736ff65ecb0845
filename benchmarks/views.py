"""Views per second on one core, beside the plain Pillow and torchvision-v1 pipelines of the original papers.

    python -m benchmarks.views

Ours counts reading the file, decoding, cutting the view, stacking a batch as uint8 and normalising it; theirs counts
reading to normalising, without stacking. Both run on the same generated 500x375 JPEGs, in turns, in one thread.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1

from benchmarks.clock import interleaved, spread
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from halfseen.data.loader import Job, TrainingWorker
from halfseen.data.sources import Source, open_source
from halfseen.ops.pixels import normalise
from halfseen.types import ViewPlan, ViewSpec


class Pipeline(NamedTuple):
    """What an original feeds its network with."""

    title: str
    size: int
    crop_scale: tuple[float, float]
    interpolation: Literal["bilinear", "bicubic"]


class Speed(NamedTuple):
    """Images per second on one core; `ratio` is ours over theirs."""

    pipeline: Pipeline
    decode: float
    theirs: float
    ours: float
    ratio: float
    spread: float


PIPELINES = (
    Pipeline("SimMIM view, 192 px bilinear", 192, (0.67, 1.0), "bilinear"),
    Pipeline("SimMIM view, 224 px bilinear", 224, (0.67, 1.0), "bilinear"),
    Pipeline("MAE view, 224 px bicubic", 224, (0.2, 1.0), "bicubic"),
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


def original(paths: list[Path], pipeline: Pipeline) -> Callable[[], list[Tensor]]:
    """The pipeline as the original papers' code has it, for each path."""
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(
                pipeline.size, scale=pipeline.crop_scale, interpolation=v1.InterpolationMode(pipeline.interpolation)
            ),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def load(path: Path) -> Tensor:
        with path.open("rb") as file:
            view: Tensor = transform(Image.open(file).convert("RGB"))
        return view

    return lambda: [load(path) for path in paths]


def ours(source: Source, pipeline: Pipeline) -> Callable[[], Tensor]:
    """The same images as one normalised batch through the library's worker."""
    spec = ViewSpec(pipeline.size, crop_scale=pipeline.crop_scale, interpolation=pipeline.interpolation)
    worker = TrainingWorker(source, ViewPlan((spec,)), seed=0)
    job = Job(0, np.arange(len(source)))
    return lambda: normalise(torch.from_numpy(worker(job).views[0]), IMAGENET_MEAN, IMAGENET_STD)


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
            speeds.append(Speed(pipeline, decoding, theirs, own, statistics.median(ratios), spread(ratios)))
    return speeds


def table(speeds: list[Speed]) -> str:
    """The speeds as text."""
    lines = [
        f"{'images/s on one core, 500x375 JPEG':36} {'decode':>8} {'v1 peer':>8} {'ours':>8} {'ratio':>7} {'spread':>7}"
    ]
    lines += [
        f"{speed.pipeline.title:36} {speed.decode:8.0f} {speed.theirs:8.0f} {speed.ours:8.0f} {speed.ratio:6.2f}x "
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

"""What all analyses of an encoder cost, beside bare forward passes over the same images.

    python -m benchmarks.analysis --model timm:vit_base_patch16_224 --images 500

Prints the seconds of the bare passes, of the shared pass and of each pass of its own, the ratio of all to the bare ones
without t-SNE and noise robustness, and the peak of resident memory. Bare passes run in halves, before and after.
"""

import argparse
import time
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.clock import resident_peak
from halfseen.analysis.analyze import analyze
from halfseen.analysis.analyze_config import ANALYSES, AnalyzeConfig
from halfseen.analysis.findings import AnalyzedEncoder
from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import load_encoder
from halfseen.data.sources import ArraySource


@torch.no_grad()
def bare_seconds(encoder: Encoder, images: int, batch_size: int) -> float:
    """Seconds of plain forward passes over so many images."""
    batch = torch.randn(batch_size, 3, encoder.image_size, encoder.image_size)
    start = time.perf_counter()
    for first in range(0, images, batch_size):
        encoder.encode(batch[: min(batch_size, images - first)])
    return time.perf_counter() - start


class Cost(NamedTuple):
    """Seconds on the clock, and bytes.

    Attributes:
        bare: of plain forward passes.
        whole: of everything but t-SNE and noise.
        parts: what `whole` is made of, passes by name.
        peak: resident memory of the process.
    """

    bare: float
    whole: float
    parts: dict[str, float]
    peak: int


def measure(model: str, images: int, image_size: int | None = None) -> Cost:
    """All analyses of one encoder on generated pictures of its size."""
    loaded = load_encoder(model, image_size=image_size)
    encoder = loaded.encoder.eval()
    side = encoder.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    source = ArraySource("noise", pictures, np.arange(images) % 10, [str(label) for label in range(10)])
    config = AnalyzeConfig.model_validate({"images": images, "tsne": False, "crop_ratio": 1.0})
    subject = AnalyzedEncoder("encoder", encoder, loaded.mean, loaded.std, loaded.origin)
    half = images // 2
    bare = bare_seconds(encoder, half, config.batch_size)
    start = time.perf_counter()
    found = analyze([subject], source, config, [name for name in ANALYSES if name != "noise"])
    whole = time.perf_counter() - start
    bare += bare_seconds(encoder, images - half, config.batch_size)
    return Cost(bare, whole, found.encoders[0].seconds, resident_peak())


def main() -> None:
    """One encoder, one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm:vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    cost = measure(chosen.model, chosen.images)
    print(f"{chosen.model}, {chosen.images} images, {chosen.threads} threads")
    print(f"bare forward passes {cost.bare:.1f} s, all analyses {cost.whole:.1f} s: {cost.whole / cost.bare:.2f} times")
    for name, seconds in cost.parts.items():
        print(f"  {name}: {seconds:.1f} s, {seconds / cost.bare:.2f}")
    print(f"peak memory {cost.peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.hog`: HOG targets of four cell sizes beside the original's way of computing them."""

import statistics

import torch

from benchmarks.clock import interleaved
from benchmarks.plain import plain_hog_targets
from halfseen.targets.hog import HOGTarget

CELLS = (4, 8, 16, 32)
CASES = ((9, False), (18, False), (18, True))
"""Bins, and whether there is a bias."""


def main() -> None:
    """Prints milliseconds of both, and how many times as fast ours is, for a batch of 8 pictures of 224 px."""
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for bins, bias in CASES:
        ours = HOGTarget(CELLS, bins, bias, torch.Generator().manual_seed(1))
        biases = None if ours.bias is None else list(ours.bias)
        own, plain = interleaved(
            [
                lambda ours=ours: ours(images),
                lambda bins=bins, biases=biases: plain_hog_targets(images, bins, CELLS, biases),
            ],
            7,
        )
        ratio = statistics.median(slow / fast for fast, slow in zip(own, plain, strict=True))
        print(
            f"{bins} bins, {'bias' if bias else 'no bias'}: {1000 * statistics.median(own):.1f} ms, plain "
            f"{1000 * statistics.median(plain):.0f} ms; {ratio:.1f} times as fast"
        )


if __name__ == "__main__":
    main()

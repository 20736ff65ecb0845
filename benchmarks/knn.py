"""Seconds and memory of k-NN at the scale of ImageNet, as a share of what the machine's matrix product can do.

    python -m benchmarks.knn

Votes over generated features, 50,000 queries against 1,281,167 samples 384 wide: their similarities alone are 49
million million operations, and the whole matrix of them would weigh 256 GB. The machine's peak is measured before and
after, in the same process.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch

from benchmarks.clock import GEMM_FLOPS, gemm, resident_now, resident_peak
from halfseen.evaluation.knn.votes import KnnScore, weighted_knn

GIGA = 1e9
REPETITIONS = 7


class Measured(NamedTuple):
    """A search on the clock.

    Attributes:
        scores: of the votes.
        seconds: of search and votes together.
        flops: operations of the similarities, a multiplication and an addition each.
        before, after: operations a second of a large square matrix product, float32.
        resting, peak: resident bytes without the features, and the most at any time.
    """

    scores: list[KnnScore]
    seconds: float
    flops: int
    before: float
    after: float
    resting: int
    peak: int

    @property
    def rate(self) -> float:
        """Operations of the similarities in a second, the time of all else included."""
        return self.flops / self.seconds

    @property
    def share(self) -> float:
        """Of the matrix product's rate, the mean of before and after."""
        return 2 * self.rate / (self.before + self.after)


def peak_rate(repetitions: int) -> float:
    """Operations a second of the matrix product: the median of some."""
    product = gemm("fp32")
    product()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return GEMM_FLOPS / statistics.median(seconds)


def measure(
    train: int, queries: int, width: int, classes: int, k: tuple[int, ...], repetitions: int = REPETITIONS
) -> Measured:
    """Classify generated queries by generated samples; `repetitions` of the matrix product before and after."""
    before, resting = peak_rate(repetitions), resident_now()
    generator = torch.Generator().manual_seed(0)
    samples, asked = (torch.randn(count, width, generator=generator) for count in (train, queries))
    labels, truth = (torch.randint(classes, (count,), generator=generator) for count in (train, queries))
    start = time.perf_counter()
    scores = weighted_knn(samples, labels, asked, truth, k=k, num_classes=classes)
    seconds = time.perf_counter() - start
    flops = 2 * train * queries * width
    return Measured(scores, seconds, flops, before, peak_rate(repetitions), resting, resident_peak())


def main(arguments: list[str] | None = None) -> None:
    """Prints time, rate, share and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1_281_167, help="samples that vote")
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200])
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of the matrix product alone")
    options = parser.parse_args(arguments)
    sizes = options.train, options.queries, options.width, options.classes
    found = measure(*sizes, tuple(options.k), options.repetitions)
    threads = torch.get_num_threads()
    print(f"{options.queries} queries, {options.train} x {options.width} float32 samples, {threads} threads")
    print(
        f"{found.seconds:.1f} s, {found.rate / GIGA:.0f} GFLOP/s: {found.share:.0%} of the matrix product "
        f"({found.before / GIGA:.0f} GFLOP/s before, {found.after / GIGA:.0f} after)"
    )
    print(f"memory: {found.peak / GIGA:.2f} GB at most, of which {found.resting / GIGA:.2f} GB without any feature")
    print(", ".join(f"k = {score.k}: {score.top(1):.2f} %" for score in found.scores))


if __name__ == "__main__":
    main()

"""Seconds to the optimum of multinomial logistic regression, beside scikit-learn's lbfgs.

    python -m benchmarks.logistic

Generated features of the size of MSN's 1 % of ImageNet: overlapping classes, a spectrum that falls like 1/sqrt(i), rows
centred and of length 1. Ours solves the penalties as one path to its default tolerance; scikit-learn solves each from
zero with the loosest of its tolerances that brings its objective within 1e-8 of ours, and only that run counts.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from halfseen.evaluation.low_shot.logistic import LogisticFit, centre_rows, fit_logistic

TOLERANCES = (1e-7, 1e-8, 1e-9, 1e-10, 1e-11)
WANTED = 1e-8


class Spent(NamedTuple):
    """Seconds on the clock, and of all cores together: the second hardly depends on what else the machine does."""

    wall: float
    cpu: float


class Race(NamedTuple):
    """Both solvers on the same features.

    Attributes:
        fits: ours, in the order of the penalties.
        ours: seconds of the whole path.
        theirs: seconds of each penalty.
        excess: how far each objective of theirs is above ours, as a share.
        steps: iterations of theirs.
    """

    fits: list[LogisticFit]
    ours: Spent
    theirs: list[Spent]
    excess: list[float]
    steps: list[int]

    def ratios(self) -> Spent:
        """Theirs over ours."""
        return Spent(
            sum(spent.wall for spent in self.theirs) / self.ours.wall,
            sum(spent.cpu for spent in self.theirs) / self.ours.cpu,
        )


def generated(samples: int, width: int, classes: int, decay: float = 0.5, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    """Features float32 [samples, width] and labels int64 [samples]; `decay` is that of the spectrum's square root."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    centres = torch.randn(classes, width, generator=generator)
    cloud = centres[labels] + noise * torch.randn(samples, width, generator=generator)
    return centre_rows((cloud * torch.arange(1, width + 1) ** -decay) @ turn), labels


def objective(features: Tensor, labels: Tensor, weight: Tensor, lambd: float) -> float:
    """Of both, by the same formula in float64."""
    loss = torch.nn.functional.cross_entropy(features.double() @ weight.T, labels)
    return float(loss + lambd / len(labels) / 2 * weight.square().sum())


def timed(work: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def race(features: Tensor, labels: Tensor, lambdas: tuple[float, ...]) -> Race:
    """Solve for all penalties with both."""
    fits: list[LogisticFit] = []
    ours = timed(lambda: fits.extend(fit_logistic(features, labels, lambdas)))
    samples, classes = features.double().numpy(), labels.numpy()
    theirs, excess, steps = [], [], []
    for fit in fits:
        best = objective(features, labels, fit.weight, fit.lambd)
        for tolerance in TOLERANCES:
            model = LogisticRegression(C=1 / fit.lambd, fit_intercept=False, tol=tolerance, max_iter=50_000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a line search that rounding ended
                spent = timed(lambda model=model: model.fit(samples, classes))
            above = objective(features, labels, torch.from_numpy(model.coef_), fit.lambd) / best - 1
            if above <= WANTED:
                break
        theirs.append(spent)
        excess.append(above)
        steps.append(int(model.n_iter_[0]))
    return Race(fits, ours, theirs, excess, steps)


def main(arguments: list[str] | None = None) -> None:
    """Prints one line for each penalty, then both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=13_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--decay", type=float, default=0.5, help="of the standard deviations: i to minus this power")
    parser.add_argument("--lambd", type=float, nargs="+", default=[0.5, 0.075, 0.025, 0.0025])
    options = parser.parse_args(arguments)
    features, labels = generated(options.samples, options.width, options.classes, options.decay)
    found = race(features, labels, tuple(options.lambd))
    print(f"{options.samples} x {options.width} features, {options.classes} classes, {torch.get_num_threads()} threads")
    for fit, spent, above, steps in zip(found.fits, found.theirs, found.excess, found.steps, strict=True):
        print(
            f"lambda {fit.lambd:g}: ours {sum(fit.evaluations)} evaluations, within {fit.gap:.1e}; scikit-learn "
            f"{steps} steps, {spent.wall:.1f} s ({spent.cpu:.1f} s of cores), {above:.1e} above ours"
        )
    ratios = found.ratios()
    print(
        f"path: ours {found.ours.wall:.1f} s ({found.ours.cpu:.1f} s of cores), "
        f"{ratios.wall:.1f} times as fast as scikit-learn ({ratios.cpu:.1f} by time of cores)"
    )


if __name__ == "__main__":
    main()

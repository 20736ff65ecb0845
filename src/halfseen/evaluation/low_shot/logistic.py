"""Multinomial logistic regression with an L2 penalty and no intercept, solved to a proven tolerance.

The objective is strictly convex, so there is one optimum and any solver may look for it. This one is L-BFGS with

* the inverse of a * covariance + penalty as its first guess of the inverse Hessian, which takes the shape of the cloud
  of features out of the problem (half the evaluations where the spectrum falls like 1/i);
* one fused evaluation of value and gradient, a product forward and a product back, in blocks that stay in the cache;
* float32 products as long as they still bring it nearer, float64 from then on, with the same curvature history;
* a path from the largest penalty to the smallest: each solution, moved on by what log(penalty) has done to it so far,
  and its curvature history are where the next one begins.

It stops when the duality gap, here |gradient|^2 / (2 penalty), says that the objective can't fall by more than the
tolerance.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfseen.errors import DataError, ShapeError
from halfseen.evaluation.knn.votes import full_float32

TOLERANCE = 1e-9
MOST_EVALUATIONS = 2000
MEMORY = 10
"""Pairs of steps and gradient differences that L-BFGS keeps."""
CACHE_ROWS = 2048
"""Samples of a block on a CPU: their logits stay in the last-level cache, and few threads wait for each other."""
GPU_ROWS = 16384
PATIENCE = 8
"""Float32 evaluations in a row without a smaller gap after which float64 takes over."""
SUFFICIENT_SLOPE = 0.9
LINE_EVALUATIONS = 30
CHECK_EVERY = 20
"""Steps of the elastic net between two looks at its gap."""


class LogisticFit(NamedTuple):
    """The optimum at one penalty.

    Attributes:
        lambd: the penalty times the number of samples; scikit-learn's C is 1 / lambd.
        weight: float64 [K, D]; the scores of a prepared feature x are weight @ x.
        objective: mean cross-entropy in nats + lambd / (2 n) * |weight|^2, and of an elastic net + lambd / n * the sum
            of |weight|.
        gap: the objective is above its minimum by at most this share of itself.
        evaluations: how often value and gradient were computed, (in float32, in float64).
    """

    lambd: float
    weight: Float[Tensor, "K D"]
    objective: float
    gap: float
    evaluations: tuple[int, int]


def centre_rows(features: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """Each feature vector minus its own mean over the coordinates, divided by its own length.

    It looks at one row at a time, so nothing passes from one image to another. A constant row becomes 0.

    Source: Masked Siamese Networks, arXiv 2204.07141 (official code's low-shot evaluation).
    """
    centred = features - features.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    prepared: Tensor = centred / length.clamp_min(torch.finfo(features.dtype).tiny)
    return prepared


def fit_logistic(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    lambdas: Sequence[float],
    *,
    num_classes: int | None = None,
    tolerance: float = TOLERANCE,
    most_evaluations: int = MOST_EVALUATIONS,
) -> list[LogisticFit]:
    """Minimise (1/n) sum_i [log sum_c exp(w_c x_i) - w_{y_i} x_i] + (lambd / 2n) |W|^2 for each `lambd`.

    The same minimum as scikit-learn's `LogisticRegression(C=1/lambd, fit_intercept=False)`.

    Args:
        features: float32 or float64, as they enter the classifier (see `centre_rows`); on a device with float64.
        labels: classes from 0, every one at least once.
        lambdas: MSN's `lambd`, all above 0.
        num_classes: K; None = largest label + 1. Without a sample of its own a class only ever loses.
        tolerance: largest share by which an objective may be above its minimum.
        most_evaluations: for each lambda; where they don't suffice, `LogisticFit.gap` is above `tolerance`.
    Returns:
        One optimum for each lambda, in their order.
    Raises:
        DataError: fewer than two classes, unlabelled samples, a lambda that is not positive.
        ShapeError: features and labels that don't go together, or non-finite features.
    Source: Masked Siamese Networks, arXiv 2204.07141; L-BFGS: Liu and Nocedal 1989, its line search by slopes as in
        Hager and Zhang 2005.
    """
    _check(features, labels, lambdas)
    num_classes = num_classes or int(labels.max()) + 1
    with torch.inference_mode(), full_float32(features.device.type):
        basis = None
        if features.shape[0] < features.shape[1]:
            # The optimum is a sum of samples: in a basis of their span there are n coordinates instead of D.
            basis, coordinates = torch.linalg.qr(features.double().T)
            features = coordinates.T.contiguous()
        problem = _Problem(features, labels, num_classes)
        fits: dict[float, LogisticFit] = {}
        path = _Path(problem)
        for lambd in sorted(set(lambdas), reverse=True):
            found = _minimise(problem, path, lambd / len(labels), tolerance, most_evaluations)
            weight = found.weight if basis is None else found.weight @ basis.T
            fits[lambd] = LogisticFit(lambd, weight, found.value, found.gap, (problem.float32, problem.float64))
            problem.float32 = problem.float64 = 0
    return [fits[lambd] for lambd in lambdas]


def fit_elastic_net(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    lambdas: Sequence[float],
    *,
    num_classes: int | None = None,
    tolerance: float = TOLERANCE,
    most_evaluations: int = 50_000,
) -> list[LogisticFit]:
    """The same with (lambd / n) sum |W| added: weights that say little become exactly 0.

    The same minimum as scikit-learn's saga with l1_ratio=0.5 and C=0.5/lambd. Accelerated proximal gradient in float64,
    begun anew whenever its momentum points uphill: the corners at 0 leave no curvature for L-BFGS to learn. It takes
    many times longer than `fit_logistic`.

    Args:
        features, labels, lambdas, num_classes, tolerance, most_evaluations: see `fit_logistic`.
    Raises:
        DataError, ShapeError: see `fit_logistic`.
    Source: Masked Siamese Networks, arXiv 2204.07141 (official code's other penalty); Beck and Teboulle 2009;
        O'Donoghue and Candes 2015 for the restarts.
    """
    _check(features, labels, lambdas)
    with torch.inference_mode(), full_float32(features.device.type):
        problem = _Problem(features, labels, num_classes or int(labels.max()) + 1)
        curvature = float(torch.linalg.eigvalsh(problem.covariance)[-1]) / 2
        fits: dict[float, LogisticFit] = {}
        weight = problem.origin()
        for lambd in sorted(set(lambdas), reverse=True):
            penalty = lambd / len(labels)
            weight, value, gap = _shrink(problem, weight, penalty, curvature, tolerance, most_evaluations)
            fits[lambd] = LogisticFit(lambd, weight, value, gap, (problem.float32, problem.float64))
            problem.float32 = problem.float64 = 0
    return [fits[lambd] for lambd in lambdas]


def _shrink(
    problem: "_Problem", weight: Tensor, penalty: float, curvature: float, tolerance: float, most_evaluations: int
) -> tuple[Tensor, float, float]:
    """Weights at the minimum of the elastic net, its value, and how far that may be above the minimum, as a share."""
    step = 1 / (curvature + penalty)
    ahead, momentum = weight, 1.0
    while True:
        for _ in range(CHECK_EVERY):
            moved = ahead - step * problem.at(ahead, penalty, torch.float64).gradient
            moved = moved.sign() * (moved.abs() - step * penalty).clamp_min(0)
            if _dot(ahead - moved, moved - weight) > 0:
                momentum = 1.0
            faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = moved + (momentum - 1) / faster * (moved - weight)
            weight, momentum = moved, faster
        here = problem.at(weight, penalty, torch.float64)
        value = here.value + penalty * float(weight.abs().sum())
        # The subgradient nearest to 0; the objective is strongly convex with `penalty`, which bounds its gap.
        slope = torch.where(
            weight == 0,
            (here.gradient.abs() - penalty).clamp_min(0),
            here.gradient + penalty * weight.sign(),
        )
        gap = float(slope.square().sum()) / (2 * penalty * value)
        if gap <= tolerance or problem.float64 >= most_evaluations:
            return weight, value, gap


def logits(features: Float[Tensor, "n D"], weight: Float[Tensor, "K D"]) -> Float[Tensor, "n K"]:
    """Scores of prepared features, in float64."""
    scores: Tensor = features.double() @ weight.T
    return scores


class _Point(NamedTuple):
    """Where the search stands.

    Attributes:
        weight, gradient: float64 [K, D].
        value: of the objective.
        gap: upper bound of (value - minimum) / value.
        spread: mean of p (1 - p) over samples and classes: the scale of the loss's curvature.
    """

    weight: Tensor
    value: float
    gradient: Tensor
    gap: float
    spread: float


class _Problem:
    """The objective's value and gradient, and how often they were asked for."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        self.features, self.labels, self.num_classes = features, labels, num_classes
        self.rows = CACHE_ROWS if features.device.type == "cpu" else GPU_ROWS
        self.float32 = self.float64 = 0
        self.covariance = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        for start in range(0, len(features), self.rows):
            block = features[start : start + self.rows].double()
            self.covariance += block.T @ block
        self.covariance /= len(labels)

    def origin(self) -> Tensor:
        return self.covariance.new_zeros(self.num_classes, len(self.covariance))

    def at(self, weight: Tensor, penalty: float, dtype: torch.dtype) -> _Point:
        """Value and gradient with products in `dtype`; what is summed over samples is summed in float64."""
        if dtype == torch.float32:
            self.float32 += 1
        else:
            self.float64 += 1
        columns = weight.to(dtype).T.contiguous()
        gradient = torch.zeros_like(weight)
        log_likelihood = weight.new_zeros(())
        purity = weight.new_zeros(())
        for start in range(0, len(self.labels), self.rows):
            samples = self.features[start : start + self.rows].to(dtype)
            own = self.labels[start : start + self.rows, None]
            probs = torch.log_softmax(samples @ columns, dim=1)  # [rows, K], a logarithm until the next line but one
            log_likelihood += probs.gather(1, own).sum(dtype=torch.float64)
            probs.exp_()
            purity += torch.linalg.vector_norm(probs).double() ** 2
            probs.scatter_add_(1, own, probs.new_full(own.shape, -1.0))
            gradient += probs.T @ samples
        n = len(self.labels)
        gradient = gradient / n + penalty * weight
        value = float(penalty / 2 * weight.square().sum() - log_likelihood / n)
        gap = float(gradient.square().sum()) / (2 * penalty * value)
        return _Point(weight, value, gradient, gap, (1 - float(purity) / n) / self.num_classes)


class _Pair(NamedTuple):
    """A step of L-BFGS, what it did to the gradient, and the product of both, which is positive."""

    step: Tensor
    change: Tensor
    curvature: float


class _Path:
    """What earlier, larger penalties tell about the next one: where to begin, and how the objective bends."""

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        self.solutions: list[tuple[float, Tensor]] = []
        self.pairs: list[_Pair] = []

    def start(self, penalty: float) -> Tensor:
        """The last solution, moved on as far along the line through the last two as log(penalty) goes."""
        if not self.solutions:
            return self.problem.origin()
        last_penalty, last = self.solutions[-1]
        # The penalty's part of a gradient difference is penalty * step; the loss's part is kept.
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            self.remember(pair.step, pair.change + (penalty - last_penalty) * pair.step)
        if len(self.solutions) == 1:
            return last
        earlier_penalty, earlier = self.solutions[-2]
        reach = math.log(penalty / last_penalty) / math.log(last_penalty / earlier_penalty)
        return last + reach * (last - earlier)

    def arrive(self, penalty: float, weight: Tensor) -> None:
        """The solution at a penalty, for the next one to begin with."""
        self.solutions = [*self.solutions[-1:], (penalty, weight)]

    def remember(self, step: Tensor, change: Tensor) -> None:
        """The newest pair; one without curvature is rounding and is left out."""
        curvature = _dot(step, change)
        if curvature > 0:
            self.pairs = [*self.pairs, _Pair(step, change, curvature)][-MEMORY:]

    def direction(self, gradient: Tensor, inverse: Tensor) -> Tensor:
        """- H gradient; H is L-BFGS's guess of the inverse Hessian that begins with `inverse` [D, D] for each class."""
        left = gradient.clone()
        shares = []
        for step, change, curvature in reversed(self.pairs):
            shares.append(_dot(step, left) / curvature)
            left.add_(change, alpha=-shares[-1])
        found = _centred(left @ inverse)
        if self.pairs:
            _, change, curvature = self.pairs[-1]
            found *= curvature / _dot(change, _centred(change @ inverse))
        for (step, change, curvature), share in zip(self.pairs, reversed(shares), strict=True):
            found.add_(step, alpha=share - _dot(change, found) / curvature)
        return found.neg_()


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))


def _centred(weight: Tensor) -> Tensor:
    """Without what is common to all classes: it changes no probability, and at the optimum it is 0."""
    return weight - weight.mean(dim=0)


def _minimise(problem: _Problem, path: _Path, penalty: float, tolerance: float, most_evaluations: int) -> _Point:
    dtype = torch.float32
    here = problem.at(path.start(penalty), penalty, dtype)
    identity = torch.eye(len(problem.covariance), dtype=torch.float64, device=problem.covariance.device)
    inverse = torch.linalg.inv(here.spread * problem.covariance + penalty * identity)
    smallest, since = here.gap, 0
    while True:
        spent = problem.float32 + problem.float64 >= most_evaluations
        if dtype == torch.float32 and (spent or here.gap <= tolerance / 2 or since > PATIENCE):
            dtype = torch.float64
            here = problem.at(here.weight, penalty, dtype)
        if dtype == torch.float64 and (spent or here.gap <= tolerance):
            break
        there = _search(problem, here, path.direction(here.gradient, inverse), penalty, dtype)
        if there is not None:
            path.remember(there.weight - here.weight, there.gradient - here.gradient)
            here = there
            smallest, since = (here.gap, 0) if here.gap < smallest else (smallest, since + 1)
        elif dtype == torch.float32:
            since = PATIENCE + 1
        else:
            break
    path.arrive(penalty, here.weight)
    return here


def _search(problem: _Problem, here: _Point, direction: Tensor, penalty: float, dtype: torch.dtype) -> _Point | None:
    """A point along `direction` where the slope is flat enough; None where rounding hides which way is down.

    The objective is convex, so the sign of the slope says on which side of the minimum along the line a point lies.
    Values decide only where they differ by more than rounding.
    """
    slope = _dot(here.gradient, direction)
    if not slope < 0:
        return None
    rounding = here.value * (1e-6 if dtype == torch.float32 else 1e-13)
    low, low_slope, high, high_slope, size = 0.0, slope, math.inf, math.inf, 1.0
    for _ in range(LINE_EVALUATIONS):
        there = problem.at(here.weight + size * direction, penalty, dtype)
        found = _dot(there.gradient, direction)
        if there.value > here.value + rounding or found > -SUFFICIENT_SLOPE * slope:
            high, high_slope = size, found
        elif found < SUFFICIENT_SLOPE * slope:
            low, low_slope = size, found
        else:
            return there
        if math.isinf(high):
            size *= 2
        else:
            # Where the line through both slopes is 0, but well inside the bracket.
            share = low_slope / (low_slope - high_slope) if high_slope > 0 else 0.5
            size = low + (high - low) * min(0.9, max(0.1, share))
    return None


def _check(features: Tensor, labels: Tensor, lambdas: Sequence[float]) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ShapeError(
            f"logistic regression got features {tuple(features.shape)} and labels {tuple(labels.shape)}; give [n, D] "
            "features and one label per row."
        )
    if int(labels.min()) < 0:
        raise DataError("logistic regression got samples without a label (-1). Leave them out.")
    if int(labels.min()) == int(labels.max()):
        raise DataError(f"logistic regression needs at least 2 classes, got 1 among {len(labels)} labelled images.")
    if not lambdas or not all(0 < lambd < math.inf for lambd in lambdas):
        raise DataError(f"lambda: got {list(lambdas)}, expected numbers above 0, such as 0.0025 or 0.075.")
    if not bool(features.double().sum(dim=1).isfinite().all()):
        raise ShapeError("logistic regression got non-finite features: the encoder's weights are broken.")

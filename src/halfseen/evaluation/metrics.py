"""Numbers that say how well predictions fit labels: accuracy with its uncertainty, per class, and for clusterings."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.errors import ShapeError

Labels = NDArray[np.int64]


class Interval(NamedTuple):
    """A confidence interval, in the unit of the quantity it belongs to."""

    low: float
    high: float


class ClusterScores(NamedTuple):
    """Agreement of a clustering with labels; all 1 for a perfect one.

    Attributes:
        nmi: mutual information over the arithmetic mean of both entropies, in [0, 1].
        ari: Rand index adjusted for chance, at most 1, about 0 for random clusters.
        fmi: Fowlkes-Mallows index, in [0, 1].
        accuracy: share of right predictions under the best one-to-one map from clusters to classes, in [0, 1]; None
            where there are more clusters than classes.
    """

    nmi: float
    ari: float
    fmi: float
    accuracy: float | None


def wilson_interval(num_correct: int, n: int, z: float = 1.959963984540054) -> Interval:
    """Wilson's score interval for a share, in percent; the default z gives 95 %.

    Unlike the normal approximation it stays inside [0, 100] and is right for small n and for shares near 0 or 1.

    Raises:
        ShapeError: if `n` is not positive or `num_correct` lies outside [0, n].
    Source: E. B. Wilson, Probable inference, JASA 1927.
    """
    if n < 1 or not 0 <= num_correct <= n:
        raise ShapeError(f"wilson_interval: got {num_correct} right of {n}; n must be at least 1 and 0 <= right <= n.")
    share = num_correct / n
    centre = share + z * z / (2 * n)
    spread = z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    scale = 100 / (1 + z * z / n)
    # Rounding must not push the share itself outside where all are right, or none.
    low, high = (centre - spread) * scale, (centre + spread) * scale
    return Interval(max(0.0, min(low, 100 * share)), min(100.0, max(high, 100 * share)))


def confusion_matrix(labels: Labels, predictions: Labels, num_classes: int) -> Labels:
    """Counts int64 [num_classes, num_classes]; row = true class, column = predicted class."""
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def cluster_scores(labels: Labels, clusters: Labels) -> ClusterScores:
    """How well `clusters` int64 [n] recover `labels` int64 [n] (both any non-negative ids).

    Source: iBOT, arXiv 2111.07832 (unsupervised classification).
    """
    from sklearn import metrics

    _check_pair(labels, clusters)
    nmi = float(metrics.normalized_mutual_info_score(labels, clusters, average_method="arithmetic"))
    ari = float(metrics.adjusted_rand_score(labels, clusters))
    fmi = float(metrics.fowlkes_mallows_score(labels, clusters))
    mapped = best_one_to_one(labels, clusters)
    return ClusterScores(nmi, ari, fmi, None if mapped is None else float((mapped == labels).mean()))


def best_one_to_one(labels: Labels, clusters: Labels) -> Labels | None:
    """The clusters int64 [n] renamed to classes, each to another one, so that as many as possible fit `labels` [n].

    None where there are more clusters than classes.
    """
    from scipy.optimize import linear_sum_assignment

    _check_pair(labels, clusters)
    classes, label_ids = np.unique(labels, return_inverse=True)
    groups, cluster_ids = np.unique(clusters, return_inverse=True)
    if len(groups) > len(classes):
        return None
    counts = np.zeros((len(groups), len(classes)), dtype=np.int64)
    np.add.at(counts, (cluster_ids, label_ids), 1)
    _, chosen = linear_sum_assignment(counts, maximize=True)
    mapped: Labels = classes[chosen[cluster_ids]]
    return mapped


def _check_pair(labels: Labels, predictions: Labels) -> None:
    if labels.ndim != 1 or labels.shape != predictions.shape or len(labels) == 0:
        raise ShapeError(
            f"got labels {labels.shape} and predictions {predictions.shape}; give two equal, non-empty lists."
        )

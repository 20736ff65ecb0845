"""Accuracy intervals, confusion counts and cluster agreement."""

import numpy as np
import pytest

from halfseen.errors import ShapeError
from halfseen.evaluation.metrics import cluster_scores, confusion_matrix, wilson_interval


def test_wilson_interval_equals_a_textbook_value():
    # 8 of 10: (0.490, 0.943), e.g. Newcombe 1998, method 3.
    low, high = wilson_interval(8, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (5, 5), (1, 1), (0, 1), (60, 60), (999, 1000)])
def test_wilson_interval_holds_the_share_and_stays_in_range(correct, n):
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= 100 * correct / n <= high <= 100
    assert high - low > 0


def test_wilson_interval_covers_as_often_as_it_says():
    drawing = np.random.default_rng(0)
    hits = 0
    for correct in drawing.binomial(200, 0.7, size=2000):
        low, high = wilson_interval(int(correct), 200)
        hits += low <= 70 <= high
    assert 0.93 <= hits / 2000 <= 0.97


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct, n):
    with pytest.raises(ShapeError, match="right of"):
        wilson_interval(correct, n)


def test_confusion_rows_are_true_classes():
    labels, predictions = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    assert confusion_matrix(labels, predictions, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_renamed_clusters_are_perfect():
    labels = np.array([0, 0, 1, 1, 2, 2])
    scores = cluster_scores(labels, np.array([7, 7, 3, 3, 5, 5]))
    assert scores == pytest.approx((1.0, 1.0, 1.0, 1.0))


def test_best_assignment_and_too_many_clusters():
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert cluster_scores(labels, np.array([1, 1, 0, 0, 0, 0])).accuracy == pytest.approx(5 / 6)
    assert cluster_scores(labels, np.arange(6)).accuracy is None


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ShapeError, match="two equal"):
        cluster_scores(np.array([0, 1]), np.array([0]))

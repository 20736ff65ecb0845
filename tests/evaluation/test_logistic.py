"""Logistic regression: scikit-learn's optimum at every penalty, whatever the shape, and a gap that tells the truth."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from halfseen.errors import DataError, ShapeError
from halfseen.evaluation.low_shot import logistic
from halfseen.evaluation.low_shot.logistic import centre_rows, fit_elastic_net, fit_logistic, logits

LAMBDAS = (0.0025, 0.075, 0.5)


def clouds(n: int, width: int, num_classes: int, decay: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes with a spectrum of i^-decay, rows prepared; every class has at least one sample."""
    generator = torch.Generator().manual_seed(n + width)
    labels = torch.arange(n) % num_classes
    centres = torch.randn(num_classes, width, generator=generator)
    spectrum = torch.arange(1, width + 1) ** -decay
    return centre_rows((centres[labels] + 1.5 * torch.randn(n, width, generator=generator)) * spectrum), labels


def objective(features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, lambd: float) -> float:
    """The formula written out."""
    scores = features.double() @ weight.T
    own = scores[torch.arange(len(labels)), labels]
    return float((scores.logsumexp(dim=1) - own).mean() + lambd / len(labels) / 2 * weight.square().sum())


def sklearn_weight(features: torch.Tensor, labels: torch.Tensor, lambd: float) -> torch.Tensor:
    model = LogisticRegression(C=1 / lambd, fit_intercept=False, tol=1e-12, max_iter=20_000)
    with warnings.catch_warnings():
        # Where rounding ends its line search it says so; the optimum is then exact to the last digits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = model.fit(features.double().numpy(), labels.numpy())
    return torch.from_numpy(fitted.coef_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "width", "num_classes", "decay"),
    [
        (600, 24, 10, 0.5),
        (700, 40, 30, 1.5),  # ill-conditioned
        (20, 64, 10, 0.5),  # fewer samples than coordinates
        (12, 12, 12, 0.0),  # one sample of each class
        (5000, 16, 3, 0.0),  # several blocks of samples, the last one short
    ],
)
def test_equals_the_optimum_of_scikit_learn(n, width, num_classes, decay, dtype):
    features, labels = clouds(n, width, num_classes, decay)
    for lambd, fit in zip(LAMBDAS, fit_logistic(features.to(dtype), labels, LAMBDAS), strict=True):
        expected = sklearn_weight(features, labels, lambd)
        best = objective(features, labels, expected, lambd)
        assert fit.lambd == lambd
        assert fit.objective == pytest.approx(objective(features, labels, fit.weight, lambd), rel=1e-12)
        assert fit.objective == pytest.approx(best, rel=1e-8, abs=0)
        assert (fit.weight - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_weights_of_two_classes_are_each_others_negative():
    features, labels = clouds(90, 8, 2)
    (fit,) = fit_logistic(features, labels, (0.1,))
    torch.testing.assert_close(fit.weight[0], -fit.weight[1], rtol=0, atol=1e-9)
    # Softmax of two opposite scores is the logistic of their difference: half the penalty of a single vector.
    single = LogisticRegression(C=2 / 0.1, fit_intercept=False, tol=1e-12, max_iter=5000)
    single.fit(features.double().numpy(), labels.numpy())
    difference = (fit.weight[1] - fit.weight[0]).numpy()
    np.testing.assert_allclose(difference, single.coef_[0], rtol=0, atol=1e-4 * np.abs(single.coef_).max())


def test_the_gap_bounds_what_is_missing():
    features, labels = clouds(400, 20, 10, 1.0)
    exact = fit_logistic(features, labels, LAMBDAS, tolerance=1e-12)
    for tolerance in (1e-2, 1e-5, 1e-8):
        for rough, best in zip(fit_logistic(features, labels, LAMBDAS, tolerance=tolerance), exact, strict=True):
            assert rough.gap <= tolerance
            assert -1e-12 <= rough.objective / best.objective - 1 <= rough.gap
    (stopped,) = fit_logistic(features, labels, (0.0025,), most_evaluations=5)
    assert stopped.gap > logistic.TOLERANCE
    assert 0 < stopped.objective / exact[0].objective - 1 <= stopped.gap


def test_a_solution_depends_neither_on_its_path_nor_on_the_order_of_the_samples():
    features, labels = clouds(500, 16, 10)
    alone = fit_logistic(features, labels, (0.025,))[0]
    along = fit_logistic(features, labels, (0.0025, 0.025, 0.5, 0.1, 0.025))
    assert [fit.lambd for fit in along] == [0.0025, 0.025, 0.5, 0.1, 0.025]
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    shuffled = fit_logistic(features[order], labels[order], (0.025,))[0]
    for other in (along[1], along[4], shuffled):
        torch.testing.assert_close(other.weight, alone.weight, rtol=0, atol=1e-4 * float(alone.weight.abs().max()))


def test_most_of_the_work_is_done_in_float32_and_the_path_helps():
    features, labels = clouds(2000, 48, 50, 1.0)
    path = (0.5, 0.075, 0.025, 0.0025)
    fits = fit_logistic(features, labels, path)
    assert sum(fit.evaluations[1] for fit in fits) <= 8
    alone = [fit_logistic(features, labels, (lambd,))[0] for lambd in path]
    for later, fresh in zip(fits[2:], alone[2:], strict=True):
        assert sum(later.evaluations) < 0.9 * sum(fresh.evaluations)


def test_rows_are_prepared_one_by_one():
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    prepared = centre_rows(features)
    for row, expected in zip(prepared, features, strict=True):
        expected = expected - expected.mean()
        torch.testing.assert_close(row, expected / expected.norm())
    torch.testing.assert_close(centre_rows(features[2:3]), prepared[2:3], rtol=0, atol=0)
    assert torch.equal(centre_rows(torch.full((1, 4), 3.0)), torch.zeros(1, 4))


def test_scores_of_constant_pictures_are_finite():
    """A blank picture has no direction: it is 0 after the preparation and teaches nothing."""
    features, labels = clouds(60, 8, 3)
    features[0] = 0
    (fit,) = fit_logistic(features, labels, (0.1,))
    assert torch.equal(logits(features[:1], fit.weight), torch.zeros(1, 3, dtype=torch.float64))


def test_a_class_without_samples_only_loses():
    features, labels = clouds(60, 8, 3)
    (fit,) = fit_logistic(features, labels, (0.1,), num_classes=5)
    assert fit.weight.shape == (5, 8)
    assert not bool((logits(features, fit.weight).argmax(dim=1) > 2).any())


def test_products_ignore_a_global_wish_for_less_precision():
    features, labels = clouds(300, 16, 10)
    plain = fit_logistic(features, labels, (0.025,))[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            shortened = fit_logistic(features, labels, (0.025,))[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(plain.weight, shortened.weight)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"labels": torch.zeros(10, dtype=torch.int64)}, DataError, "at least 2 classes, got 1"),
        ({"labels": torch.tensor([-1] + [0, 1] * 4 + [0])}, DataError, "without a label"),
        ({"features": torch.full((10, 4), math.nan)}, ShapeError, "non-finite"),
        ({"lambdas": (0.1, 0.0)}, DataError, r"lambda: got \[0.1, 0.0\], expected numbers above 0"),
        ({"lambdas": ()}, DataError, "expected numbers above 0"),
        ({"lambdas": (math.inf,)}, DataError, "expected numbers above 0"),
    ],
)
def test_what_can_not_work_is_a_sentence(change, error, sentence):
    given = {"features": torch.randn(10, 4), "labels": torch.arange(10) % 2, "lambdas": (0.1,)} | change
    with pytest.raises(error, match=sentence):
        fit_logistic(**given)


def test_labels_of_another_length_are_a_sentence():
    with pytest.raises(ShapeError, match="one label per row"):
        logistic._check(torch.randn(10, 4), torch.zeros(9, dtype=torch.int64), (0.1,))


@pytest.mark.parametrize(("rows", "width"), [(60, 12), (24, 40)])
def test_the_elastic_net_is_scikit_learns(rows: int, width: int) -> None:
    torch.manual_seed(0)
    labels = torch.arange(rows) % 3
    features = centre_rows(torch.randn(3, width)[labels] + torch.randn(rows, width))
    lambdas = (0.1, 0.5)
    for lambd, fit in zip(lambdas, fit_elastic_net(features, labels, lambdas, tolerance=1e-10), strict=True):
        model = LogisticRegression(
            C=0.5 / lambd, l1_ratio=0.5, solver="saga", fit_intercept=False, tol=1e-10, max_iter=100_000, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.set_params(penalty="elasticnet").fit(features.double().numpy(), labels.numpy())
        expected = torch.from_numpy(model.coef_)
        assert fit.gap <= 1e-10
        assert (fit.weight - expected).abs().max() < 1e-4 * expected.abs().max()
        assert torch.equal(fit.weight == 0, expected.abs() < 1e-9)
        assert bool((fit.weight == 0).any())
        scores = logits(features, fit.weight)
        value = torch.nn.functional.cross_entropy(scores, labels)
        value += lambd / rows * (fit.weight.abs().sum() + fit.weight.square().sum() / 2)
        assert fit.objective == pytest.approx(float(value), rel=1e-10)


def test_an_elastic_net_that_is_cut_short_says_so() -> None:
    labels = torch.arange(30) % 3
    features = torch.randn(30, 8)
    (fit,) = fit_elastic_net(features, labels, (1e-4,), most_evaluations=30)
    assert fit.gap > 1e-9

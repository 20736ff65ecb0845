"""Low-shot logistic regression equals the recorded optimum of MSN's evaluation.

Features before and after the row-wise preparation, labels, `lambdas`; for every lambda j the coefficients [D, C] of the
original solver at its own tolerance (not compared: up to 2 % off), of the same at 1e-12 and of scikit-learn, with the
objective and the accuracies (train, test) of the three.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.evaluation.low_shot.logistic import LogisticFit, centre_rows, fit_logistic, logits
from parity.discovery import load_arrays, parity_files

FILES = parity_files("msn_logistic", "")
TIGHT, SKLEARN = 1, 2
"""Places of the exact solutions in the recorded triples."""


@pytest.mark.parametrize("path", FILES)
def test_rows_are_prepared_alike(path: Path) -> None:
    arrays = load_arrays(path)
    for split in ("train", "test"):
        prepared = centre_rows(torch.from_numpy(arrays[f"{split}_features"]))
        assert prepared.dtype == torch.float32
        np.testing.assert_allclose(prepared.numpy(), arrays[f"{split}_preprocessed"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", FILES)
def test_the_optimum_of_recorded_features(path: Path) -> None:
    arrays = load_arrays(path)
    for j, fit in enumerate(fits_of(arrays, torch.from_numpy(arrays["train_preprocessed"]))):
        for solver, place in (("tight", TIGHT), ("sklearn", SKLEARN)):
            expected = arrays[f"lam{j}.coef_{solver}"].T
            np.testing.assert_allclose(fit.weight.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            assert fit.objective == pytest.approx(arrays[f"lam{j}.objective"][place], rel=1e-8, abs=0)
        for split, columns in (("train", (2, 4)), ("test", (3, 5))):
            right = accuracy(fit, torch.from_numpy(arrays[f"{split}_preprocessed"]), arrays[f"{split}_labels"])
            for column in columns:
                assert right == pytest.approx(arrays[f"lam{j}.accuracy"][column], abs=1e-12)


@pytest.mark.parametrize("path", FILES)
def test_the_objective_from_raw_features(path: Path) -> None:
    """float32 rounding in the preparation moves the objective by up to 3e-8."""
    arrays = load_arrays(path)
    for j, fit in enumerate(fits_of(arrays, centre_rows(torch.from_numpy(arrays["train_features"])))):
        for place in (TIGHT, SKLEARN):
            assert fit.objective == pytest.approx(arrays[f"lam{j}.objective"][place], rel=0, abs=1e-7)


def fits_of(arrays: dict[str, np.ndarray], features: torch.Tensor) -> list[LogisticFit]:
    return fit_logistic(features, torch.from_numpy(arrays["train_labels"]), arrays["lambdas"].tolist())


def accuracy(fit: LogisticFit, features: torch.Tensor, labels: np.ndarray) -> float:
    return float((logits(features, fit.weight).argmax(dim=1).numpy() == labels).mean())

"""Weighted k-NN and cluster agreement equal the recorded outputs of iBOT's evaluation.

`knn*.npz`: features before and after L2 normalisation, and for every k and T the accuracies in % with 1000 columns in
the vote, those with as many columns as classes, and for each query whether it was right (top-1, top-5).
`clustering*.npz`: labels and clusters with NMI, ARI, FMI and the accuracy under the best assignment.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.evaluation.knn.votes import nearest, weighted_knn
from halfseen.evaluation.metrics import cluster_scores
from parity.discovery import load_arrays, parity_files

REFERENCE_COLUMNS = 1000


@pytest.mark.parametrize("given", ["raw", "features"])
@pytest.mark.parametrize("path", parity_files("knn_linear", "knn"))
def test_weighted_knn(path: Path, given: str) -> None:
    arrays = load_arrays(path)
    tensors = {name: torch.from_numpy(arrays[name]) for name in arrays if name.startswith(("train_", "test_"))}
    num_classes = int(arrays["num_classes"])
    settings = {"k": arrays["ks"].tolist(), "temperature": arrays["temps"].tolist()}
    splits = tensors[f"train_{given}"], tensors["train_labels"], tensors[f"test_{given}"], tensors["test_labels"]
    for score in weighted_knn(*splits, **settings, num_classes=num_classes):
        key = f"k{score.k}_T{score.temperature}"
        hits = torch.stack([score.rank < 1, score.rank < 5], dim=1).numpy()
        assert np.array_equal(hits, arrays[f"hits_{key}"]), key
        exact = [score.top(1), score.top(5)]
        assert exact == pytest.approx(arrays[f"acc_{key}_numclasses{num_classes}"].tolist(), abs=1e-9), key
    neighbour_labels = splits[1][nearest(splits[0], splits[2], max(settings["k"])).ids]
    for score in weighted_knn(*splits, **settings, num_classes=REFERENCE_COLUMNS):
        top1, top5 = arrays[f"acc_k{score.k}_T{score.temperature}"].tolist()
        assert score.top(1) == pytest.approx(top1, abs=1e-9)
        # With fewer voted classes the recorded top-5 is whatever an unstable sort left among zeros.
        if fewest_classes(neighbour_labels[:, : score.k]) >= 5:
            assert score.top(5) == pytest.approx(top5, abs=1e-9)


def fewest_classes(labels: torch.Tensor) -> int:
    """The smallest number of classes among the neighbours of a query; labels int64 [Q, k]."""
    return min(len(set(row)) for row in labels.tolist())


@pytest.mark.parametrize("path", parity_files("knn_linear", "clustering"))
def test_cluster_agreement(path: Path) -> None:
    arrays = load_arrays(path)
    scores = cluster_scores(arrays["labels"], arrays["pred"])
    expected = [float(arrays[name]) for name in ("nmi", "ari", "fmi", "acc")]
    assert list(scores) == pytest.approx(expected, abs=1e-9)
    many = cluster_scores(arrays["labels"], arrays["pred_many"])
    assert list(many[:3]) == pytest.approx(arrays["many_nmi_ari_fmi"].tolist(), abs=1e-9)

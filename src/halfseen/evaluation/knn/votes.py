"""Weighted k-nearest-neighbour classification of frozen features (the protocol of DINO and iBOT).

For a query f and training features g_i, all of length 1: c_i = <f, g_i>; the k most similar vote for their class with
exp(c_i / T); classes are ranked by the sum of their votes, ties going to the lower class index. Similarities are
float32 and computed block by block with a running top-k, so neither the similarity matrix nor a copy of the training
features is ever held. Neighbours are searched once, for the largest k. Nearly all time goes into the matrix product
(`python -m benchmarks.knn`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from halfseen.errors import DataError, ShapeError

QUERY_CHUNK = 1024
TRAIN_CHUNK = 16384
"""Queries and training rows of a block of similarities, 67 MB."""

CHUNKS_AT_ONCE = 8
"""Chunks of queries that meet each block of training rows, which is scaled to length 1 once for all of them."""

GROUP = 16
"""Columns of a block whose maximum is compared first."""


class Neighbours(NamedTuple):
    """The most similar training samples of each query.

    Attributes:
        similarity: float32 [Q, k], cosine, falling along a row.
        ids: int64 [Q, k], rows of the training features.
    """

    similarity: Float[Tensor, "Q k"]
    ids: Int[Tensor, "Q k"]


class KnnScore(NamedTuple):
    """k-NN classification at one (k, T).

    Attributes:
        k: number of voting neighbours.
        temperature: T of the votes.
        predictions: int64 [Q], the winning class.
        rank: int64 [Q], how many classes stand before the true one; 0 = right, below 5 = among the first five.
    """

    k: int
    temperature: float
    predictions: Int[Tensor, " Q"]
    rank: Int[Tensor, " Q"]

    def top(self, n: int) -> float:
        """Share of queries whose true class is among the first `n`, in percent."""
        return 100.0 * float((self.rank < n).double().mean())


def weighted_knn(
    train_features: Float[Tensor, "n D"],
    train_labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "Q D"] | None,
    test_labels: Int[Tensor, " Q"] | None,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: Sequence[float] = (0.07,),
    num_classes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[KnnScore]:
    """Classify queries by their nearest labelled training samples, for every pair of `k` and `temperature`.

    Args:
        train_features: any length; they are L2-normalised here.
        train_labels: classes from 0; -1 = unlabelled, which neither votes nor counts.
        test_features: queries; None = leave one out: every training sample is classified by all the others.
        test_labels: -1 = unlabelled, left out.
        num_classes: columns of the vote; None = largest label + 1. It only decides between classes without votes.
        on_progress: called with (queries done, all queries).
    Returns:
        One score per pair, `k` outermost, for the labelled queries in their order.
    Raises:
        DataError: fewer than two classes, no labels, or fewer training samples than the largest k.
        ShapeError: features and labels that don't go together, or non-finite features.
    Source: DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832.
    """
    train_features, train_labels = _labelled(train_features, train_labels, "training")
    leave_one_out = test_features is None
    if test_features is None or test_labels is None:
        test_features, test_labels = train_features, train_labels
    else:
        test_features, test_labels = _labelled(test_features, test_labels, "test")
    check_vote(train_labels, k, temperature, leave_one_out)
    _check_features(train_features, test_features)

    largest = int(torch.maximum(train_labels.max(), test_labels.max()))
    num_classes = max(num_classes or 0, largest + 1)
    votes = _Votes(sorted(set(k)), list(temperature), num_classes)
    for start, neighbours in _nearest_chunks(train_features, test_features, max(k), leave_one_out):
        stop = start + len(neighbours.ids)
        votes.add(neighbours.similarity, train_labels[neighbours.ids], test_labels[start:stop])
        if on_progress is not None:
            on_progress(stop, len(test_features))
    return [votes.score(size, temp) for size in k for temp in temperature]


def nearest(
    train_features: Float[Tensor, "n D"],
    test_features: Float[Tensor, "Q D"] | None,
    k: int,
    *,
    query_chunk: int = QUERY_CHUNK,
    train_chunk: int = TRAIN_CHUNK,
) -> Neighbours:
    """The `k` training samples with the highest cosine similarity to each query.

    Args:
        test_features: None = the training samples themselves, none being its own neighbour.
        query_chunk, train_chunk: rows of a block of similarities; they bound memory. Of samples that are equally
            similar it may depend on them which one is the k-th.
    """
    leave_one_out = test_features is None
    queries = train_features if test_features is None else test_features
    chunks = _nearest_chunks(train_features, queries, k, leave_one_out, query_chunk, train_chunk)
    found = [neighbours for _, neighbours in chunks]
    return Neighbours(torch.cat([each.similarity for each in found]), torch.cat([each.ids for each in found]))


def _nearest_chunks(
    train: Tensor,
    queries: Tensor,
    k: int,
    leave_one_out: bool,
    query_chunk: int = QUERY_CHUNK,
    train_chunk: int = TRAIN_CHUNK,
) -> Iterator[tuple[int, Neighbours]]:
    """Neighbours of `query_chunk` queries at a time, with the row of the first."""
    rows_at_once = query_chunk * CHUNKS_AT_ONCE
    # One room for all blocks: fresh pages for each cost an eighth of the time of its matrix product (measured).
    room = torch.empty(min(query_chunk, len(queries)) * min(train_chunk, len(train)), device=train.device)
    for start in range(0, len(queries), rows_at_once):
        # Only here and not around `yield`: what the caller does with a chunk is its own affair.
        with torch.inference_mode(), full_float32(train.device.type):
            several = F.normalize(queries[start : start + rows_at_once].float(), dim=1)
            chunks = torch.split(several, query_chunk)
            found = [_none_yet(chunk) for chunk in chunks]
            for first in range(0, len(train), train_chunk):
                columns = F.normalize(train[first : first + train_chunk].float(), dim=1).T  # [D, n]
                for number, chunk in enumerate(chunks):
                    Q, n = len(chunk), columns.shape[1]
                    block = torch.mm(chunk, columns, out=room[: Q * n].view(Q, n))
                    if leave_one_out:
                        _hide_own(block, start + number * query_chunk - first)
                    found[number] = _merge(found[number], block, first, k)
            found = [_sorted(best) for best in found]
        for number, best in enumerate(found):
            yield start + number * query_chunk, best


def _none_yet(chunk: Tensor) -> Neighbours:
    return Neighbours(chunk.new_empty(len(chunk), 0), chunk.new_empty(len(chunk), 0, dtype=torch.int64))


def _hide_own(block: Tensor, shift: int) -> None:
    """No sample is its own neighbour: that of row i is in column i + shift."""
    rows = torch.arange(len(block), device=block.device)
    columns = rows + shift
    own = (columns >= 0) & (columns < block.shape[1])
    block[rows[own], columns[own]] = -torch.inf


def _merge(best: Neighbours, block: Tensor, first: int, k: int) -> Neighbours:
    """The best k, in any order, of what was found so far and of a new block whose columns are training rows from first.

    Once k neighbours are known, few columns of a block beat the least of them: first the maxima of groups of columns
    are compared, then the columns of groups whose maximum does. A full top-k of every block would cost more than the
    matrix product (measured: 16,384 columns, k = 200, D = 384).
    """
    Q, n = block.shape
    if best.ids.shape[1] < k or n % GROUP:
        return _top_of_block(best, block, first, k)
    least = best.similarity.amin(dim=1, keepdim=True)
    num_groups = n // GROUP
    grouped = block.view(Q, GROUP, num_groups)  # group j = columns j, j + num_groups, ...
    row, group = (grouped.amax(dim=1) > least).nonzero(as_tuple=True)
    if 4 * len(row) > Q * num_groups:
        return _top_of_block(best, block, first, k)
    members = grouped[row, :, group]  # [groups that were found, GROUP]
    place, member = (members > least[row]).nonzero(as_tuple=True)
    rows = row[place]  # ascending
    counts = torch.bincount(rows, minlength=Q)
    widest = int(counts.max())
    if not widest:
        return best
    column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    similarity = block.new_full((Q, widest), -torch.inf)
    similarity[rows, column] = members[place, member]
    ids = rows.new_zeros(Q, widest)
    ids[rows, column] = first + member * num_groups + group[place]
    return _top(best, similarity, ids, k)


def _top_of_block(best: Neighbours, block: Tensor, first: int, k: int) -> Neighbours:
    values, columns = block.topk(min(k, block.shape[1]), dim=1, sorted=False)
    return _top(best, values, columns + first, k)


def _top(best: Neighbours, similarity: Tensor, ids: Tensor, k: int) -> Neighbours:
    similarity = torch.cat([best.similarity, similarity], dim=1)
    ids = torch.cat([best.ids, ids], dim=1)
    similarity, order = similarity.topk(min(k, ids.shape[1]), dim=1, sorted=False)
    return Neighbours(similarity, ids.gather(1, order))


def _sorted(found: Neighbours) -> Neighbours:
    similarity, order = found.similarity.sort(dim=1, descending=True)
    return Neighbours(similarity, found.ids.gather(1, order))


class _Votes:
    """Adds up votes chunk by chunk; keeps predictions and ranks."""

    def __init__(self, sizes: list[int], temperatures: list[float], num_classes: int) -> None:
        self.sizes, self.temperatures, self.num_classes = sizes, temperatures, num_classes
        self.predictions: dict[tuple[int, float], list[Tensor]] = {}
        self.ranks: dict[tuple[int, float], list[Tensor]] = {}

    def add(self, similarity: Tensor, neighbour_labels: Tensor, labels: Tensor) -> None:
        """`similarity`, `neighbour_labels`: [Q, k], nearest first; `labels`: [Q]."""
        for temperature in self.temperatures:
            # Relative to the nearest: exp(c/T) itself overflows for small T, the ranking is the same.
            weight = ((similarity - similarity[:, :1]).double() / temperature).exp()
            votes = weight.new_zeros(len(labels), self.num_classes)
            done = 0
            for size in self.sizes:
                votes.scatter_add_(1, neighbour_labels[:, done:size], weight[:, done:size])
                done = size
                key = size, temperature
                self.predictions.setdefault(key, []).append(votes.argmax(dim=1).cpu())
                self.ranks.setdefault(key, []).append(rank_of_class(votes, labels).cpu())

    def score(self, size: int, temperature: float) -> KnnScore:
        key = size, temperature
        return KnnScore(size, temperature, torch.cat(self.predictions[key]), torch.cat(self.ranks[key]))


def rank_of_class(votes: Tensor, labels: Tensor) -> Tensor:
    """Place of the true class in a stable descending sort of the votes, without sorting."""
    own = votes.gather(1, labels[:, None])
    lower_index = torch.arange(votes.shape[1], device=votes.device) < labels[:, None]
    return ((votes > own) | ((votes == own) & lower_index)).sum(dim=1)


def check_vote(
    labels: Int[Tensor, " n"], k: Sequence[int], temperature: Sequence[float], leave_one_out: bool = False
) -> None:
    """Whether training samples with these labels (-1 = none) can hold such a vote: to be asked before any hard work.

    Raises:
        DataError: no labels, fewer than two classes, a k below 1 or above the number of voters, a T of 0 or less.
    """
    labelled = labels[labels >= 0]
    if not len(labelled):
        raise DataError(_no_labels(len(labels), "training"))
    num_classes = int((torch.bincount(labelled) > 0).sum())
    if num_classes < 2:
        raise DataError(f"k-NN needs at least 2 classes among the labelled training images, got {num_classes}.")
    if not k or min(k) < 1 or not temperature or min(temperature) <= 0:
        raise DataError(f"k-NN got k={list(k)}, temperature={list(temperature)}; every k must be >= 1, every T > 0.")
    available = len(labelled) - leave_one_out
    if max(k) > available:
        raise DataError(
            f"k={max(k)} was given, but only {available} labelled training images can vote. Choose a smaller k."
        )


def _no_labels(n: int, split: str) -> str:
    return (
        f"k-NN needs labels, but none of the {n} {split} images has one. Put images into one folder per class, or "
        "give a manifest with a column 'label'."
    )


def _labelled(features: Tensor, labels: Tensor, split: str) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ShapeError(
            f"k-NN got {split} features {tuple(features.shape)} and labels {tuple(labels.shape)}; "
            "give [n, D] features and one label per row."
        )
    labelled = labels >= 0
    if not bool(labelled.any()):
        raise DataError(_no_labels(len(labels), split))
    if bool(labelled.all()):
        return features, labels
    return features[labelled], labels[labelled]


def _check_features(train: Tensor, test: Tensor) -> None:
    if test.shape[1] != train.shape[1]:
        raise ShapeError(
            f"k-NN got training features of width {train.shape[1]} and test features of width {test.shape[1]}; "
            "compute both with the same encoder and feature choice."
        )
    for split, features in (("training", train), ("test", test)):
        # The sum of a row is finite only if the row is (up to overflow): no [n, D] bool array.
        if not bool(features.float().sum(dim=1).isfinite().all()):
            raise ShapeError(
                f"k-NN got non-finite {split} features: the encoder's weights are broken (NaN or infinity)."
            )


@contextmanager
def full_float32(device: str) -> Iterator[None]:
    """Similarities in true float32: shortened mantissas (TF32, bf16 passes, autocast) change who the neighbours are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)

"""Weighted k-NN: equal to the formula written out, whatever the chunks, and strict about what it is given."""

import math

import pytest
import torch

from halfseen.errors import DataError, ShapeError
from halfseen.evaluation.knn import votes
from halfseen.evaluation.knn.votes import nearest, weighted_knn


def clusters(
    n: int, generator: torch.Generator, num_classes: int = 6, width: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds whose centres are the same for every call, so that splits belong together."""
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(num_classes, (n,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(n, width, generator=generator), labels


def by_the_formula(train, train_labels, query, k, temperature, num_classes):
    """V(y) = sum of exp(c_i / T) over the k nearest of class y, one query at a time, in float64."""
    unit = [row.double() / row.double().norm() for row in train]
    query = query.double() / query.double().norm()
    similarity = torch.stack([row @ query for row in unit])
    order = sorted(range(len(unit)), key=lambda i: -similarity[i].item())[:k]
    votes = [0.0] * num_classes
    for i in order:
        votes[int(train_labels[i])] += math.exp(similarity[i].item() / temperature)
    return sorted(range(num_classes), key=lambda y: (-votes[y], y))


def test_equals_the_formula_written_out(generator):
    train, train_labels = clusters(120, generator)
    test, test_labels = clusters(30, generator)
    scores = weighted_knn(train, train_labels, test, test_labels, k=(1, 7, 40), temperature=(0.07, 1.0))
    assert [(score.k, score.temperature) for score in scores] == [
        (k, temperature) for k in (1, 7, 40) for temperature in (0.07, 1.0)
    ]
    for score in scores:
        for row, label in enumerate(test_labels.tolist()):
            ranking = by_the_formula(train, train_labels, test[row], score.k, score.temperature, 6)
            assert score.predictions[row] == ranking[0]
            assert score.rank[row] == ranking.index(label)
        assert score.top(6) == 100.0
        assert score.top(1) == pytest.approx(100 * (score.predictions == test_labels).double().mean().item())


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize(("query_chunk", "train_chunk"), [(7, 64), (1000, 128), (32, 1024), (33, 77)])
def test_chunks_do_not_change_the_neighbours(generator, k, query_chunk, train_chunk):
    train, test = torch.randn(1500, 16, generator=generator), torch.randn(50, 16, generator=generator)
    cosine = torch.nn.functional.normalize(test) @ torch.nn.functional.normalize(train).T
    expected = cosine.topk(k, dim=1)
    found = nearest(train, test, k, query_chunk=query_chunk, train_chunk=train_chunk)
    assert torch.equal(found.ids, expected.indices)
    torch.testing.assert_close(found.similarity, expected.values, rtol=0, atol=1e-6)


def test_neighbours_sorted_by_distance_in_the_training_set_are_all_found(generator):
    """The worst order for the search: every block holds better neighbours than all blocks before."""
    query = torch.randn(1, 16, generator=generator)
    noise = torch.randn(2048, 16, generator=generator)
    train = torch.linspace(0, 3, 2048)[:, None] * query + noise
    cosine = torch.nn.functional.cosine_similarity(train, query)
    found = nearest(train, query, 50, train_chunk=256)
    assert torch.equal(found.ids[0], cosine.topk(50).indices)


def test_leave_one_out_never_votes_for_itself(generator):
    features, labels = clusters(90, generator)
    alone = weighted_knn(features, labels, None, None, k=(5,))[0]
    for row in (0, 44, 89):
        others = torch.arange(90) != row
        single = weighted_knn(features[others], labels[others], features[row : row + 1], labels[row : row + 1], k=(5,))
        assert alone.predictions[row] == single[0].predictions[0]
    assert alone.top(1) < 100.0
    assert not (nearest(features, None, 3).ids == torch.arange(90)[:, None]).any()


def test_leave_one_out_across_chunks(generator):
    features, labels = clusters(300, generator)
    whole = weighted_knn(features, labels, None, None, k=(10,))[0]
    ids = nearest(features, None, 10, query_chunk=64, train_chunk=128).ids
    assert torch.equal(ids, nearest(features, None, 10).ids)
    assert len(whole.rank) == 300


def test_unlabelled_samples_neither_vote_nor_count(generator):
    train, train_labels = clusters(80, generator)
    test, test_labels = clusters(20, generator)
    plain = weighted_knn(train, train_labels, test, test_labels, k=(9,))[0]
    decoys = torch.cat([train, test])  # exact copies of the queries would win every vote
    decoy_labels = torch.cat([train_labels, torch.full((20,), -1)])
    queries = torch.cat([test[:3], test, test[:5]])
    query_labels = torch.cat([torch.full((3,), -1), test_labels, torch.full((5,), -1)])
    mixed = weighted_knn(decoys, decoy_labels, queries, query_labels, k=(9,))[0]
    assert torch.equal(mixed.predictions, plain.predictions)
    assert torch.equal(mixed.rank, plain.rank)


def test_ties_go_to_the_lower_class():
    train = torch.eye(4)
    labels = torch.tensor([3, 1, 2, 5])
    query = torch.ones(1, 4)  # equally far from all: four classes with one equal vote each
    for true_class, rank in ((1, 0), (2, 1), (3, 2), (5, 3), (0, 4), (4, 5)):
        score = weighted_knn(train, labels, query, torch.tensor([true_class]), k=(4,))[0]
        assert score.predictions.item() == 1
        assert score.rank.item() == rank


def test_length_of_features_does_not_matter(generator):
    train, train_labels = clusters(80, generator)
    test, test_labels = clusters(20, generator)
    scale = torch.rand(80, 1, generator=generator) * 100 + 0.01
    assert torch.equal(
        weighted_knn(train * scale, train_labels, test * 1e3, test_labels, k=(5,))[0].rank,
        weighted_knn(train, train_labels, test, test_labels, k=(5,))[0].rank,
    )


def test_tiny_temperature_does_not_overflow(generator):
    """exp(1/0.001) is infinite in float32 and float64; the nearest neighbour must simply decide."""
    train, train_labels = clusters(80, generator)
    nearest_label = train_labels[nearest(train, train[:9] + 0.01, 1).ids[:, 0]]
    score = weighted_knn(train, train_labels, train[:9] + 0.01, train_labels[:9], k=(20,), temperature=(0.001,))[0]
    assert torch.equal(score.predictions, nearest_label)


def test_progress_reaches_the_end(generator):
    features, labels = clusters(votes.QUERY_CHUNK + 20, generator)
    seen: list[tuple[int, int]] = []
    weighted_knn(features, labels, None, None, k=(1,), on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1024, 1044), (1044, 1044)]


def test_who_is_told_of_progress_computes_as_before(generator):
    """Neither without autograd nor in other precision than at its own wish, and the scores can be computed with."""
    features, labels = clusters(40, generator)
    seen: list[tuple[bool, bool, str]] = []

    def look(done: int, of: int) -> None:
        precision = torch.get_float32_matmul_precision()
        seen.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), precision))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            score = weighted_knn(features, labels, None, None, k=(3,), on_progress=look)[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [(False, True, "medium")]
    assert not score.rank.is_inference() and not score.predictions.is_inference()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"k": (20,)}, DataError, "k=20 was given, but only 9 labelled training images can vote"),
        ({"k": (0,)}, DataError, "every k must be >= 1"),
        ({"temperature": (0.0,)}, DataError, "every T > 0"),
        ({"train_labels": torch.zeros(10, dtype=torch.int64)}, DataError, "at least 2 classes"),
        ({"train_labels": torch.full((10,), -1)}, DataError, "none of the 10 training images"),
        ({"train_features": torch.full((10, 4), torch.nan)}, ShapeError, "non-finite training features"),
    ],
)
def test_what_can_not_work_is_a_sentence(generator, change, error, sentence):
    given = {
        "train_features": torch.randn(10, 4, generator=generator),
        "train_labels": torch.arange(10) % 2,
        "k": (1,),
        "temperature": (0.07,),
    }
    given.update(change)
    with pytest.raises(error, match=sentence):
        weighted_knn(given.pop("train_features"), given.pop("train_labels"), None, None, **given)


def test_widths_that_differ_are_a_sentence():
    with pytest.raises(ShapeError, match="width 4 and test features of width 5"):
        votes._check_features(torch.randn(3, 4), torch.randn(2, 5))


def test_similarities_ignore_a_global_wish_for_less_precision(generator):
    train, test = torch.randn(400, 64, generator=generator), torch.randn(50, 64, generator=generator)
    plain = nearest(train, test, 20)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            shortened = nearest(train, test, 20)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(plain.ids, shortened.ids)
    assert torch.equal(plain.similarity, shortened.similarity)

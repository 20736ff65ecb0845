"""The contrastive term against plain loops, and which patches it compares."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ConfigError
from halfseen.ops.contrastive import check_pairs, contrastive, select_pairs


def by_loops(positives: torch.Tensor, negatives: torch.Tensor, temperature: float, form: str) -> float:
    crops, images, k, _ = positives.shape
    total = 0.0
    for image in range(images):
        ours = [x / x.norm() for x in positives[:, image].flatten(0, 1).double()]
        others = [x / x.norm() for x in negatives[:, image].flatten(0, 1).double()]
        for t, first in enumerate(ours):
            unlike = sum(math.exp(float(first @ other) / temperature) for other in others)
            for j, second in enumerate(ours):
                if t != j:
                    alike = float(first @ second)
                    inside = alike if form == "reference" else math.exp(alike / temperature)
                    total += math.log(inside + unlike) - alike / temperature
    count = crops * k
    return total / (count * images) / (1 if form == "reference" else count - 1)


@pytest.mark.parametrize("form", ["reference", "infonce"])
@given(k=st.integers(1, 3), temperature=st.sampled_from([0.05, 0.2, 1.0]), seed=st.integers(0, 99))
def test_value_is_the_sum_over_all_ordered_pairs(form: str, k: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positives, negatives = (torch.randn(2, 3, k, 7, generator=generator).softmax(-1) for _ in range(2))
    ours = contrastive(positives, negatives, temperature, form)
    assert float(ours) == pytest.approx(by_loops(positives, negatives, temperature, form), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("form", ["reference", "infonce"])
def test_gradients_exist_and_stay_finite_at_low_temperatures(form: str, generator: torch.Generator) -> None:
    positives, negatives = (torch.randn(2, 2, 2, 5, generator=generator).mul(20).requires_grad_() for _ in range(2))
    loss = contrastive(positives.softmax(-1), negatives.softmax(-1), 0.005, form)
    loss.backward()
    for logits in (positives, negatives):
        assert logits.grad.isfinite().all()
    assert loss.isfinite()


def test_alike_positives_cost_less_than_alike_negatives() -> None:
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    good = contrastive(one.expand(2, 1, 2, 3), other.expand(2, 1, 2, 3), 0.2, "infonce")
    bad = contrastive(one.expand(2, 1, 2, 3), one.expand(2, 1, 2, 3), 0.2, "infonce")
    assert float(bad - good) > 1


def test_pairs_are_the_extremes_in_descending_order() -> None:
    pairs = select_pairs(torch.tensor([[0.3, 0.9, 0.1, 0.7, 0.2, 0.5]]), 2)
    assert pairs.positive.tolist() == [[1, 3]]
    assert pairs.negative.tolist() == [[4, 2]]


def test_positives_and_negatives_may_not_overlap() -> None:
    check_pairs(8, 16, "method.contrastive.k")
    with pytest.raises(ConfigError, match=r"method\.contrastive\.k: got 9, but .* of 16\. Write 1 to 8"):
        check_pairs(9, 16, "method.contrastive.k")

"""Linear probes on features: side by side equals alone, the choice never sees the test rows, faults are sentences."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.evaluation.linear.config import LINEAR_PROTOCOLS, LinearConfig, linear_protocol_settings
from halfseen.evaluation.linear.probes import (
    Probe,
    check_widths,
    held_out_rows,
    labelled_rows,
    learning_rate,
    linear_probe,
)
from halfseen.evaluation.linear.side_by_side import Candidate, LinearHeads, Optimizer, measure, ranks

QUICK = {"epochs": 8, "batch_size": 32, "lr": (0.01, 0.1)}


def quick(**changes) -> LinearConfig:
    return LinearConfig.model_validate(QUICK | changes)


def clusters(n: int, seed: int, spread: float = 1.0, classes: int = 3, width: int = 8):
    """Rows around one centre for each class."""
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, width, generator=generator), labels


def test_clusters_are_told_apart():
    score = linear_probe(*clusters(300, 1), *clusters(150, 2), quick())
    assert score.top(1) > 95
    assert score.top(1) == 100 * float((score.predictions == clusters(150, 2)[1]).double().mean())
    assert score.losses[-1] < score.losses[0]
    assert score.epoch == 8
    assert [each.lr for each in score.candidates] == [0.01, 0.1]
    assert score.chosen in score.candidates


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("sgd", lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=0.02)),
        ("adamw", lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.02)),
    ],
)
def test_side_by_side_equals_one_after_the_other(kind, reference):
    rates = (0.3, 0.01, 0.0001)
    heads = LinearHeads(3, 8, 3, generator=torch.Generator().manual_seed(4))
    optimizer = Optimizer(heads, [Candidate(lr, 0.02, kind) for lr in rates])
    alone = []
    for lr in rates:
        layer = nn.Linear(8, 3)
        layer.load_state_dict({"weight": heads.weight[0].detach().clone(), "bias": heads.bias[0].detach().clone()})
        alone.append((layer, reference(layer.parameters(), lr)))
    features, labels = clusters(64, 1)
    for step in range(6):
        losses = heads.backward(features, labels)
        optimizer.step(torch.tensor(rates))
        for number, (layer, own) in enumerate(alone):
            loss = F.cross_entropy(layer(features), labels)
            own.zero_grad()
            loss.backward()
            own.step()
            assert float(losses[number]) == pytest.approx(loss.item(), rel=1e-5), step
    for number, (layer, _) in enumerate(alone):
        torch.testing.assert_close(heads.weight[number], layer.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(heads.bias[number], layer.bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "batch-norm", "layer-norm", "unit-layer-norm"])
def test_gradients_are_those_of_cross_entropy(kind):
    heads = LinearHeads(2, 8, 3, kind=kind, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    features, labels = clusters(20, 3)
    shares = F.one_hot(labels, 3) * 0.8 + 0.2 / 3
    weights = torch.rand(2, 20, generator=torch.Generator().manual_seed(3)).round()
    for target, rows in ((labels, None), (shares, None), (labels, weights)):
        logits = heads(features)
        each = torch.stack([F.cross_entropy(own.T, target, reduction="none") for own in logits])
        expected = each.mean(dim=1) if rows is None else (each * rows).sum(dim=1) / rows.sum(dim=1)
        gradients = torch.autograd.grad(expected.sum(), list(heads.parameters()))
        found = heads.backward(features, target, rows)
        torch.testing.assert_close(found, expected.detach())
        for parameter, gradient in zip(heads.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
            parameter.grad = None


def test_a_clipped_gradient_is_clipped_for_each_model_alone():
    heads = LinearHeads(2, 8, 3, generator=torch.Generator().manual_seed(1))
    heads.weight.data[1] *= 100
    before = heads.weight.detach().clone(), heads.bias.detach().clone()
    optimizer = Optimizer(heads, [Candidate(1.0), Candidate(1.0)], momentum=0.0, clip_norm=0.5)
    heads.backward(*clusters(30, 1))
    optimizer.step(torch.ones(2))
    moved = [(now - then).flatten(1) for now, then in zip((heads.weight, heads.bias), before, strict=True)]
    norms = torch.cat(moved, dim=1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((2,), 0.5), rtol=1e-4, atol=0)


def test_a_diverged_model_is_wrong_everywhere_and_harms_nobody():
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[torch.nan] * 2, [torch.nan] * 2]])  # [M, C, B]
    assert ranks(logits, labels).tolist() == [[0, 0], [1, 1]]
    assert ranks(torch.zeros(1, 3, 2), labels).tolist() == [[0, 1]]
    with_wild = linear_probe(*clusters(90, 1), *clusters(30, 2), quick(lr=(0.1, 1e30)))
    alone = linear_probe(*clusters(90, 1), *clusters(30, 2), quick(lr=(0.1, 0.01)))
    assert with_wild.chosen.lr == 0.1
    assert with_wild.test_top1[0] == alone.test_top1[0]
    assert torch.equal(with_wild.weight, alone.weight) or alone.chosen.lr != 0.1
    assert torch.isfinite(with_wild.weight).all()


def test_the_grid_is_judged_on_held_out_rows_only():
    """Whatever the test rows are, weights, choice and held-out accuracies are bit-equal."""
    train = clusters(120, 1, spread=3.0)
    config = quick(lr=(0.0001, 0.01, 1.0))
    one = linear_probe(*train, *clusters(60, 2), config)
    rows, labels = clusters(45, 3, spread=9.0)
    other = linear_probe(*train, rows * 100 + 5, labels.flip(0), config)
    assert one.chosen == other.chosen
    assert one.held_out_top1 == other.held_out_top1
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_judges_never_see_the_held_out_rows():
    """Held-out rows with absurd labels spoil those that are reported, not their judges."""
    features, labels = clusters(300, 1, spread=0.5)
    config = quick(held_out=0.4, epochs=15)
    held = held_out_rows(labels, config, 0)
    assert held.sum() == 120
    assert torch.bincount(labels[held]).tolist() == [40, 40, 40]
    probe = Probe(8, 3, config, batch_size=300, steps_per_epoch=1, seed=0)
    wrong = torch.where(held, (labels + 1) % 3, labels)
    for _ in range(15):
        probe.train_step(features, wrong, held)
        probe.end_epoch(features, labels)
    found = measure(probe.heads, features[held], labels[held]).top(1)
    assert len(found) == 4
    assert found[2:].min() > 95
    clean = Probe(8, 3, config, batch_size=300, steps_per_epoch=1, seed=0)
    for _ in range(15):
        clean.train_step(features, labels, held)
    torch.testing.assert_close(clean.heads.weight[2:], probe.heads.weight[2:])
    assert not torch.allclose(clean.heads.weight[:2], probe.heads.weight[:2], atol=1e-3)


def test_choosing_on_the_test_rows_is_never_worse_and_told():
    train, test = clusters(60, 1, spread=6.0), clusters(60, 2, spread=6.0)
    rates = (0.0001, 0.01, 0.1, 1.0)
    honest = linear_probe(*train, *test, quick(lr=rates))
    greedy = linear_probe(*train, *test, quick(lr=rates, choose="test"))
    assert greedy.held_out_top1 is None
    assert greedy.top(1) >= honest.top(1)
    assert greedy.top(1) == greedy.best_test_top1
    assert greedy.epoch <= 8


def test_shuffled_training_labels_bring_it_to_chance():
    """Shuffled so that every class gets every label equally often: else three clear clusters get one label each."""
    features, labels = clusters(600, 1)
    shuffled = torch.arange(600) // 3 % 3
    assert torch.bincount(shuffled * 3 + labels).unique().tolist() in ([66, 67], [66, 67, 68])
    for kind in ("plain", "batch-norm", "unit-layer-norm"):
        score = linear_probe(features, shuffled, *clusters(600, 2), quick(head=kind))
        assert 20 < score.top(1) < 47


def test_it_is_a_function_of_the_seed():
    train, test = clusters(90, 1, spread=5.0), clusters(30, 2)
    one, same, other = (linear_probe(*train, *test, quick(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


def test_unlabelled_rows_are_left_out():
    (train, labels), test = clusters(90, 1), clusters(30, 2)
    gaps = torch.cat([labels, torch.full((20,), -1)])
    more = torch.cat([train, torch.full((20, 8), 1e6)])
    assert torch.equal(
        linear_probe(more, gaps, *test, quick()).weight, linear_probe(train, labels, *test, quick()).weight
    )


def test_the_batch_scales_the_rate():
    config = quick(batch_size=128, lr=(0.4,))
    for size, expected in ((128, 0.2), (64, 0.1)):
        probe = Probe(8, 3, config, batch_size=size, steps_per_epoch=2, seed=0)
        assert probe.rates().tolist() == pytest.approx([expected])
    unscaled = Probe(8, 3, quick(lr=(0.4,), reference_batch=None), batch_size=64, steps_per_epoch=2, seed=0)
    assert unscaled.rates().tolist() == pytest.approx([0.4])


def test_schedules_begin_and_end_as_their_protocols_say():
    ends = {"ibot-linear": (1.0, 0.00025), "msn-linear": (1.0, 0.0), "mae-linear": (0.0, 0.0)}
    for name, (first, last) in ends.items():
        config = LinearConfig.model_validate(linear_protocol_settings(name))
        assert learning_rate(config, 1.0, 0, 10) == pytest.approx(first)
        assert learning_rate(config, 1.0, config.epochs * 10 - 1, 10) == pytest.approx(last, abs=1e-4)
    kamim = LinearConfig.model_validate(linear_protocol_settings("kamim-linear"))
    assert learning_rate(kamim, 5e-3, 0, 10) == learning_rate(kamim, 5e-3, 1, 10) == 2.5e-6
    assert learning_rate(kamim, 5e-3, 101, 10) == pytest.approx(0.9755 * 5e-3, rel=1e-3)
    assert learning_rate(kamim, 5e-3, 1050, 10) == 2.5e-6


@pytest.mark.parametrize("name", LINEAR_PROTOCOLS)
def test_every_protocol_is_a_valid_setting(name):
    assert LinearConfig.model_validate(linear_protocol_settings(name)).protocol == name


def test_faults_are_sentences():
    rows, labels = clusters(30, 1)
    with pytest.raises(DataError, match="none of the 30 training images has one"):
        linear_probe(rows, labels * 0 - 1, rows, labels, quick())
    with pytest.raises(DataError, match="at least 2 classes"):
        linear_probe(rows, labels * 0, rows, labels, quick())
    with pytest.raises(DataError, match="single training image"):
        linear_probe(rows[:3], labels[:3], rows, labels, quick())
    with pytest.raises(ShapeError, match="nan or infinity"):
        linear_probe(rows / 0, labels, rows, labels, quick())
    with pytest.raises(ShapeError, match="don't go together"):
        labelled_rows(rows, labels[1:], "training")
    with pytest.raises(ShapeError, match="have 8 numbers each, test features 7"):
        check_widths(rows, rows[:, 1:])
    with pytest.raises(ConfigError, match="can't be augmented"):
        linear_probe(rows, labels, rows, labels, quick(augmentation="crop"))
    with pytest.raises(ConfigError, match="expected one of linear, ibot-linear"):
        linear_protocol_settings("ibot")
    for wrong, sentence in (
        ({"choose": "last"}, "takes the only classifier"),
        ({"optimizer": ("sgd", "adamw")}, "only sgd and lars"),
        ({"warmup_epochs": 2}, "has no warm-up"),
        ({"extra_epochs": 2}, "ends at 0"),
        ({"schedule": "warmup-cosine", "warmup_epochs": 9}, "of 8 epochs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            quick(**wrong)

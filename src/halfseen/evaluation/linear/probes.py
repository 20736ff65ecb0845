"""Linear probes: a grid of linear classifiers on frozen features, trained side by side in one pass.

`linear_probe` takes features that are computed already. `Probe` is what it and the protocols with augmented images
share: it is fed batches of features, step by step.

Which classifier is reported is decided by `LinearConfig.choose`. With "held-out" every candidate exists twice: one
sees all training rows but the held-out ones, on which its learning rate is judged; its twin sees all of them and is
what is reported. Both train in the same pass. Test rows are looked at once, after everything is decided. With "test",
the rule of some originals, the best epoch and rate are picked on the test rows themselves.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfseen.data.sampler import StepSampler
from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.evaluation.linear.config import LinearConfig
from halfseen.evaluation.linear.side_by_side import Candidate, LinearHeads, Measured, Optimizer, measure
from halfseen.evaluation.statements import no_labels
from halfseen.ops.randomness import numpy_generator, stream_seed
from halfseen.ops.schedules import rebased_cosine, unshifted_cosine

KAMIM_FLOOR = 2.5e-6
"""Where KAMIM's learning rate begins and ends."""


class LinearScore(NamedTuple):
    """The classifier that is reported, and what is known of all that were tried.

    Attributes:
        predictions: int64 [Q], classes of the test rows.
        rank: int64 [Q], how many classes stand before the true one; 0 = right.
        chosen: how the reported classifier was trained.
        epoch: passes over the data that it has seen.
        candidates: all that were tried.
        held_out_top1: accuracy of each on the held-out training rows in percent; None where none were held out.
        test_top1: accuracy of each on the test rows after the last epoch, in percent. Not used for the choice, except
            with `choose="test"`.
        best_test_top1: the best over candidates, and over epochs with `choose="test"`: an optimist's number.
        losses: of the reported classifier, mean of each epoch's training steps.
        weight, bias: float32 [C, D] and [C] of the reported classifier; what its head does before is not in them.
    """

    predictions: Int[Tensor, " Q"]
    rank: Int[Tensor, " Q"]
    chosen: Candidate
    epoch: int
    candidates: list[Candidate]
    held_out_top1: list[float] | None
    test_top1: list[float]
    best_test_top1: float
    losses: list[float]
    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]

    def top(self, n: int) -> float:
        """Share of test rows whose true class is among the first `n`, in percent."""
        return 100.0 * float((self.rank < n).double().mean())


def linear_probe(
    train_features: Float[Tensor, "n D"],
    train_labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "Q D"],
    test_labels: Int[Tensor, " Q"],
    config: LinearConfig | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> LinearScore:
    """Train the grid on features computed beforehand (no augmentation) and classify the test rows.

    Args:
        train_features, test_features: as the encoder gives them; nothing is scaled here.
        train_labels, test_labels: classes from 0; -1 = unlabelled, left out.
        config: None = the protocol "linear". `augmentation` must be "none", since there are no images here.
        num_classes: None = largest label + 1.
        seed: draws first weights, order and held-out rows.
        on_progress: called with (epochs done, all epochs).
    Raises:
        DataError: no labels, one class, or too few rows to hold any out.
        ConfigError: settings that ask for images, or a batch larger than the training set.
        ShapeError: features and labels that don't go together, or non-finite features.
    Source: DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832.
    """
    config = config or LinearConfig.model_validate({})
    if config.augmentation != "none":
        raise ConfigError(
            f"augmentation: got '{config.augmentation}', but features that are computed beforehand can't be augmented. "
            "Write augmentation=none, or give the encoder and its images to the protocol."
        )
    train_features, train_labels = labelled_rows(train_features, train_labels, "training")
    test_features, test_labels = labelled_rows(test_features, test_labels, "test")
    check_widths(train_features, test_features)
    check_labels(train_labels)
    largest = int(torch.maximum(train_labels.max(), test_labels.max()))
    held = held_out_rows(train_labels, config, seed)
    train_features, train_labels = train_features.to(device), train_labels.to(device)
    held_on_device = None if held is None else held.to(device)
    batch_size = min(config.batch_size, len(train_labels))
    sampler = StepSampler(len(train_labels), batch_size, stream_seed(seed, "linear"), drop_last=False)
    probe = Probe(
        train_features.shape[1],
        max(num_classes or 0, largest + 1),
        config,
        batch_size=batch_size,
        steps_per_epoch=sampler.steps_per_epoch,
        seed=seed,
        device=device,
    )
    for epoch in range(config.epochs + config.extra_epochs):
        first = epoch * sampler.steps_per_epoch
        for step in range(first, first + sampler.steps_per_epoch):
            rows = torch.from_numpy(sampler.indices(step)).to(device)
            probe.train_step(
                train_features[rows],
                train_labels[rows],
                None if held_on_device is None else held_on_device[rows],
            )
        probe.end_epoch(test_features, test_labels)
        if on_progress is not None:
            on_progress(epoch + 1, config.epochs + config.extra_epochs)
    held_out = None if held is None else (train_features[held_on_device], train_labels[held_on_device])
    return probe.finish(test_features, test_labels, held_out)


class Probe:
    """All candidates of a configuration on the features of one encoder (or of raw pixels).

    Attributes:
        heads: the classifiers: the candidates, and then their judges where rows are held out.
        losses: mean training loss of each of them, float32 [M] for every epoch.

    Args:
        width: D of the features.
        num_classes: C.
        batch_size: rows of a step, which scale the learning rate.
        steps_per_epoch: batches in one pass over the training rows.
        seed: draws the first weights.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        config: LinearConfig,
        *,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.rate_scale = 1.0 if config.reference_batch is None else batch_size / config.reference_batch
        self.candidates = config.candidates
        self.num_judges = len(self.candidates) if holds_out(config) else 0
        trained = self.candidates + self.candidates[: self.num_judges]  # those to report first, then their judges
        generator = torch.Generator().manual_seed(stream_seed(seed, "linear head"))
        self.heads = LinearHeads(
            len(trained), width, num_classes, kind=config.head, weight_std=config.weight_std, generator=generator
        ).to(device)
        self.optimizer = Optimizer(self.heads, trained, momentum=config.momentum, clip_norm=config.clip_norm)
        self.step = 0
        self._epoch_losses: list[Tensor] = []
        self.losses: list[Tensor] = []
        self._best: _Best | None = None

    def train_step(
        self,
        features: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"] | Float[Tensor, "B C"],
        held_out: Bool[Tensor, " B"] | None = None,
    ) -> None:
        """One update of all candidates.

        Args:
            labels: classes, or shares of the classes (MixUp).
            held_out: rows that the judges don't see.
        """
        weights = None
        if held_out is not None:
            weights = torch.ones(len(self.heads.weight), len(features), device=features.device)
            weights[-self.num_judges :] = (~held_out).float()
        self._epoch_losses.append(self.heads.backward(features, labels, weights))
        self.optimizer.step(self.rates())
        self.step += 1

    def end_epoch(self, test_features: Float[Tensor, "Q D"], test_labels: Int[Tensor, " Q"]) -> None:
        """Close a pass over the data; the test rows are looked at only where the protocol chooses by them."""
        self.losses.append(torch.stack(self._epoch_losses).mean(dim=0).cpu())
        self._epoch_losses = []
        if self.config.choose == "test":
            found = measure(self.heads, test_features, test_labels)
            top1 = found.top(1)
            model = int(top1.argmax())
            if self._best is None or float(top1[model]) >= self._best.top1:
                self._best = self._keep(model, found)

    def finish(
        self,
        test_features: Float[Tensor, "Q D"],
        test_labels: Int[Tensor, " Q"],
        held_out: tuple[Float[Tensor, "n D"], Int[Tensor, " n"]] | None = None,
    ) -> LinearScore:
        """Choose the classifier and measure it.

        Args:
            held_out: features (evaluation views) and labels of the training rows kept apart.
        """
        judged = None
        if held_out is not None:
            judged = measure(self.heads, *held_out).top(1)[-self.num_judges :]
        found = measure(self.heads, test_features, test_labels)
        test_top1 = found.top(1)[: len(self.candidates)]
        best = self._best
        if best is None:
            best = self._keep(0 if judged is None else int(judged.argmax()), found)
        return LinearScore(
            predictions=best.predictions,
            rank=best.rank,
            chosen=self.candidates[best.model],
            epoch=best.epoch,
            candidates=self.candidates,
            held_out_top1=None if judged is None else judged.tolist(),
            test_top1=test_top1.tolist(),
            best_test_top1=max(best.top1, float(test_top1.max())),
            losses=[float(losses[best.model]) for losses in self.losses],
            weight=best.weight,
            bias=best.bias,
        )

    def _keep(self, model: int, found: Measured) -> "_Best":
        return _Best(
            top1=float(found.top(1)[model]),
            model=model,
            epoch=len(self.losses),
            predictions=found.predictions[model],
            rank=found.rank[model],
            weight=self.heads.weight[model].detach().cpu().clone(),
            bias=self.heads.bias[model].detach().cpu().clone(),
        )

    def rates(self) -> Float[Tensor, " M"]:
        """The learning rate of every model at this step: float32 [M]."""
        peaks = [each.lr * self.rate_scale for each in self.candidates]
        rates = [learning_rate(self.config, peak, self.step, self.steps_per_epoch) for peak in peaks]
        return torch.tensor(rates + rates[: self.num_judges], device=self.heads.weight.device)


class _Best(NamedTuple):
    top1: float
    model: int
    epoch: int
    predictions: Tensor
    rank: Tensor
    weight: Tensor
    bias: Tensor


def learning_rate(config: LinearConfig, peak: float, step: int, steps_per_epoch: int) -> float:
    """The rate of update number `step` (from 0) of a classifier whose highest rate is `peak`."""
    total = config.epochs * steps_per_epoch
    match config.schedule:
        case "epoch-cosine":
            return rebased_cosine(step // steps_per_epoch, base=peak, total=config.epochs)
        case "step-cosine":
            return rebased_cosine(step, base=peak, total=total)
        case "warmup-cosine":
            return rebased_cosine(step / steps_per_epoch, base=peak, total=config.epochs, warmup=config.warmup_epochs)
        case "kamim":
            # The original sets its schedule after each update, so the first two run at the same rate.
            return unshifted_cosine(
                max(0, step - 1),
                base=peak,
                warmup_start=KAMIM_FLOOR,
                minimum=KAMIM_FLOOR,
                warmup=config.warmup_epochs * steps_per_epoch,
                total=total,
            )


def holds_out(config: LinearConfig) -> bool:
    """Whether training rows are kept apart: where there is something to choose, and not on the test rows."""
    return config.choose == "held-out" and len(config.candidates) > 1


def held_out_rows(labels: Int[Tensor, " n"], config: LinearConfig, seed: int) -> Bool[Tensor, " n"] | None:
    """Which training rows are kept apart: the same share of every class, at least one of two; None = there is no need.

    Raises:
        DataError: a row can be held out in no class.
    """
    if not holds_out(config):
        return None
    held = hold_out(labels, config.held_out, seed)
    if not held.any():
        raise DataError(
            "choose=held-out: every class has a single training image, so none can be kept apart to choose the "
            "learning rate. Give a single lr, or more images."
        )
    return held


def hold_out(labels: Int[Tensor, " n"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """The same share of the rows of every class, drawn by seed: at least one of a class that has two."""
    held = np.zeros(len(labels), dtype=bool)
    classes = labels.numpy()
    order = numpy_generator(seed, "held out").permutation(len(labels))
    for number in np.unique(classes):
        rows = order[classes[order] == number]
        most = round(share * len(rows)) if len(rows) > 1 else 0
        held[rows[: max(most, 1 if len(rows) > 1 else 0)]] = True
    return torch.from_numpy(held)


def labelled_rows(features: Tensor, labels: Tensor, split: str) -> tuple[Tensor, Tensor]:
    """The rows that have a label.

    Raises:
        ShapeError: not one label per row, or features that are no finite matrix.
        DataError: no row has a label.
    """
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels):
        raise ShapeError(
            f"{split} features {tuple(features.shape)} and labels {tuple(labels.shape)} don't go together; expected "
            "[n, D] and [n]."
        )
    kept = labels >= 0
    if not kept.any():
        raise no_labels(len(labels), split)
    features, labels = (features, labels) if kept.all() else (features[kept], labels[kept])
    if not torch.isfinite(features).all():
        raise ShapeError(f"{split} features hold nan or infinity, so this encoder is broken. Measure an earlier one.")
    return features, labels


def check_labels(labels: Int[Tensor, " n"]) -> None:
    """Whether there is something to tell apart among labelled training rows.

    Raises:
        DataError: one class only.
    """
    if int(labels.min()) == int(labels.max()):
        raise DataError("a classifier needs at least 2 classes among the labelled training images, but there is one.")


def check_widths(train: Tensor, test: Tensor) -> None:
    """Raises:
    ShapeError: features of different widths.
    """
    if train.shape[1] != test.shape[1]:
        raise ShapeError(
            f"training features have {train.shape[1]} numbers each, test features {test.shape[1]}. Compute both by the "
            "same encoder."
        )

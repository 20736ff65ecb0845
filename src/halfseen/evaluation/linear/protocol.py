"""Linear probing as the literature names it: a frozen encoder measured together with its baselines.

The encoder, the same network at random initialisation and raw pixels see the same images in the same order under the
same augmentation, and each has its learning rate chosen by the same rule. An encoder that is frozen gives the same
features of a test image in every epoch, so these are computed once; so are those of training images that are not
augmented.
"""

import contextlib
import importlib.metadata
import time
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional as F

from halfseen.backbones.base import Encoder
from halfseen.data.loader import Loader
from halfseen.data.policies import trivial_augment_and_erase
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import Source
from halfseen.evaluation.features import (
    RAW_PIXEL_SIDE,
    Extractor,
    FeatureSet,
    extract_features,
    feature_sentence,
)
from halfseen.evaluation.linear.config import LinearConfig, linear_protocol_settings
from halfseen.evaluation.linear.probes import (
    LinearScore,
    Probe,
    check_labels,
    held_out_rows,
    holds_out,
    linear_probe,
)
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import (
    Split,
    class_names_of,
    compare,
    confusion_of,
    cut_in_two,
    in_classes_of,
    labelled_rows_of,
    per_class,
    top_metrics,
    what_was_seen,
)
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.mixing import mix_or_cut
from halfseen.ops.randomness import stream_seed, torch_generator
from halfseen.types import Batch, ViewPlan, ViewSpec

CROP_SCALE = (0.08, 1.0)

AUGMENTATION_SENTENCES = {
    "none": "Training images are not augmented: their features are computed once and kept (fast; the published "
    "protocols augment).",
    "crop": "Training images are cropped at random (8 to 100 % of the area) and mirrored, anew in every epoch.",
    "tf-crop": "Training images are cropped at random in one draw clamped to the image (8 to 100 % of the area) and "
    "mirrored, anew in every epoch.",
    "trivial": "Training images are squashed to the square, changed by TrivialAugmentWide and random erasing, and "
    "blended by MixUp or CutMix, anew in every epoch.",
}
HEAD_SENTENCES = {
    "plain": "a linear layer",
    "batch-norm": "a batch norm without weights and a linear layer",
    "layer-norm": "a layer norm and a linear layer",
    "unit-layer-norm": "a layer norm, scaling to length 1 and a linear layer",
}


def linear_protocol(
    subject: Subject,
    train: Split,
    test: Split | None,
    config: LinearConfig,
    *,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Result:
    """Linear classifiers on a frozen encoder, on the same network at random initialisation, and on raw pixels.

    Args:
        subject: what is measured.
        train: images with which the classifiers are trained.
        test: images that are classified; None, or the very same images as `train`: a fifth of each class of `train`.
        seed: draws first weights, order, augmentation, held-out images and subsets.
    Raises:
        DataError: no labels, one class only, classes that differ between the splits.
        ConfigError: blocks that the encoder has not.
    Source: iBOT, arXiv 2111.07832; DINO, arXiv 2104.14294; MAE, arXiv 2111.06377; MSN, arXiv 2204.07141; KAMIM,
        arXiv 2407.13873; FreezeOut's fork of LocalMIM.
    """
    started = time.monotonic()
    notes: list[str] = []
    if test is None or test.source.fingerprint() == train.source.fingerprint():
        train, test = cut_in_two(train, seed)
        notes.append("There is one split only: a fifth of each class was kept apart beforehand as test images.")
    class_names = class_names_of(train.source, test.source)
    size = subject.size
    train_rows = labelled_rows_of(train, config.max_train, seed, "training")
    test_rows = labelled_rows_of(test, config.max_test, seed, "test")
    train_labels = torch.from_numpy(np.asarray(train.source.labels, dtype=np.int64)[train_rows])
    check_labels(train_labels)
    held_out_rows(train_labels, config, seed)
    notes += subject.notes
    extractors = subject.extractors(config.feature, config.last_blocks, config.layer)

    def extract(source: Source, rows: Int64[np.ndarray, " m"] | None, words: str) -> dict[str, FeatureSet]:
        return extract_features(
            extractors,
            source,
            rows,
            image_size=size,
            resize=config.resize,
            crop_ratio=config.crop_ratio,
            interpolation=config.interpolation,
            antialias=config.antialias,
            batch_size=config.forward_batch,
            workers=subject.workers,
            on_progress=None if on_progress is None else partial(on_progress, words),
        )

    test_sets = extract(test.source, test_rows, "features of test images")
    labels = in_classes_of(train.source, test.source, test_sets["encoder"].labels)
    if config.augmentation == "none":
        train_sets = extract(train.source, train_rows, "features of training images")
        trained, n_train = train.used(train_sets["encoder"]), len(train_sets["encoder"].labels)
        scores = {
            name: linear_probe(
                found.features,
                found.labels,
                test_sets[name].features,
                labels,
                config,
                num_classes=len(class_names),
                seed=seed,
                device=subject.device,
                on_progress=None if on_progress is None else partial(on_progress, f"classifiers: {name}"),
            )
            for name, found in train_sets.items()
        }
    else:
        chosen = train.source.subset(train_rows)
        held = held_out_rows(train_labels, config, seed)
        judged = None if held is None else extract(chosen.subset(np.flatnonzero(held)), None, "held-out images")
        views = _Views(chosen, config, size, seed, subject.workers)
        scores = _train_on_views(
            extractors,
            views,
            held,
            judged,
            test_sets,
            labels,
            config,
            len(class_names),
            seed,
            subject.device,
            on_progress,
        )
        n_train = len(train_rows)
        trained = train.used(FeatureSet(torch.empty(n_train, 0), train_labels, torch.from_numpy(train_rows), ()))
        trained = trained.model_copy(update={"skipped": len(views.skipped)})

    own = scores["encoder"]
    right = {name: (score.rank == 0).double() for name, score in scores.items()}
    metrics = {name: top_metrics(score, len(class_names)) for name, score in scores.items()}
    notes += _departures(config, subject.encoder)
    notes += _about_choice(config, own, min(config.batch_size, n_train))
    notes += compare(right)
    notes += what_was_seen(train, test, subject)
    settings = config.model_dump(exclude={"protocol", "feature"}, exclude_none=True)
    return Result(
        protocol=config.protocol,
        protocol_text=_protocol_text(config),
        settings={
            **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
            "feature": config.feature,
            "image_size": size,
            "raw_pixels_side": min(size, RAW_PIXEL_SIDE),
            "precision": subject.precision,
            "cached_features": config.augmentation == "none",
        },
        headline={"lr": own.chosen.lr, "weight_decay": own.chosen.weight_decay, "epoch": own.epoch},
        features=feature_sentence(config.feature, config.last_blocks, config.layer),
        feature_dim=test_sets["encoder"].features.shape[1],
        role=subject.role,
        encoder=subject.origin,
        data={"train": trained, "test": test.used(test_sets["encoder"])},
        split=test.name,
        seed=seed,
        n=len(labels),
        n_train=n_train,
        num_classes=len(class_names),
        metrics=metrics["encoder"],
        baselines={name: each for name, each in metrics.items() if name != "encoder"},
        confidence_interval={
            name: wilson_interval(int((score.rank == 0).sum()), len(score.rank)) for name, score in scores.items()
        },
        confidence_text="95 % Wilson interval of top1 over the test images; it does not cover other seeds of training.",
        per_class=per_class(class_names, labels, right),
        confusion=confusion_of(labels, own.predictions, len(class_names)),
        notes=notes,
        seconds=round(time.monotonic() - started, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        curves=_curves(scores),
    )


class _Views:
    """The augmented training images of a probe, step by step.

    Attributes:
        steps_per_epoch: batches in one pass.
        batch_size: images of a step.
        skipped: positions of files that a neighbour stood in for.
    """

    def __init__(self, source: Source, config: LinearConfig, size: int, seed: int, workers: int) -> None:
        self.batch_size = min(config.batch_size, len(source))
        part = max(each for each in range(1, config.forward_batch + 1) if self.batch_size % each == 0)
        sampler = StepSampler(
            len(source), self.batch_size, stream_seed(seed, "linear"), drop_last=False, micro_batch_size=part
        )
        self.steps_per_epoch = sampler.steps_per_epoch
        self.skipped: set[int] = set()
        self._loader = Loader(source, training_views(config, size), sampler, stream_seed(seed, "views"), workers)

    def steps(self, epochs: int) -> Generator[list[Batch], None, None]:
        """The batches of each step, in the parts that go through the encoder at once."""
        steps = cast(Generator[list[Batch], None, None], self._loader.batches(0, epochs * self.steps_per_epoch))
        with contextlib.closing(steps):
            for batches in steps:
                self.skipped |= {file.index for batch in batches for file in batch.skipped}
                yield batches


def training_views(config: LinearConfig, size: int) -> ViewPlan:
    """The view that a protocol with augmentation cuts of each training image."""
    match config.augmentation:
        case "tf-crop":
            return ViewPlan((ViewSpec(size, crop_scale=CROP_SCALE, crop="clamped"),))
        case "trivial":
            squashed = ViewSpec(size, crop="whole", interpolation="bilinear", antialias=False, hflip=0.0)
            return ViewPlan((ViewSpec(**{**vars(squashed), "change": trivial_augment_and_erase}),))
        case _:
            return ViewPlan((ViewSpec(size, crop_scale=CROP_SCALE, interpolation="bilinear"),))


def _train_on_views(
    extractors: Mapping[str, Extractor],
    views: _Views,
    held: Bool[Tensor, " n"] | None,
    judged: Mapping[str, FeatureSet] | None,
    test_sets: Mapping[str, FeatureSet],
    labels: Tensor,
    config: LinearConfig,
    num_classes: int,
    seed: int,
    device: str,
    on_progress: OnProgress | None,
) -> dict[str, LinearScore]:
    """Every extractor's probe, trained in one pass over the augmented images: each is cut once for all of them."""
    probes = {
        name: Probe(
            test_sets[name].features.shape[1],
            num_classes,
            config,
            batch_size=views.batch_size,
            steps_per_epoch=views.steps_per_epoch,
            seed=seed,
            device=device,
        )
        for name in extractors
    }
    epochs = config.epochs + config.extra_epochs
    with contextlib.closing(views.steps(epochs)) as steps:
        for step, batches in enumerate(steps):
            targets, features = [], {name: list[Tensor]() for name in extractors}
            for number, batch in enumerate(batches):
                pixels, target = batch.views[0].to(device), batch.labels.to(device)
                if config.augmentation == "trivial":
                    generator = torch_generator(seed, "linear mix", step, number)
                    pixels, target = mix_or_cut(pixels.float(), F.one_hot(target, num_classes).float(), generator)
                targets.append(target)
                for name, extract in extractors.items():
                    features[name].append(extract.on_device(pixels).to(device))
            hidden = None if held is None else _hidden(held, batches).to(device)
            for name, probe in probes.items():
                probe.train_step(torch.cat(features[name]), torch.cat(targets), hidden)
            if (step + 1) % views.steps_per_epoch == 0:
                for name, probe in probes.items():
                    probe.end_epoch(test_sets[name].features, labels)
                if on_progress is not None:
                    on_progress("epochs", (step + 1) // views.steps_per_epoch, epochs)
    return {
        name: probe.finish(
            test_sets[name].features,
            labels,
            None if judged is None else (judged[name].features, judged[name].labels),
        )
        for name, probe in probes.items()
    }


def _hidden(held: Bool[Tensor, " n"], batches: Sequence[Batch]) -> Bool[Tensor, " B"]:
    """Which rows of a step show held-out images, in their own place or in that of a file that can't be read."""
    stand_ins = {file.index: file.replaced_by for batch in batches for file in batch.skipped}
    asked = torch.cat([batch.index for batch in batches])
    shown = torch.tensor([stand_ins.get(index, index) for index in asked.tolist()])
    return held[asked] | held[shown]


def _protocol_text(config: LinearConfig) -> str:
    kinds = " and ".join(dict.fromkeys(config.optimizer))
    words = f"{HEAD_SENTENCES[config.head]} on frozen features, {config.epochs + config.extra_epochs} epochs of {kinds}"
    choice = {
        "held-out": f"The learning rate is chosen on {100 * config.held_out:g} % of the training images, kept apart; "
        "the reported classifier has seen all of them, and test images are classified once, at the end.",
        "test": "As in the original, the best epoch (and learning rate) is chosen on the test images themselves, so "
        "the accuracy is somewhat too high.",
        "last": "Nothing is chosen: it is the classifier after the last epoch.",
    }[config.choose if holds_out(config) or config.choose == "test" else "last"]
    return f"{words[0].upper()}{words[1:]}. {AUGMENTATION_SENTENCES[config.augmentation]} {choice}"


def _departures(config: LinearConfig, encoder: Encoder) -> list[str]:
    """A sentence where a published protocol's name is used with other settings than its own."""
    if config.protocol == "linear":
        return []
    published = LinearConfig.model_validate(linear_protocol_settings(config.protocol, encoder)).model_dump()
    free = {"max_train", "max_test", "forward_batch"}
    changed = [name for name, value in config.model_dump().items() if name not in free and value != published[name]]
    if not changed:
        return []
    return [f"Departs from the published protocol in: {', '.join(changed)}."]


def _about_choice(config: LinearConfig, score: LinearScore, batch_size: int) -> list[str]:
    sentences = []
    if batch_size < config.batch_size:
        sentences.append(
            f"A step takes all {batch_size} training images, fewer than batch_size = {config.batch_size}"
            f"{'' if config.reference_batch is None else '; the learning rate is scaled to that'}."
        )
    if len(score.candidates) > 1:
        chosen = f"Of {len(score.candidates)} classifiers, lr = {score.chosen.lr:g} was chosen"
        if config.choose == "test":
            sentences.append(f"{chosen}, and epoch {score.epoch}, on the test images: the number is optimistic.")
        else:
            optimist = f"the best on the test images would have given {score.best_test_top1:.1f} %"
            sentences.append(f"{chosen} on held-out training images; {optimist}.")
        rates = [each.lr for each in score.candidates]
        if len(set(rates)) > 2 and score.chosen.lr in (min(rates), max(rates)):
            sentences.append("The chosen learning rate is at the edge of those tried; others may be better still.")
    elif config.choose == "test":
        sentences.append(f"Epoch {score.epoch} was chosen on the test images: the number is optimistic.")
    return sentences


def _curves(scores: Mapping[str, LinearScore]) -> dict[str, list[float]]:
    """What was tried and how it did: learning rates and weight decays, and of every contestant the accuracies."""
    tried = scores["encoder"].candidates
    curves = {"lr": [each.lr for each in tried], "weight_decay": [each.weight_decay for each in tried]}
    for name, score in scores.items():
        if score.held_out_top1 is not None:
            curves[f"held_out_top1_{name}"] = [round(value, 4) for value in score.held_out_top1]
        curves[f"chosen_lr_{name}"] = [score.chosen.lr]
        curves[f"test_top1_{name}"] = [round(value, 4) for value in score.test_top1]
        curves[f"loss_{name}"] = [round(value, 6) for value in score.losses]
    return curves

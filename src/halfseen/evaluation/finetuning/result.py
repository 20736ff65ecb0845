"""A fine-tuning's result: its numbers, and in words how they came about."""

import importlib.metadata

import numpy as np
import torch

from halfseen.config.load import leaves
from halfseen.data.diary import Diary
from halfseen.evaluation.features import RAW_PIXEL_SIDE, FeatureSet
from halfseen.evaluation.finetuning.config import FEATURE_SENTENCES, FinetuneConfig
from halfseen.evaluation.finetuning.published import Protocol, departures
from halfseen.evaluation.finetuning.run import Run
from halfseen.evaluation.finetuning.training import Scored
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import compare, confusion_of, per_class, top_metrics, what_was_seen
from halfseen.evaluation.subject import WITHOUT_RANDOM


def result_of(run: Run, protocol: Protocol, scores: dict[str, Scored], diary: Diary, seconds: float) -> Result:
    config, task = run.config, run.task
    own = scores["encoder"]
    right = {name: (scored.rank == 0).double() for name, scored in scores.items()}
    metrics = {name: top_metrics(scored, len(task.class_names)) for name, scored in scores.items()}
    used = FeatureSet(
        torch.empty(len(task.chosen), 0),
        torch.from_numpy(np.asarray(task.chosen.labels, dtype=np.int64)),
        torch.arange(len(task.chosen)),
        (),
    )
    tested = FeatureSet(torch.empty(len(own.rows), 0), own.labels, own.rows, own.skipped)
    epoch = _reported_epoch(config, run.curves)
    notes = [*task.notes, *protocol.notes]
    if not config.baselines:
        notes.append("Without baselines: --baselines trains the same network from random weights, too.")
    elif run.subject.random_encoder is None:
        notes.append(WITHOUT_RANDOM)
    if "raw_pixels" in scores:
        notes.append("raw_pixels is a linear classifier on pixels that are not augmented.")
    if config.changes_blocks:
        notes.append(_about_blocks(config))
    changed = departures(config, protocol)
    if changed and config.protocol != "finetune":
        notes.append(f"Departs from the published protocol in: {', '.join(changed)}.")
    if config.choose == "test":
        notes.append(f"Epoch {epoch:g} was chosen on the test images: the number is optimistic.")
    notes += compare(right)
    notes += what_was_seen(task.train, task.tested, run.subject)
    hidden = ("run_dir", "encoder", "protocol", "test")
    settings = {
        key: value
        for key, value in leaves(config).items()
        if value is not None and key not in hidden and not key.startswith(("runtime.", "data."))
    }
    return Result(
        protocol=config.protocol,
        protocol_text=_protocol_text(config),
        settings={
            **{key: value for key, value in settings.items() if not isinstance(value, dict)},
            "image_size": config.data.image_size,
            "raw_pixels_side": min(config.data.image_size, RAW_PIXEL_SIDE),
            "precision": config.runtime.precision,
        },
        headline={"lr": config.train.lr.base, "layer_decay": config.layer_decay, "epoch": epoch},
        features=FEATURE_SENTENCES[config.feature],
        feature_dim=run.subject.encoder.embed_dim,
        role=run.subject.role,
        encoder=config.encoder,
        data={
            "train": task.train.used(used).model_copy(update={"skipped": len(diary.skipped)}),
            "test": task.tested.used(tested),
        },
        split=task.tested.name,
        seed=config.seed,
        n=len(own.rows),
        n_train=len(task.chosen),
        num_classes=len(task.class_names),
        metrics=metrics["encoder"],
        baselines={name: each for name, each in metrics.items() if name != "encoder"},
        confidence_interval={
            name: wilson_interval(int((scored.rank == 0).sum()), len(scored.rank)) for name, scored in scores.items()
        },
        confidence_text="95 % Wilson interval of top1 over the test images; it does not cover other seeds of training.",
        per_class=per_class(task.class_names, own.labels, right),
        confusion=confusion_of(own.labels, own.predicted, len(task.class_names)),
        notes=notes,
        seconds=round(seconds, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        curves=run.curves,
    )


def _reported_epoch(config: FinetuneConfig, curves: dict[str, list[float]]) -> float:
    epochs = curves["epoch_encoder"]
    if config.choose == "last":
        return epochs[-1]
    series = curves["held_out_top1_encoder" if config.choose == "held-out" else "test_top1_encoder"]
    return epochs[series.index(max(series))]


def _protocol_text(config: FinetuneConfig) -> str:
    train, mix = config.train, config.mix
    blend = {
        (True, True): "MixUp or CutMix",
        (True, False): "MixUp",
        (False, True): "CutMix",
        (False, False): "",
    }[mix.mixup > 0, mix.cutmix > 0]
    ended = "" if train.max_steps is None else f" (ended after at most {train.max_steps} steps)"
    text = (
        f"All weights trained for {train.epochs:g} epochs{ended}, {train.batch_size} images a step, with a linear head "
        f"on the {FEATURE_SENTENCES[config.feature]}; layer decay {config.layer_decay:g}, drop path "
        f"{config.drop_path:g}, label smoothing {config.label_smoothing:g}{f', {blend}' if blend else ''}."
    )
    choice = {
        "last": "Nothing is chosen: it is the classifier after the last epoch.",
        "held-out": f"The epoch is chosen on {100 * config.held_out:g} % of the training images, kept apart.",
        "test": "As in the original, the best epoch on the test images is reported, so the accuracy is somewhat too "
        "high.",
    }[config.choose]
    average = "" if config.ema_decay is None else " The weights are a moving average."
    return f"{text}{average} {choice}"


def _about_blocks(config: FinetuneConfig) -> str:
    changed = {"were taken away": config.dropped_blocks, "began with random weights": config.fresh_blocks}
    parts = [f"{count} {what}" for what, count in changed.items() if count]
    return f"Not the whole encoder: of its last blocks {' and '.join(parts)} before training."

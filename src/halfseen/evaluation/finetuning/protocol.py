"""Fine-tuning from an encoder to a result: a run of its own, which stops and resumes like any other.

    classifier from the encoder -> loop -> the same from random weights -> raw pixels -> weights, result

Its folder holds config.yaml, metrics.jsonl, checkpoints/, `start` (a copy of the encoder), classifier.safetensors (the
last epoch's weights), classifier_best.safetensors, encoder.safetensors (of the reported weights) and
evaluations/<protocol>.json; `random_init` inside it is the same for the baseline.
"""

import contextlib
import importlib.metadata
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import export_encoder
from halfseen.config.load import DEFAULT, Loaded, dump_config, leaves
from halfseen.data.diary import Diary
from halfseen.data.doctor import precheck
from halfseen.data.loader import Loader
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import Source
from halfseen.engine.checkpoint import Identity, latest_checkpoint, load_checkpoint
from halfseen.engine.config import science_settings
from halfseen.engine.distributed import Distributed, processes, report_start, require_same
from halfseen.engine.folder import CONFIG, check_folder, hold_folder, open_folder, write_environment, write_whole
from halfseen.engine.journal import open_journal, require_tensorboard
from halfseen.engine.loop import FitResult, fit
from halfseen.engine.precision import open_device
from halfseen.engine.terminal import Terminal, open_terminal
from halfseen.errors import ConfigError, DataError
from halfseen.evaluation.features import RAW_PIXEL_SIDE, FeatureSet, RawPixels, draw_subset, extract_features
from halfseen.evaluation.finetuning.classifier import Classifier, classifier_from, load_classifier, write_classifier
from halfseen.evaluation.finetuning.config import FEATURE_SENTENCES, FinetuneConfig, Protocol, departures
from halfseen.evaluation.finetuning.training import FineTuning, Images, Scored, score, training_views
from halfseen.evaluation.linear.config import LinearConfig
from halfseen.evaluation.linear.probes import check_labels, hold_out, linear_probe
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import (
    Split,
    class_names_of,
    compare,
    confusion_of,
    cut_in_two,
    fingerprints_of,
    in_classes_of,
    labelled_rows_of,
    per_class,
    what_was_seen,
)
from halfseen.evaluation.subject import WITHOUT_RANDOM, Subject
from halfseen.ops.randomness import stream_seed, torch_generator

logger = logging.getLogger(__name__)

START, RANDOM = "start", "random_init"
LAST, BEST = "classifier", "classifier_best"
MOST_FOR_PIXELS = 20_000
"""Training images whose raw pixels the cheap baseline looks at, at most."""


class FinetuneOutcome(NamedTuple):
    """What a fine-tuning run has left.

    Attributes:
        run_dir: its folder.
        finished: False if a signal ended it early; resume it then.
        message: one sentence for the person at the terminal.
        result: None if the run isn't finished, and on processes other than 0.
        classifier: the reported weights, as the result.
    """

    run_dir: Path
    finished: bool
    message: str
    result: Result | None
    classifier: Path | None


class Task(NamedTuple):
    """What is learned from which images.

    Attributes:
        train: the labelled training images but the held-out ones, and their labels in `chosen.labels`.
        chosen: those images as a source of their own.
        held: images on which the epoch is chosen; None = none.
        test: images that are classified.
        tested: their split.
        class_names: of the head's outputs.
        notes: sentences on how the splits were made.
    """

    train: Split
    chosen: Source
    held: Images | None
    test: Images
    tested: Split
    class_names: list[str]
    notes: list[str]


def finetune(
    subject: Subject,
    train: Split,
    test: Split | None,
    loaded: Loaded[FinetuneConfig],
    protocol: Protocol,
    *,
    resume: bool = False,
    command: Sequence[str] | None = None,
) -> FinetuneOutcome:
    """Fine-tune an encoder as a classifier and measure it on test images, beside its baselines.

    Args:
        subject: the encoder; its random counterpart is the baseline's start. Both are left as they are.
        train: training images.
        test: images that are classified; None, or the very same images: a fifth of each class of `train`.
        loaded: the settings and where they come from.
        protocol: what the protocol's name stands for, for the statement on departures.
        resume: go on with the run in `run_dir` from its newest whole checkpoint.
        command: the command line, for the record; None takes this process's.
    Raises:
        DataError: no labels, one class only, classes that differ between the splits, too few images to hold any out.
        ConfigError: a batch that the processes can't share, a folder that is in use.
        CheckpointError: a run that can't go on with these settings.
        WeightsError: an encoder that doesn't fit.
    Source: MAE, arXiv 2111.06377; SimMIM, arXiv 2111.09886; LocalMIM, arXiv 2303.05251; KAMIM, arXiv 2407.13873; MSN,
        arXiv 2204.07141; iBOT, arXiv 2111.07832.
    """
    report_start()
    started = time.monotonic()
    config = loaded.config
    with processes(config.runtime.device) as world, contextlib.ExitStack() as held:
        open_device(config.runtime.device, world.local_rank)
        check_folder(config.run_dir, resume, "finetune")
        if resume and world.is_main:
            held.enter_context(hold_folder(Path(str(config.run_dir))))
        if config.runtime.tensorboard:
            require_tensorboard()
        torch.set_num_threads(config.runtime.threads)
        task = _task(train, test, config)
        require_same(world, "data", task.chosen.fingerprint())
        run = _Run(config, task, subject, world, open_terminal(world.is_main))
        network = run.classifier(subject.encoder)
        sampler = run.sampler()  # Says at once what is wrong with the batch.
        if resume:
            run.look_at_checkpoint(Path(str(config.run_dir)))
        run_dir = Path(str(config.run_dir))
        if not resume:
            run_dir = Path(world.broadcast_object(str(_begin(config, held)) if world.is_main else ""))
        config = run.config = config.model_copy(update={"run_dir": str(run_dir)})
        diary = Diary(run_dir, task.chosen)
        if world.is_main:
            diary.read()
            diary.note(precheck(task.chosen, config.data))
            write_whole(run_dir / CONFIG, dump_config(config, loaded.provenance))
            write_environment(run_dir, command, loaded.provenance["runtime.threads"] == DEFAULT)
            if not resume:
                run.keep_start(run_dir)
            diary.write()
        world.barrier()
        ended = run.train("encoder", network, run_dir, sampler, diary)
        random_network = None
        if ended.finished and config.baselines and subject.random_encoder is not None:
            random_network = run.classifier(subject.random_encoder())
            run.say("Training the same network from random weights.")
            ended = run.train("random_init", random_network, run_dir / RANDOM, run.sampler(), diary)
        diary.note([each for found in world.gather(list(diary.skipped.values())) for each in found])
        if not ended.finished:
            return FinetuneOutcome(run_dir, False, ended.message, None, None)
        scores = run.final_scores(network, random_network, run_dir)
        if not world.is_main:
            return FinetuneOutcome(run_dir, True, ended.message, None, None)
        diary.write()
        result = _result(run, protocol, scores, diary, time.monotonic() - started)
        result.write(run_dir / "evaluations")
        path = run_dir / f"{LAST if config.choose == 'last' else BEST}.safetensors"
        return FinetuneOutcome(run_dir, True, ended.message, result, path)


class _Run:
    """The parts that the network and its baseline share."""

    def __init__(
        self, config: FinetuneConfig, task: Task, subject: Subject, world: Distributed, terminal: Terminal
    ) -> None:
        self.config, self.task, self.subject, self.world = config, task, subject, world
        self.terminal = terminal
        self.curves: dict[str, list[float]] = {}

    def say(self, sentence: str) -> None:
        """To the person at the terminal."""
        self.terminal.say(sentence)

    def classifier(self, encoder: Encoder) -> Classifier:
        """The network with its first weights."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "build"))
            return classifier_from(
                encoder,
                config.feature,
                len(self.task.class_names),
                torch_generator(config.seed, "head"),
                image_size=config.data.image_size,
                window_size=config.window_size,
                drop_path=config.drop_path,
                head_std=config.head_std,
                fresh_norm=config.fresh_norm,
            )

    def sampler(self) -> StepSampler:
        """The images of each step on this process.

        Raises:
            ConfigError: a batch that can't be shared, or in odd parts where pairs are blended.
            DataError: fewer images than one batch.
        """
        train, mix = self.config.train, self.config.mix
        micro = train.split(self.world.world_size).micro_batch_size
        if mix.is_on and mix.form == "timm" and micro % 2:
            raise ConfigError(
                f"train.batch_size: got {train.batch_size}, of which each forward pass gets {micro} images, but MixUp "
                "and CutMix blend pairs. Give a batch of even parts, or write mix.mixup=0 mix.cutmix=0."
            )
        return StepSampler(
            len(self.task.chosen),
            train.batch_size,
            self.config.seed,
            drop_last=train.drop_last,
            rank=self.world.rank,
            world_size=self.world.world_size,
            micro_batch_size=micro,
        )

    def identity(self) -> Identity:
        """What a checkpoint of the run must agree with."""
        settings = science_settings(self.config.model_dump(mode="json"))
        return Identity(self.config.protocol, {name: value for name, value in settings.items() if name != "baselines"})

    def look_at_checkpoint(self, folder: Path) -> None:
        """See that the run can go on, before any work is done."""
        newest = latest_checkpoint(folder)
        if newest is not None:
            load_checkpoint(newest, self.identity())

    def keep_start(self, folder: Path) -> None:
        """Copy the encoders into the run's folder, so that it can go on without them."""
        about = {"origin": self.subject.origin, "taught_on": list(self.subject.taught_on)}
        mean, std = self.config.data.mean, self.config.data.std
        export_encoder(self.subject.encoder, folder / START, mean=mean, std=std, role=self.subject.role, extra=about)
        if self.config.baselines and self.subject.random_encoder is not None:
            random = self.subject.random_encoder()
            export_encoder(random, folder / RANDOM / START, mean=mean, std=std, role="random")

    def train(self, name: str, network: Classifier, folder: Path, sampler: StepSampler, diary: Diary) -> FitResult:
        """To the end of the schedule, or as far as a signal lets it; `network` then has the last weights."""
        config, world = self.config, self.world
        method = FineTuning(network, config, len(self.task.class_names))
        start = latest_checkpoint(folder)
        step = 0 if start is None else int(start.name.removeprefix("step-"))
        journal = open_journal(folder, resume_step=step, writes=world.is_main, tensorboard=config.runtime.tensorboard)
        loader = Loader(
            self.task.chosen,
            training_views(config),
            sampler,
            config.seed,
            workers=config.runtime.workers,
            pin_memory=config.runtime.device == "cuda",
        )
        key = "test_top1" if self.task.held is None else "held_out_top1"
        best = max((float(line[key]) for line in journal.past() if key in line), default=-1.0)

        def measure() -> dict[str, float]:
            nonlocal best
            found = self.measure(method.measured)
            if found and found[key] > best:
                best = found[key]
                self.keep(method.measured, folder, BEST, found)
            return found

        try:
            ended = fit(
                method,
                loader,
                config.train,
                config.runtime,
                seed=config.seed,
                run_dir=folder,
                identity=self.identity(),
                journal=journal,
                terminal=open_terminal(world.is_main),
                distributed=world,
                resume_from=start,
                measure=measure,
                measure_every_steps=max(1, round(config.evaluate_every_epochs * loader.steps_per_epoch)),
                measure_together=True,
                go_on_by=f"halfseen finetune --resume {config.run_dir}",
                on_batch=diary.note_batches,
            )
        finally:
            journal.close()
        self.curves |= _curves([line for line in journal.past() if key in line], name)
        if method.average is not None:
            network.load_state_dict(method.average.state_dict())
        if world.is_main and ended.finished:
            self.keep(network, folder, LAST, {"step": ended.step})
        world.barrier()
        return ended

    def measure(self, network: Classifier) -> dict[str, float]:
        """Entries for the log; empty on processes other than 0."""
        found: dict[str, float] = {}
        for name, images in (("held_out", self.task.held), ("test", self.task.test)):
            scored = None if images is None else self.score(network, images)
            if scored is not None:
                found[f"{name}_top1"] = scored.top(1)
                found[f"{name}_loss"] = float(scored.loss.mean())
                if len(self.task.class_names) > 5:
                    found[f"{name}_top5"] = scored.top(5)
        return found

    def score(self, network: Classifier, images: Images) -> Scored | None:
        """All processes classify together."""
        scored = score(network, images, self.config, self.config.runtime, self.world)
        if scored is not None and not len(scored.rows):
            raise DataError(f"'{images.source.name}': none of the {len(images.rows)} images could be read.")
        return scored

    def keep(self, network: Classifier, folder: Path, stem: str, found: dict[str, float]) -> None:
        """Write the weights for timm, with what was measured of them."""
        write_classifier(
            network,
            folder,
            stem,
            mean=self.config.data.mean,
            std=self.config.data.std,
            class_names=self.task.class_names,
            extra={"protocol": self.config.protocol, "measured": dict(found)},
        )

    def final_scores(self, network: Classifier, random_network: Classifier | None, run_dir: Path) -> dict[str, Scored]:
        """Test images by the reported weights of all contestants; the encoder's are written out as well."""
        scores = {}
        networks = {"encoder": (network, run_dir)}
        if random_network is not None:
            networks["random_init"] = (random_network, run_dir / RANDOM)
        for name, (last, folder) in networks.items():
            device = next(last.parameters()).device
            chosen = last if self.config.choose == "last" else load_classifier(folder / BEST).to(device)
            scored = self.score(chosen, self.task.test)
            if scored is not None:
                scores[name] = scored
                if name == "encoder":
                    taught_on = sorted({*self.subject.taught_on, *fingerprints_of(self.task.train.source)})
                    about: dict[str, object] = {"protocol": self.config.protocol, "taught_on": taught_on}
                    export_encoder(
                        chosen.encoder,
                        run_dir,
                        mean=self.config.data.mean,
                        std=self.config.data.std,
                        role="fine-tuned",
                        extra=about,
                    )
        if self.world.is_main and self.config.baselines:
            self.say("Training a linear classifier on raw pixels.")
            scores["raw_pixels"] = _pixel_scores(self.task, self.config)
        self.world.barrier()
        return scores


def _begin(config: FinetuneConfig, held: contextlib.ExitStack) -> Path:
    """The folder of a new run, made and kept for this process."""
    folder = open_folder(config.run_dir, config.protocol, config.data.source)
    held.enter_context(hold_folder(folder))
    check_folder(config.run_dir, False, "finetune")  # Another process may have begun a run there since the first look.
    return folder


def _task(train: Split, test: Split | None, config: FinetuneConfig) -> Task:
    """The images of all three kinds, with labels in the training images' classes."""
    notes = []
    if test is None or test.source.fingerprint() == train.source.fingerprint():
        train, test = cut_in_two(train, config.seed)
        notes.append("There is one split only: a fifth of each class was kept apart beforehand as test images.")
    class_names = class_names_of(train.source, test.source)
    rows = labelled_rows_of(train, None, config.seed, "training")
    labels = torch.from_numpy(np.asarray(train.source.labels, dtype=np.int64)[rows])
    check_labels(labels)
    held = None
    if config.choose == "held-out":
        apart = hold_out(labels, config.held_out, config.seed).numpy()
        if not apart.any():
            raise DataError(
                "choose=held-out: every class has a single training image, so none can be kept apart. Write "
                "choose=last, or give more images."
            )
        held = Images(train.source, rows[apart], labels[torch.from_numpy(apart)])
        rows = rows[~apart]
    test_rows = labelled_rows_of(test, config.view.max_test, config.seed, "test")
    own = torch.from_numpy(np.asarray(test.source.labels, dtype=np.int64)[test_rows])
    tested = Images(test.source, test_rows, in_classes_of(train.source, test.source, own))
    return Task(train, train.source.subset(rows), held, tested, test, class_names, notes)


def _pixel_scores(task: Task, config: FinetuneConfig) -> Scored:
    """A linear classifier on raw pixels, its learning rate chosen on held-out training images where there are any."""
    view = config.view
    few = draw_subset(len(task.chosen), MOST_FOR_PIXELS, config.seed, "pixels")

    def pixels(source: Source, rows: np.ndarray) -> FeatureSet:
        found = extract_features(
            {"raw_pixels": RawPixels()},
            source,
            rows,
            image_size=config.data.image_size,
            resize=view.resize,
            crop_ratio=view.crop_ratio,
            interpolation=view.interpolation,
            antialias=view.antialias,
            workers=config.runtime.workers,
        )
        return found["raw_pixels"]

    known, asked = pixels(task.chosen, few), pixels(task.test.source, task.test.rows)
    label_of = dict(zip(task.test.rows.tolist(), task.test.labels.tolist(), strict=True))
    labels = torch.tensor([label_of[row] for row in asked.indices.tolist()])
    single = int(torch.bincount(known.labels).max()) < 2
    settings = LinearConfig.model_validate({"lr": (0.1,)} if single else {})
    probe = linear_probe(
        known.features,
        known.labels,
        asked.features,
        labels,
        settings,
        num_classes=len(task.class_names),
        seed=config.seed,
    )
    order = asked.indices.argsort()
    nothing = torch.zeros(len(order), dtype=torch.float64)
    return Scored(
        asked.indices[order], labels[order], probe.rank[order], probe.predictions[order], nothing, asked.skipped
    )


def _result(run: _Run, protocol: Protocol, scores: dict[str, Scored], diary: Diary, seconds: float) -> Result:
    config, task = run.config, run.task
    own = scores["encoder"]
    right = {name: (scored.rank == 0).double() for name, scored in scores.items()}
    metrics = {name: _metrics(scored, len(task.class_names)) for name, scored in scores.items()}
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
    changed = departures(config, protocol)
    if changed and config.protocol != "finetune":
        notes.append(f"Departs from the published protocol in: {', '.join(changed)}.")
    if config.choose == "test":
        notes.append(f"Epoch {epoch:g} was chosen on the test images: the number is optimistic.")
    notes += compare(right)
    notes += what_was_seen(task.train, task.tested, run.subject.pretrained_on, run.subject.taught_on)
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


def _metrics(scored: Scored, num_classes: int) -> dict[str, float]:
    return {f"top{depth}": round(scored.top(depth), 4) for depth in ((1, 5) if num_classes > 5 else (1,))}


def _curves(lines: Sequence[Mapping[str, float]], name: str) -> dict[str, list[float]]:
    """What was measured after some epochs, from the run's own log."""
    curves = {f"epoch_{name}": [round(float(line["epoch"]), 4) for line in lines]}
    for key in ("test_top1", "test_loss", "held_out_top1"):
        if lines and key in lines[0]:
            curves[f"{key}_{name}"] = [round(float(line[key]), 4) for line in lines]
    return curves


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

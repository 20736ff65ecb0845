"""Intermediate stages: a pre-trained encoder learns labels of images or of patches before it is put to its use.

From one encoder several stages can start, each ends in a folder that every command takes as an encoder. Training is the
engine's loop over images that stay on the device, so an interrupted stage goes on bit by bit.
"""

import time
from functools import partial
from pathlib import Path

from halfseen.data.resident import Resident, ResidentAugmentation, ResidentLoader
from halfseen.data.sampler import StepSampler
from halfseen.engine.checkpoint import Identity, list_checkpoints
from halfseen.engine.folder import hold_folder
from halfseen.errors import ConfigError
from halfseen.evaluation.intermediate.config import IntermediateConfig
from halfseen.evaluation.intermediate.models import Stage, as_before, build_stage
from halfseen.evaluation.intermediate.result import measure, result_of
from halfseen.evaluation.intermediate.saved import StageResult, read_finished, write_stage
from halfseen.evaluation.intermediate.task import StageTask, prepare_stage
from halfseen.evaluation.resident_training import read_images, train_resident, weights_fingerprint
from halfseen.evaluation.statements import Split, in_classes_of
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.randomness import stream_seed


def intermediate_stage(
    subject: Subject,
    train: Split,
    test: Split | None,
    config: IntermediateConfig,
    *,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Train a copy of an encoder on labels of images or patches, measure it, and write it into a folder.

    The folder gets `encoder.safetensors` and `encoder.json`, `head.safetensors` and `<protocol>.json`.

    Args:
        subject: the encoder and how it is run; it stays as it is. Its baselines are not looked at.
        train: images to learn from.
        test: images that are classified once, at the end; None = there are none.
        out: the folder.
        seed: draws head, order, augmentation, mixing and subsets.
        resume: go on where a stage in this folder was interrupted; a finished one is read.
    Raises:
        DataError: no labels or masks, one class only, classes that differ between the splits.
        ShapeError: an image size that tokens don't divide.
        ConfigError: a stage is there already and `resume` is off, or another process is at work in the folder.
        CheckpointError: what is there was begun with other settings, images or weights.
        KeyboardInterrupt: a signal asked to stop; a checkpoint was written first.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862.
    """
    started = time.monotonic()
    task = prepare_stage(subject, train, test, config, seed)
    identity = _identity(subject, task, config, seed)
    _check_out(out, config.protocol, resume)
    out.mkdir(parents=True, exist_ok=True)
    with hold_folder(out):
        finished = read_finished(out, config.protocol, identity) if resume else None
        if finished is not None:
            return finished
        stage = build_stage(subject, config, len(task.names), seed)
        read = partial(
            read_images,
            subject,
            image_size=subject.encoder.image_size,
            masks=config.objective == "patchwise",
            resize=config.resize,
            on_progress=on_progress,
        )
        data = read(task.train, words="training images")
        _train(subject, stage, data, config, identity, out, seed, resume, on_progress)
        scores = {"train": measure(stage, data, subject)}
        tested: Resident | None = None
        if task.test is not None:
            tested = read(task.test, words="test images")
            if config.objective == "classification":
                known = in_classes_of(task.train.source, task.test.source, tested.labels.cpu())
                tested = tested._replace(labels=known.to(tested.labels.device))
            scores["test"] = measure(stage, tested, subject)
        encoder = as_before(stage.encoder, subject.encoder)
        result = result_of(subject, task, config, seed, data, tested, scores, out, time.monotonic() - started)
        weights = write_stage(encoder, stage, subject, task, config, identity, seed, out)
        result.write(out)  # Last: it is the sign that the stage is finished.
    return StageResult(encoder, weights, result)


def _identity(subject: Subject, task: StageTask, config: IntermediateConfig, seed: int) -> Identity:
    """All that decides the weights with which the stage ends, and what is measured of them."""
    settings = config.model_dump(mode="json", exclude={"protocol"})
    settings |= {
        "seed": seed,
        "precision": subject.precision,
        "images": task.train.source.fingerprint(),
        "test": None if task.test is None else task.test.source.fingerprint(),
        "encoder": weights_fingerprint(subject.encoder),
        "image_size": subject.encoder.image_size,
    }
    return Identity(f"intermediate {config.protocol}", settings)


def _check_out(out: Path, protocol: str, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"'{out}' is a file. Give a folder for the encoder.")
    if not resume and (list_checkpoints(out) or (out / f"{protocol}.json").is_file()):
        raise ConfigError(f"'{out}' holds a stage already. Go on with it by --resume, or give another folder.")


def _train(
    subject: Subject,
    stage: Stage,
    data: Resident,
    config: IntermediateConfig,
    identity: Identity,
    out: Path,
    seed: int,
    resume: bool,
    on_progress: OnProgress | None,
) -> None:
    """The loop, from the newest checkpoint in the folder if there is one."""
    count = len(data.labels)
    sampler = StepSampler(
        count, min(config.batch_size, count), stream_seed(seed, "intermediate order"), drop_last=False
    )
    augmentation = ResidentAugmentation(config.flip, config.contrast, frozen=False)
    loader = ResidentLoader(data, sampler, stream_seed(seed, "intermediate views"), augmentation)
    train_resident(
        stage,
        loader,
        config.training(sampler.steps_per_epoch, count),
        subject,
        identity,
        out,
        seed=seed,
        resume=resume,
        words=f"training: {config.protocol}",
        on_progress=on_progress,
    )

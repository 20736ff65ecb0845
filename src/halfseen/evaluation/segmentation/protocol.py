"""Segmentation: an encoder measured by the classes of pixels, by ViNy's protocol or with frozen patch tokens.

The encoder, the same network at random initialisation and raw pixels (where tokens are frozen) or a constant answer
see the same images, learn in the same way, and are scored image by image.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from halfseen.engine.checkpoint import FOLDER as CHECKPOINTS
from halfseen.engine.checkpoint import Identity
from halfseen.engine.folder import CONFIG, hold_folder, write_json
from halfseen.errors import CheckpointError, ConfigError, DataError
from halfseen.evaluation.resident_training import weights_fingerprint
from halfseen.evaluation.results import Result
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.models import ConstantSegmenter, SegmentationModel, check_size
from halfseen.evaluation.segmentation.result import result_of, what_was_shown
from halfseen.evaluation.segmentation.rivals import TRAINING, Rivals
from halfseen.evaluation.segmentation.saved import EXAMPLES, Trained, write_examples, write_model
from halfseen.evaluation.segmentation.scores import CONSTANT, measure, most_frequent
from halfseen.evaluation.segmentation.task import Task, prepare_task, read_both
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import OnProgress, Subject

IDENTITY = "segmentation.json"


def segmentation_protocol(
    subject: Subject,
    train: Split,
    test: Split | None,
    config: SegmentationConfig,
    *,
    seed: int = 0,
    run_dir: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Learn the classes of pixels from one part of the images and measure on the other.

    Args:
        subject: what is measured; it stays as it is.
        train: images with masks; with `config.train_size` the images of both splits are drawn from together.
        test: images with masks; None: there is one split only.
        seed: draws heads, order, augmentation, and the subset of voting patches.
        run_dir: gets the model (`encoder.safetensors`, `encoder.json`, `head.safetensors`), the result, example
            predictions (`figures/segmentation_example.npz`) and checkpoints; None keeps nothing.
        resume: go on with what was interrupted in `run_dir`; what is finished there is read.
    Raises:
        DataError: no masks, masks that don't fit their images or each other, one class only, too few images.
        ShapeError: an image size that tokens don't divide.
        ConfigError: there is a model in `run_dir` already and `resume` is off.
        CheckpointError: what is in `run_dir` was begun with other settings, images or weights.
        KeyboardInterrupt: a signal asked to stop; a checkpoint was written first.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (viny-segmentation).
    """
    started = time.monotonic()
    check_size(subject.encoder, subject.size)
    task = prepare_task(train, test, config, seed)
    identity = _identity(subject, task, config, seed)
    with _working_folder(run_dir, config, identity, resume) as folder:
        finished = folder / f"{config.protocol}.json"
        if finished.is_file():
            return Result.model_validate_json(finished.read_text(encoding="utf-8"))
        seen = read_both(subject, task, config, seed, on_progress)
        rivals = Rivals(subject, task, config, seen.train, folder, seed, resume, on_progress)
        segmenters = rivals.all()
        counts = {
            name: measure(each, seen, subject, task, config, name, on_progress) for name, each in segmenters.items()
        }
        answer = most_frequent(seen.train, len(task.names))
        counts[CONSTANT] = measure(ConstantSegmenter(answer), seen, subject, task, config, CONSTANT, None)
        notes = [*what_was_shown(config), *subject.notes]
        result = result_of(subject, task, config, seed, seen, counts, notes, time.monotonic() - started)
        result = result.model_copy(update={"curves": rivals.curves()})
        if run_dir is not None:
            own = segmenters["encoder"]
            write_examples(own, seen.test, counts["encoder"].test, task.names, subject, run_dir / EXAMPLES)
            write_model(own, subject, task, config, seed, answer, run_dir)
            result.write(run_dir)  # Last: it is the sign that all is there.
            for checkpoints in (run_dir / TRAINING).glob(f"*/{CHECKPOINTS}"):
                shutil.rmtree(checkpoints)  # Nothing goes on from here.
    return result


def measure_again(
    trained: Trained, train: Split, test: Split | None, *, on_progress: OnProgress | None = None
) -> Result:
    """Measure a trained model on the images that its settings choose, without training.

    Args:
        train, test: as in `segmentation_protocol`; the same ones give the same numbers.
    Raises:
        DataError: as `segmentation_protocol`, or other classes than the model has.
    """
    started = time.monotonic()
    config, subject = trained.config, trained.subject
    check_size(subject.encoder, subject.size)
    task = prepare_task(train, test, config, trained.seed)
    model = trained.segmenter
    known = trained.names or task.names
    num_classes = model.num_classes if isinstance(model, SegmentationModel) else model.head.out_features
    if known[: len(task.names)] != task.names or len(task.names) > num_classes:
        raise DataError(
            f"the masks of '{task.test.source.name}' have the classes {', '.join(task.names)}, but the model "
            f"'{subject.origin}' has {num_classes}{': ' + ', '.join(known) if trained.names else ''}. Give the data it "
            "was trained for."
        )
    names = (*known, *map(str, range(len(known), num_classes)))
    task = task._replace(names=names)
    seen = read_both(subject, task, config, trained.seed, on_progress)
    counts = {"encoder": measure(model, seen, subject, task, config, "encoder", on_progress)}
    notes = [*what_was_shown(config), "Measured without training: the random initialisation was not trained again."]
    if trained.images and trained.images != (task.train.source.fingerprint(), task.test.source.fingerprint()):
        notes.append(
            "Careful: these are other images than when it was trained; those it learned from may be among the test "
            "images."
        )
    if trained.answer is not None:
        constant = ConstantSegmenter(trained.answer)
        counts[CONSTANT] = measure(constant, seen, subject, task, config, CONSTANT, None)
    return result_of(subject, task, config, trained.seed, seen, counts, notes, time.monotonic() - started)


def _identity(subject: Subject, task: Task, config: SegmentationConfig, seed: int) -> Identity:
    """All that decides the numbers."""
    settings = config.model_dump(mode="json", exclude={"protocol"})
    settings |= {
        "seed": seed,
        "train": task.train.source.fingerprint(),
        "test": task.test.source.fingerprint(),
        "encoder": weights_fingerprint(subject.encoder),
        "image_size": subject.size,
        "precision": subject.precision,
    }
    return Identity(f"segmentation {config.protocol}", settings)


@contextlib.contextmanager
def _working_folder(
    run_dir: Path | None, config: SegmentationConfig, identity: Identity, resume: bool
) -> Iterator[Path]:
    """Where checkpoints go: `run_dir`, held by this process alone, or a folder that vanishes."""
    if run_dir is None:
        with tempfile.TemporaryDirectory(prefix="halfseen-segment-") as made:
            yield Path(made)
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run_dir: '{run_dir}' is a file. Give a folder for the segmentation model.")
    mark = run_dir / IDENTITY
    if not mark.is_file() and any((run_dir / name).exists() for name in (CONFIG, "encoder.json", CHECKPOINTS)):
        raise ConfigError(
            f"run_dir: '{run_dir}' holds another run, whose encoder would be overwritten. Give another folder."
        )
    if mark.is_file() and not resume:
        raise ConfigError(
            f"run_dir: '{run_dir}' holds a segmentation already. Add --resume to go on with it, or give another folder."
        )
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["identity"] != identity.digest:
        raise CheckpointError(
            f"run_dir: the segmentation in '{run_dir}' was begun with other settings, images or weights. Give those "
            "again, or another folder."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    with hold_folder(run_dir):
        write_json(mark, {"protocol": config.protocol, "identity": identity.digest})
        yield run_dir

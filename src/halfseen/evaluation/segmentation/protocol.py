"""Segmentation: an encoder measured by the classes of pixels, by ViNy's protocol or with frozen patch tokens.

The encoder, the same network at random initialisation and raw pixels (where tokens are frozen) or a constant answer
see the same images, learn in the same way, and are scored image by image.
"""

import contextlib
import copy
import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import export_encoder, load_encoder
from halfseen.data.resident import (
    Resident,
    ResidentAugmentation,
    ResidentLoader,
    apply_augmentation,
    read_resident,
)
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import JoinedSource
from halfseen.data.subsets import draw_train_and_test
from halfseen.engine.checkpoint import FOLDER as CHECKPOINTS
from halfseen.engine.checkpoint import Identity
from halfseen.engine.folder import CONFIG, hold_folder, write_json
from halfseen.engine.precision import autocast
from halfseen.errors import CheckpointError, ConfigError, DataError, WeightsError
from halfseen.evaluation.features import Precision, draw_subset
from halfseen.evaluation.resident_training import logged_curves, train_resident, weights_fingerprint
from halfseen.evaluation.results import ClassResult, Result, SplitUsed
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.models import (
    RAW_MEAN,
    RAW_STD,
    CachedTokens,
    ConstantSegmenter,
    EncoderTokens,
    KnnSegmenter,
    LinearSegmenter,
    PatchTokens,
    RawPatches,
    SegmentationModel,
    Segmenter,
    check_size,
    import_segmentation_model,
)
from halfseen.evaluation.statements import Split, compare, fingerprints_of, mask_names_of, what_was_seen
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.patch_labels import majority_labels, patch_histogram
from halfseen.ops.pixels import Channels
from halfseen.ops.randomness import numpy_generator, stream_seed
from halfseen.ops.segmentation import IGNORED, dataset_class_iou, image_scores, pixel_confusion

HEAD, IDENTITY, TRAINING = "head.safetensors", "segmentation.json", "training"
EXAMPLES = Path("figures") / "segmentation_example.npz"
NUM_EXAMPLES = 4
TEST_SHARE = 0.2
"""Share of the images that becomes the test split where the data has one split only."""

FORWARD_IMAGES = 64
RESAMPLES = 2000
CONSTANT = "largest_class"
"""The baseline that gives every pixel the class that most training pixels have."""


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
        seen = _read_both(subject, task, config, seed, on_progress)
        rivals = _Rivals(subject, task, config, seen.train, folder, seed, resume, on_progress)
        segmenters = rivals.all()
        counts = {
            name: _measure_both(each, seen, subject, task, config, name, on_progress)
            for name, each in segmenters.items()
        }
        answer = most_frequent(seen.train, len(task.names))
        counts[CONSTANT] = _measure_both(ConstantSegmenter(answer), seen, subject, task, config, CONSTANT, None)
        notes = [*_departures(config), *subject.notes]
        result = _result(subject, task, config, seed, seen, counts, notes, time.monotonic() - started)
        result = result.model_copy(update={"curves": rivals.curves()})
        if run_dir is not None:
            own = segmenters["encoder"]
            _write_examples(own, seen.test, counts["encoder"].test, task.names, subject, run_dir / EXAMPLES)
            _write_model(own, subject, task, config, seed, answer, run_dir)
            result.write(run_dir)  # Last: it is the sign that all is there.
            for checkpoints in (run_dir / TRAINING).glob(f"*/{CHECKPOINTS}"):
                shutil.rmtree(checkpoints)  # Nothing goes on from here.
    return result


class Trained(NamedTuple):
    """A segmentation model that needs no training.

    Attributes:
        segmenter: on the CPU.
        subject: its encoder, and how it is run.
        config: by which it was trained; of a foreign file, by which it is to be measured.
        seed: of its training.
        names: of its classes; empty where the file doesn't say.
        answer: the class that most pixels had that it learned from; None where the file doesn't say.
        images: fingerprints of the images that it learned from and was tested on; empty where the file doesn't say.
    """

    segmenter: SegmentationModel | LinearSegmenter
    subject: Subject
    config: SegmentationConfig
    seed: int
    names: tuple[str, ...]
    answer: int | None
    images: tuple[str, ...] = ()


def load_trained(
    path: Path,
    config: SegmentationConfig,
    *,
    device: str = "cpu",
    precision: Precision | None = None,
    workers: int = 0,
    num_heads: int | None = None,
) -> Trained:
    """A model that `segmentation_protocol` wrote into a folder, or a checkpoint of ViNy's own fine-tuning.

    Args:
        config: for a foreign checkpoint, which has no settings; a folder of ours has its own.
        precision: None takes that of the training, fp32 for a foreign checkpoint.
        num_heads: of a foreign encoder, where its sizes don't tell.
    Raises:
        WeightsError: nothing of the kind there.
    """
    if path.is_dir():
        return _load_folder(path, device, precision, workers)
    model = import_segmentation_model(path, num_heads)
    subject = Subject(
        model.encoder,
        None,
        RAW_MEAN,
        RAW_STD,
        str(path),
        role="imported",
        device=device,
        precision=precision or "fp32",
        workers=workers,
    )
    model.class_softmax = config.class_softmax
    return Trained(model, subject, config, 0, (), None)


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
    seen = _read_both(subject, task, config, trained.seed, on_progress)
    counts = {"encoder": _measure_both(model, seen, subject, task, config, "encoder", on_progress)}
    notes = [*_departures(config), "Measured without training: the random initialisation was not trained again."]
    if trained.images and trained.images != (task.train.source.fingerprint(), task.test.source.fingerprint()):
        notes.append(
            "Careful: these are other images than when it was trained; those it learned from may be among the test "
            "images."
        )
    if trained.answer is not None:
        constant = ConstantSegmenter(trained.answer)
        counts[CONSTANT] = _measure_both(constant, seen, subject, task, config, CONSTANT, None)
    return _result(subject, task, config, trained.seed, seen, counts, notes, time.monotonic() - started)


class Task(NamedTuple):
    """What is learned from which images, all checks passed.

    Attributes:
        train, test: the images.
        names: of the classes of pixels.
        notes: how the images were chosen.
    """

    train: Split
    test: Split
    names: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_task(train: Split, test: Split | None, config: SegmentationConfig, seed: int) -> Task:
    """Choose the images and classes before any work is done.

    Raises:
        DataError: see `segmentation_protocol`.
    """
    for split in (train, test):
        if split is not None and not split.source.has_masks:
            split.source.mask(0)  # Says where masks go.
    if test is not None and test.source.fingerprint() == train.source.fingerprint():
        test = None
    notes: list[str] = []
    if config.train_size is not None and config.test_size is not None:
        whole = train.source if test is None else JoinedSource(train.source.name, train.source, test.source)
        rows = draw_train_and_test(
            len(whole), config.train_size, config.test_size, config.split_seed, config.fixed_test_split
        )
        names = whole.mask_names
        splits = [
            Split(whole.subset(part), f"{word}, drawn from all {len(whole)}")
            for part, word in zip(rows, ("train", "test"), strict=True)
        ]
        if not config.fixed_test_split:
            notes.append(
                f"The test images are those after the first {config.train_size} of a permutation (seed "
                f"{config.split_seed}), so they differ between train_size; fixed_test_split=true keeps them."
            )
    elif test is None:
        order = numpy_generator(seed, "segmentation test").permutation(len(train.source))
        kept = max(1, round(TEST_SHARE * len(order)))
        if len(order) < 2:
            raise DataError(f"'{train.source.name}' has {len(order)} images; one to learn from and one to test needed.")
        names = train.source.mask_names
        splits = [
            Split(train.source.subset(np.sort(order[kept:])), f"{train.name}, the rest"),
            Split(train.source.subset(np.sort(order[:kept])), f"{train.name}, a fifth kept apart"),
        ]
        notes.append("There is one split only: a fifth of the images was kept apart as test images.")
    else:
        names = mask_names_of(train, test)
        splits = [train, test]
    if len(names) < 2:
        raise DataError(
            f"the masks of '{train.source.name}' hold {len(names)} class, but at least 2 are needed. Classes count "
            f"from 0, and {IGNORED} means no class: write an object as 1 on a background of 0."
        )
    return Task(splits[0], splits[1], names, tuple(notes))


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


def _augmentation(config: SegmentationConfig) -> ResidentAugmentation:
    return ResidentAugmentation(config.flip, config.contrast, config.freeze_augmentation)


def _read(
    subject: Subject, split: Split, config: SegmentationConfig, words: str, on_progress: OnProgress | None
) -> Resident:
    return read_resident(
        split.source,
        subject.size,
        masks=True,
        resize=config.resize,
        device=subject.device,
        workers=subject.workers,
        on_progress=None if on_progress is None else partial(on_progress, f"reading {words}"),
    )


class _Seen(NamedTuple):
    """Training and test images as they are looked at; augmentation that is drawn once is in them."""

    train: Resident
    test: Resident


def _read_both(
    subject: Subject, task: Task, config: SegmentationConfig, seed: int, on_progress: OnProgress | None
) -> _Seen:
    train = _read(subject, task.train, config, "training images", on_progress)
    test = _read(subject, task.test, config, "test images", on_progress)
    frozen = _augmentation(config)._replace(frozen=True)
    if config.method == "fine-tune" and config.freeze_augmentation:
        train = apply_augmentation(train, frozen, stream_seed(seed, "segmentation views"))
    if config.method == "fine-tune" and config.augment_test:
        test = apply_augmentation(test, frozen, stream_seed(seed, "segmentation test views"))
    return _Seen(train, test)


class _Rivals:
    """The encoder and its baselines, trained in the same way; `data` carries frozen augmentation already."""

    def __init__(
        self,
        subject: Subject,
        task: Task,
        config: SegmentationConfig,
        data: Resident,
        folder: Path,
        seed: int,
        resume: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self.subject, self.task, self.config, self.data = subject, task, config, data
        self.folder, self.seed, self.resume, self.on_progress = folder, seed, resume, on_progress
        self.mean, self.std = normalisation(subject, config)

    def all(self) -> dict[str, Segmenter]:
        """By name, as results name them."""
        encoders = {"encoder": self.subject.encoder, **self.subject.others}
        if self.subject.random_encoder is not None:
            encoders["random_init"] = self.subject.random_encoder()
        if self.config.method == "fine-tune":
            return {name: self._fine_tuned(name, encoder) for name, encoder in encoders.items()}
        found: dict[str, PatchTokens] = {
            name: EncoderTokens(encoder, self.mean, self.std, self.subject.device, self.subject.precision)
            for name, encoder in encoders.items()
        }
        found["raw_pixels"] = RawPatches(self.subject.encoder.stride)
        learn = self._linear if self.config.method == "linear" else self._knn
        return {name: learn(name, tokens) for name, tokens in found.items()}

    def curves(self) -> dict[str, list[float]]:
        """Epochs and losses of the encoder's training."""
        return (
            {} if self.config.method == "knn" else logged_curves(self.folder / TRAINING / "encoder", ("epoch", "loss"))
        )

    @property
    def _sampler(self) -> StepSampler:
        count = len(self.data.labels)
        order = stream_seed(self.seed, "segmentation order")
        return StepSampler(count, min(self.config.batch_size, count), order, drop_last=False)

    def _fine_tuned(self, name: str, encoder: Encoder) -> SegmentationModel:
        model = SegmentationModel(
            copy.deepcopy(encoder),
            len(self.task.names),
            mean=self.mean,
            std=self.std,
            class_softmax=self.config.class_softmax,
            seed=self.seed,
        )
        fresh = None if self.config.freeze_augmentation else _augmentation(self.config)
        loader = ResidentLoader(self.data, self._sampler, stream_seed(self.seed, "segmentation views"), fresh)
        self._train(name, model, loader, weights_fingerprint(encoder))
        return model

    def _linear(self, name: str, tokens: PatchTokens) -> LinearSegmenter:
        cached = self._tokens(name, tokens)
        assert self.data.masks is not None
        patch_size = self.subject.encoder.stride
        model = LinearSegmenter(tokens, cached.shape[-1], len(self.task.names), patch_size, self.seed)
        self._train(name, model, CachedTokens(cached, self.data.masks, self._sampler), _token_key(tokens))
        return model

    def _knn(self, name: str, tokens: PatchTokens) -> KnnSegmenter:
        config, K = self.config, len(self.task.names)
        assert self.data.masks is not None
        labels = majority_labels(patch_histogram(self.data.masks, self.subject.encoder.stride, K)).flatten()
        known = torch.nonzero(labels >= 0).flatten()
        voting = known[
            torch.from_numpy(draw_subset(len(known), config.max_patches, self.seed, "voting patches")).to(known.device)
        ]
        voters = self._tokens(name, tokens).flatten(0, 1)[voting]
        return KnnSegmenter(tokens, voters, labels[voting], K, config.k, config.temperature)

    def _tokens(self, name: str, tokens: PatchTokens) -> Float[Tensor, "n N D"]:
        """Tokens of all training images, computed once."""
        parts = []
        for at in range(0, len(self.data.labels), FORWARD_IMAGES):
            parts.append(tokens(self.data.images[at : at + FORWARD_IMAGES]))
            if self.on_progress is not None:
                done = min(at + FORWARD_IMAGES, len(self.data.labels))
                self.on_progress(f"tokens of training images: {name}", done, len(self.data.labels))
        return torch.cat(parts)

    def _train(
        self,
        name: str,
        model: SegmentationModel | LinearSegmenter,
        loader: ResidentLoader | CachedTokens,
        start: str,
    ) -> None:
        settings = self.config.model_dump(mode="json", exclude={"protocol"})
        settings |= {
            "seed": self.seed,
            "images": self.task.train.source.fingerprint(),
            "start": start,
            "image_size": self.subject.size,
        }
        train_resident(
            model,
            loader,
            self.config.training(loader.steps_per_epoch, len(self.data.labels)),
            self.subject,
            Identity(f"segmentation {self.config.method} {name}", settings),
            self.folder / TRAINING / name,
            seed=self.seed,
            resume=self.resume,
            words=f"training: {name}",
            on_progress=self.on_progress,
        )


def _token_key(tokens: PatchTokens) -> str:
    return weights_fingerprint(tokens.encoder) if isinstance(tokens, EncoderTokens) else "raw pixels"


def normalisation(subject: Subject, config: SegmentationConfig) -> tuple[Channels, Channels]:
    """Mean and spread that are removed from the pixels in [0, 1]."""
    if not config.normalise:
        return RAW_MEAN, RAW_STD
    (r, g, b), (sr, sg, sb) = subject.mean, subject.std
    return (r, g, b), (sr, sg, sb)


@torch.no_grad()
def _measure(
    segmenter: Segmenter, data: Resident, subject: Subject, num_classes: int, words: str, on_progress: OnProgress | None
) -> Int64[Tensor, "n K K"]:
    """Confusion counts of the pixels of each image, on the CPU."""
    assert data.masks is not None
    if isinstance(segmenter, torch.nn.Module):
        segmenter.to(subject.device).eval()
    parts = []
    for at in range(0, len(data.labels), FORWARD_IMAGES):
        views, masks = data.images[at : at + FORWARD_IMAGES], data.masks[at : at + FORWARD_IMAGES]
        with autocast(torch.device(subject.device), subject.precision):
            predictions = segmenter.predict(views)
        parts.append(pixel_confusion(predictions, masks, num_classes))
        if on_progress is not None:
            on_progress(f"measuring: {words}", min(at + FORWARD_IMAGES, len(data.labels)), len(data.labels))
    return torch.cat(parts).cpu()


class _Counts(NamedTuple):
    """Confusion counts of each image, int64 [n, K, K], on the CPU; of training images only where that says something.

    Patches that vote would find themselves among the training images.
    """

    test: Int64[Tensor, "n K K"]
    train: Int64[Tensor, "m K K"] | None


def _measure_both(
    segmenter: Segmenter,
    seen: _Seen,
    subject: Subject,
    task: Task,
    config: SegmentationConfig,
    name: str,
    on_progress: OnProgress | None,
) -> _Counts:
    test = _measure(segmenter, seen.test, subject, len(task.names), f"{name}, test images", on_progress)
    if config.method == "knn":
        return _Counts(test, None)
    words = f"{name}, training images"
    return _Counts(test, _measure(segmenter, seen.train, subject, len(task.names), words, on_progress))


def most_frequent(data: Resident, num_classes: int) -> int:
    """The class that most pixels have, the smallest of those that tie."""
    return int(_pixels(data, num_classes).argmax())


def _pixels(data: Resident, num_classes: int) -> Int64[Tensor, " K"]:
    assert data.masks is not None
    return torch.bincount(data.masks.flatten().int(), minlength=num_classes)[:num_classes]


def _metrics(counts: _Counts) -> dict[str, float]:
    """Percent: means over the images with a counted pixel, and over the pixels of all images."""
    found = _percents(counts.test)
    return found if counts.train is None else found | {f"{k}_train": v for k, v in _percents(counts.train).items()}


def _percents(counts: Int64[Tensor, "n K K"]) -> dict[str, float]:
    scores = image_scores(counts)
    seen = ~scores.accuracy.isnan()
    found = {
        "miou": scores.miou[seen].mean(),
        "accuracy": scores.accuracy[seen].mean(),
        "miou_present": scores.miou_present[seen].mean(),
        "miou_dataset": dataset_class_iou(counts).nan_to_num(0.0).mean(),
    }
    return {name: round(100.0 * float(value), 4) for name, value in found.items()}


def bootstrap_interval(values: Float[Tensor, " n"], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean over images drawn with replacement, in percent for shares in [0, 1]."""
    sample = values.numpy()
    drawn = numpy_generator(seed, "bootstrap").integers(0, len(sample), size=(RESAMPLES, len(sample)), dtype=np.int32)
    low, high = np.percentile(sample[drawn].mean(axis=1), (2.5, 97.5))
    return 100.0 * float(low), 100.0 * float(high)


def _result(
    subject: Subject,
    task: Task,
    config: SegmentationConfig,
    seed: int,
    seen: _Seen,
    counts: Mapping[str, _Counts],
    notes: Sequence[str],
    seconds: float,
) -> Result:
    scores = {name: image_scores(each.test) for name, each in counts.items()}
    counted = ~scores["encoder"].accuracy.isnan()
    if not bool(counted.any()):
        raise DataError(f"no pixel of the test images of '{task.test.source.name}' has a class: all are {IGNORED}.")
    miou = {name: each.miou[counted] for name, each in scores.items()}
    encoder = subject.encoder
    headline: dict[str, float | int] = {"epoch": config.epochs, "lr": config.lr}
    if config.method == "knn":
        headline = {"k": config.k, "temperature": config.temperature}
    return Result(
        protocol=config.protocol,
        protocol_text=_protocol_text(config),
        settings={**config.settings, "image_size": subject.size, "precision": subject.precision},
        headline=headline,
        features="patch tokens of the last block after the final norm",
        feature_dim=encoder.embed_dim,
        role=subject.role,
        encoder=subject.origin,
        data={"train": _used(task.train, seen.train), "test": _used(task.test, seen.test)},
        split=task.test.name,
        seed=seed,
        n=int(counted.sum()),
        n_train=len(seen.train.labels),
        num_classes=len(task.names),
        metrics=_metrics(counts["encoder"]),
        baselines={name: _metrics(each) for name, each in counts.items() if name != "encoder"},
        confidence_interval={name: bootstrap_interval(each, seed) for name, each in miou.items()},
        confidence_text=f"95 % bootstrap interval of miou over the test images ({RESAMPLES} draws); it does not cover "
        "other seeds of training.",
        per_class=_per_class(task.names, {name: each.test for name, each in counts.items()}),
        confusion=None,
        notes=[
            *task.notes,
            *notes,
            *compare(miou),
            *what_was_seen(task.train, task.test, subject.pretrained_on, subject.taught_on),
        ],
        seconds=round(seconds, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        primary="miou",
    )


def _used(split: Split, data: Resident) -> SplitUsed:
    return SplitUsed(
        source=split.source.name,
        split=split.name,
        n=len(data.labels),
        labelled=len(data.labels),
        fingerprint=split.source.fingerprint(),
        skipped=len(data.skipped),
    )


def _per_class(names: Sequence[str], counts: Mapping[str, Int64[Tensor, "n K K"]]) -> list[ClassResult]:
    """Intersection over union of each class over all test pixels; n is the number of images that show the class."""
    shown = (counts["encoder"].sum(dim=2) > 0).sum(dim=0)
    iou = {name: 100.0 * dataset_class_iou(each).nan_to_num(0.0) for name, each in counts.items()}
    return [
        ClassResult(
            name=class_name,
            n=int(shown[index]),
            encoder=round(float(iou["encoder"][index]), 2),
            baselines={name: round(float(each[index]), 2) for name, each in iou.items() if name != "encoder"},
        )
        for index, class_name in enumerate(names)
        if shown[index] > 0
    ]


def _protocol_text(config: SegmentationConfig) -> str:
    match config.method:
        case "fine-tune":
            how = (
                "A linear layer gives the class scores of each patch's pixels from its token; encoder and layer learn "
                f"together, {_schedule_text(config)}"
            )
        case "linear":
            how = (
                "A linear layer gives class scores of each frozen patch token, enlarged bilinearly to pixels, "
                f"{_schedule_text(config)} on tokens that were computed once"
            )
        case "knn":
            how = (
                f"The {config.k} most similar training patches (cosine, T = {config.temperature:g}) vote with their "
                "majority class for all pixels of a patch"
            )
    return (
        f"{how}. Scores: mean over images of the intersection over union of all classes (a class in neither map counts "
        "as 0); miou_present leaves such classes out, miou_dataset pools the pixels of all images. Per class: the "
        "latter."
    )


def _schedule_text(config: SegmentationConfig) -> str:
    drops = ", ".join(f"{100 * ratio:g}" for ratio in config.milestone_ratios)
    optimiser = "AdamW" if config.weight_decay else "Adam"
    tail = f", the rate times {config.gamma:g} after {drops} % of them" if drops else ""
    return f"{config.epochs} epochs of {optimiser} at {config.lr:g}{tail}"


def _departures(config: SegmentationConfig) -> list[str]:
    """What a reader of the numbers must know about the images: ViNy's quirks, or that they are off."""
    if config.method != "fine-tune":
        return [
            "Images are not augmented; the encoder's own normalisation is "
            f"{'removed' if config.normalise else 'not removed'} before it looks."
        ]
    quirks = [
        ("augmentation drawn once per image" if config.freeze_augmentation else "augmentation anew in every epoch"),
        ("test images augmented too" if config.augment_test else "test images as they are"),
        ("pixels normalised" if config.normalise else "pixels in [0, 1], not normalised"),
    ]
    if not config.flip and not config.contrast:
        quirks = ["no augmentation", quirks[2]]
    return [f"This number was made with: {'; '.join(quirks)}."]


def _write_examples(
    segmenter: Segmenter,
    tested: Resident,
    counts: Int64[Tensor, "n K K"],
    names: Sequence[str],
    subject: Subject,
    path: Path,
) -> None:
    """Arrays of a few test images, evenly drawn, for the picture."""
    assert tested.masks is not None
    rows = torch.linspace(0, len(tested.labels) - 1, min(NUM_EXAMPLES, len(tested.labels))).round().long()
    chosen = tested.take(rows)
    assert chosen.masks is not None
    with torch.no_grad(), autocast(torch.device(subject.device), subject.precision):
        predictions = segmenter.predict(chosen.images)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            images=chosen.images.permute(0, 2, 3, 1).cpu().numpy(),
            targets=chosen.masks.cpu().numpy(),
            predictions=predictions.to(torch.uint8).cpu().numpy(),
            miou=image_scores(counts).miou[rows].numpy(),
            names=np.array(names),
        )


def _write_model(
    segmenter: Segmenter,
    subject: Subject,
    task: Task,
    config: SegmentationConfig,
    seed: int,
    answer: int,
    folder: Path,
) -> None:
    """The encoder as others load it, the head beside it; nothing where patches vote."""
    if isinstance(segmenter, SegmentationModel):
        encoder, head, learned = segmenter.encoder, segmenter.head, fingerprints_of(task.train.source)
    elif isinstance(segmenter, LinearSegmenter):
        encoder, head, learned = subject.encoder, segmenter.head, set()
    else:
        return
    tensors = {f"head.{name}": value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    partial_path = folder / f"{HEAD}.partial"
    save_file(tensors, partial_path)
    partial_path.replace(folder / HEAD)
    mean, std = normalisation(subject, config)
    extra = {
        "segmentation": {
            "config": config.model_dump(mode="json"),
            "seed": seed,
            "classes": list(task.names),
            "largest_class": answer,
            "from": subject.origin,
            "image_size": subject.size,
            "precision": subject.precision,
            "images": [task.train.source.fingerprint(), task.test.source.fingerprint()],
            "head": HEAD,
        },
        "taught_on": sorted({*subject.taught_on, *learned}),
    }
    export_encoder(encoder, folder, mean=mean, std=std, role=subject.role, extra=extra)


def _load_folder(folder: Path, device: str, precision: Precision | None, workers: int) -> Trained:
    loaded = load_encoder(folder)
    about = json.loads((folder / "encoder.json").read_text(encoding="utf-8")).get("segmentation")
    if about is None or not (folder / HEAD).is_file():
        raise WeightsError(
            f"encoder: '{folder}' holds no segmentation model. Give a folder that `halfseen segment` wrote, or leave "
            "out --no-training."
        )
    config = SegmentationConfig.model_validate(about["config"])
    used: Precision = precision or about["precision"]
    subject = Subject(
        loaded.encoder,
        None,
        loaded.mean,
        loaded.std,
        str(folder),
        role=loaded.role,
        image_size=about["image_size"],
        device=device,
        precision=used,
        workers=workers,
    )
    mean, std, K = loaded.mean, loaded.std, len(about["classes"])
    segmenter: SegmentationModel | LinearSegmenter
    if config.method == "linear":
        tokens = EncoderTokens(loaded.encoder, mean, std, device, used)
        segmenter = LinearSegmenter(tokens, loaded.encoder.embed_dim, K, loaded.encoder.stride)
    else:
        segmenter = SegmentationModel(loaded.encoder, K, mean=mean, std=std, class_softmax=config.class_softmax)
    head = {name.removeprefix("head."): value for name, value in load_file(folder / HEAD).items()}
    segmenter.head.load_state_dict(head)
    classes, images = tuple(about["classes"]), tuple(about["images"])
    return Trained(segmenter, subject, config, about["seed"], classes, about["largest_class"], images)

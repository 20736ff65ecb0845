"""Evaluations for Python: `halfseen.evaluate.knn(...)` does what `halfseen knn` does and returns the result.

Every function takes words as the command line does. `encoder` is a run's folder, an encoder.safetensors, an official
checkpoint or timm:NAME; `train` and `test` are DATA (a folder, a manifest, bundled:fashion, torchvision:NAME ...), the
run's own where `train` is None, and the test split of `train`, or all of it, where `test` is None. `overrides` are
settings as on the command line, "k=[20]" or "lr=[0.1,1]". A run lends its settings to the images it was trained on.

Nothing is written but the folder of what is trained; `result.write(folder)` makes the json file that reports read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import LoadedEncoder, load_encoder
from halfseen.config.load import Layer, Loaded, load_config, parse_override
from halfseen.config.yaml_text import scalar_text
from halfseen.data.label_splits import LabelSplit, draw_label_splits, read_label_split
from halfseen.data.sources import Source, open_source
from halfseen.errors import ConfigError
from halfseen.evaluation.clustering import ClusterConfig, Head, cluster_protocol
from halfseen.evaluation.finetuning.config import FinetuneConfig
from halfseen.evaluation.finetuning.protocol import FinetuneOutcome
from halfseen.evaluation.finetuning.protocol import finetune as run_finetune
from halfseen.evaluation.finetuning.published import Protocol, finetune_settings
from halfseen.evaluation.knn.protocol import knn_protocol
from halfseen.evaluation.linear.config import LinearConfig, linear_protocol_settings
from halfseen.evaluation.linear.protocol import linear_protocol
from halfseen.evaluation.low_shot.config import LogisticConfig
from halfseen.evaluation.low_shot.protocol import logistic_protocol
from halfseen.evaluation.results import KNNConfig, Result
from halfseen.evaluation.segmentation.config import SegmentationConfig, segmentation_settings
from halfseen.evaluation.segmentation.protocol import segmentation_protocol
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.opening import (
    Run,
    find_run,
    forward_settings,
    need_run,
    open_images,
    open_test,
    subject_of,
    whole_or_split,
)
from halfseen.pretraining.build import load_method, untrained_method

__all__ = ["cluster", "finetune", "knn", "linear", "logistic", "segment"]

PER_CLASS = (1, 2, 5)
DRAWS = 3


def knn(
    encoder: str | Path,
    train: str | None = None,
    test: str | None = None,
    *,
    overrides: Sequence[str] = (),
    role: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    workers: int = 0,
    pretrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Weighted k-nearest neighbours of a frozen encoder, beside random initialisation and raw pixels.

    Args:
        encoder, train, test: as above; the images of `train` vote.
        overrides: settings of `KNNConfig`; all images are used unless max_train and max_test limit them. A k that is
            named here must not be larger than the number of voters; others are left out then.
        role: "student" or "teacher", of a run that has both.
        image_size: side of the images in pixels; None = the encoder's.
        seed: draws subsets, and the random baseline of an encoder that isn't a run's.
        device: "cpu", "cuda" or "mps"; None = the fastest one found.
        precision: "fp32", "bf16" or "fp16"; None = the run's, else fp32.
        workers: loader processes.
        pretrained: download timm's weights for timm:NAME.
    Raises:
        HalfseenError: a sentence on what does not fit, for instance images without labels.
    """
    run = find_run(str(encoder))
    own = {} if run is None else run.config.evaluate.model_dump(mode="json", include=set(KNNConfig.model_fields))
    layer = Layer("the run", {**own, "max_train": None, "max_test": None})
    config = load_config(KNNConfig, [layer], list(overrides)).config
    voters = _own_or(train, run, "train")
    _, subject = _open(encoder, run, role, image_size, seed, device, precision, workers, pretrained)
    return knn_protocol(
        subject,
        Split(open_images(voters, "train", run), "train"),
        open_test(test if test is not None else voters, voters, run),
        config,
        seed=seed,
        strict_k=any(parse_override(word).dotted == "k" for word in overrides),
        on_progress=on_progress,
    )


def linear(
    encoder: str | Path,
    train: str | None = None,
    test: str | None = None,
    *,
    protocol: str = "linear",
    overrides: Sequence[str] = (),
    role: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    workers: int = 0,
    pretrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Linear classifiers on a frozen encoder, beside random initialisation and raw pixels.

    Args:
        protocol: one of `LINEAR_PROTOCOLS`, such as "linear", "ibot-linear" or "mae-linear".
        overrides: settings of `LinearConfig`.
        encoder, train, test, role, image_size, seed, device, precision, workers, pretrained: see `knn`.
    Raises:
        HalfseenError: a sentence on what does not fit.
    """
    run = find_run(str(encoder))
    trained_on = _own_or(train, run, "train")
    linear_protocol_settings(protocol)
    loaded, subject = _open(encoder, run, role, image_size, seed, device, precision, workers, pretrained)
    config = _linear_settings(protocol, run, loaded.encoder, overrides)
    return linear_protocol(
        subject,
        Split(open_images(trained_on, "train", run), "train"),
        open_test(test if test is not None else trained_on, trained_on, run),
        config,
        seed=seed,
        on_progress=on_progress,
    )


def logistic(
    encoder: str | Path,
    train: str | None = None,
    test: str | None = None,
    *,
    splits: Sequence[str | Path] = (),
    per_class: Sequence[int] | None = None,
    fractions: Sequence[float] = (),
    draws: int = DRAWS,
    overrides: Sequence[str] = (),
    role: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    workers: int = 0,
    pretrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Logistic regression on a few labels (MSN), beside random initialisation and raw pixels.

    Args:
        splits: files in MSN's format that say which images have a label, or folders of such; none: they are drawn.
        per_class: draw so many images of each class; None = 1, 2 and 5, or none where there are fractions.
        fractions: draw such shares of the images.
        draws: how often each is drawn.
        overrides: settings of `LogisticConfig`. An encoder without a class token gets feature=mean-before-norm.
        encoder, train, test, role, image_size, seed, device, precision, workers, pretrained: see `knn`.
    Raises:
        HalfseenError: a sentence on what does not fit.
    """
    run = find_run(str(encoder))
    labelled = _own_or(train, run, "train")
    loaded, subject = _open(encoder, run, role, image_size, seed, device, precision, workers, pretrained)
    config = _logistic_settings(run, loaded.encoder, overrides)
    source = open_images(labelled, "train", _whole(run))
    if splits:
        chosen = _read_splits(splits, source)
    else:
        counts = per_class if per_class is not None else () if fractions else PER_CLASS
        chosen = [
            split
            for draw in range(draws)
            for split in draw_label_splits(source, per_class=counts, fractions=fractions, draw=draw, seed=seed)
        ]
    return logistic_protocol(
        subject,
        Split(source, "train"),
        open_test(test if test is not None else labelled, labelled, run),
        chosen,
        config,
        seed=seed,
        on_progress=on_progress,
    )


def cluster(
    encoder: str | Path,
    data: str | None = None,
    *,
    overrides: Sequence[str] = (),
    role: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    workers: int = 0,
    pretrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Clusters of the images beside their classes, and beside those of random initialisation and raw pixels.

    Args:
        data: DATA that is grouped, its test split or all of it; None = the run's own.
        overrides: settings of `ClusterConfig`; source=head takes the run's own head in place of k-means.
        encoder, role, image_size, seed, device, precision, workers, pretrained: see `knn`.
    Raises:
        HalfseenError: a sentence on what does not fit.
    """
    run = find_run(str(encoder))
    kept = ("feature", "resize", "crop_ratio", "batch_size")
    own = {} if run is None else {name: getattr(run.config.evaluate, name) for name in kept}
    config = load_config(ClusterConfig, [Layer("the run", own, gives_way=True)], list(overrides)).config
    grouped = _own_or(data, run, "data")
    loaded, subject = _open(encoder, run, role, image_size, seed, device, precision, workers, pretrained)
    heads: dict[str, Head] | None = None
    if config.source == "head":
        subject, heads = _with_heads(need_run(str(encoder)), subject, loaded)
    split = whole_or_split(grouped, "test")
    images = Split(open_images(grouped, split, run), split if split == "test" else "all")
    return cluster_protocol(subject, images, config, heads=heads, seed=seed, on_progress=on_progress)


def segment(
    encoder: str | Path,
    train: str | None = None,
    test: str | None = None,
    *,
    protocol: str = "viny-segmentation",
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    resume: bool = False,
    role: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    workers: int = 0,
    pretrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Classes of pixels: fine-tuned (ViNy), or with frozen patch tokens, beside random initialisation.

    Args:
        protocol: "viny-segmentation", "linear-segmentation" or "knn-segmentation".
        overrides: settings of `SegmentationConfig`, such as "train_size=250".
        run_dir: folder for the model and its checkpoints; None keeps nothing.
        resume: go on with what was interrupted in `run_dir`.
        encoder, train, test, role, image_size, seed, device, precision, workers, pretrained: see `knn`.
    Raises:
        HalfseenError: a sentence on what does not fit.
    """
    run = find_run(str(encoder))
    config = segmentation_config(protocol, overrides)
    learned = _own_or(train, run, "train")
    loaded, subject = _open(encoder, run, role, image_size, seed, device, precision, workers, pretrained)
    return segmentation_protocol(
        subject,
        *segmentation_splits(learned, test, run, loaded.encoder.image_size),
        config,
        seed=seed,
        run_dir=None if run_dir is None else Path(run_dir),
        resume=resume,
        on_progress=on_progress,
    )


def segmentation_config(protocol: str, overrides: Sequence[str]) -> SegmentationConfig:
    """The settings of a protocol with what overrules them."""
    published = SegmentationConfig.model_validate(segmentation_settings(protocol)).model_dump(mode="json")
    return load_config(SegmentationConfig, [Layer(f"the protocol {protocol}", published)], list(overrides)).config


def segmentation_splits(train: str, test: str | None, run: Run | None, size: int) -> tuple[Split, Split | None]:
    """The two sides; composed scenes are drawn for the encoder's size, so that they are the same in every call."""
    learned = Split(open_images(train, "train", run, size), "train")
    return learned, open_test(test if test is not None else train, train, run, size)


def finetune(
    encoder: str | Path,
    train: str | None = None,
    test: str | None = None,
    *,
    protocol: str = "finetune",
    overrides: Sequence[str] = (),
    role: str | None = None,
    pretrained: bool = False,
) -> FinetuneOutcome:
    """Train an encoder on as a classifier and measure it.

    Args:
        protocol: "finetune", or a published one such as "mae-finetune" or "simmim-finetune".
        overrides: settings of `FinetuneConfig`: "run_dir=runs/mine" names the folder, "seed=1", "runtime.device=cpu",
            "train.epochs=20" ...
        encoder, train, test, role, pretrained: see `knn`.
    Returns:
        What the run left: its result, where the classifier is, whether it came to its end.
    Raises:
        HalfseenError: a sentence on what does not fit.
    """
    changes = [*([] if test is None else [f"test={scalar_text(test)}"]), *overrides]
    subject, config, settings = prepare_finetune(str(encoder), changes, train, protocol, role, pretrained)
    return run_finetune(subject, *finetune_splits(config.config), config, settings)


def prepare_finetune(
    word: str, changes: Sequence[str], train: str | None, name: str, role: str | None, pretrained: bool
) -> tuple[Subject, Loaded[FinetuneConfig], Protocol]:
    """A fine-tuning run that begins: its encoder, and the protocol's settings for it.

    Args:
        word: the encoder.
        changes: settings as on the command line.
        train: DATA to train on; None = a run's own.
        name: of the protocol.
        role, pretrained: see `knn`.
    """
    run = find_run(word)
    loaded = load_encoder(word, role, pretrained=pretrained)
    asked = next((text.partition("=")[2] for text in changes if text.startswith("data.image_size=")), None)
    size = int(asked) if asked is not None and asked.isdigit() else loaded.image_size
    settings = finetune_settings(name, loaded.encoder, size)
    own: dict[str, object] = {
        "encoder": word,
        "data": {
            **({} if run is None else _of_run(run)),
            "image_size": loaded.image_size,
            "mean": list(loaded.mean),
            "std": list(loaded.std),
        },
    }
    source = _own_or(train, run, "train")
    layers = [Layer(f"the protocol {name}", settings.settings, gives_way=True), Layer("the encoder", own)]  # type: ignore[arg-type]
    if train is not None:
        changes = [f"data.source={scalar_text(source)}", *changes]
    config = load_config(FinetuneConfig, layers, list(changes))
    runtime = config.config.runtime
    return subject_of(loaded, runtime, run, config.config.seed, runtime.workers), config, settings


def finetune_splits(config: FinetuneConfig) -> tuple[Split, Split | None]:
    """Training and test images; None for these where they have to be cut off the training images."""
    source = config.data.source
    train = Split(open_source(source, "train", config=config.data), "train")
    asked = config.test or source
    split = whole_or_split(asked, "test")
    if split == "train" and asked == source:
        return train, None
    return train, Split(open_source(asked, split, config=config.data), split if split == "test" else "all")


def _own_or(data: str | None, run: Run | None, name: str) -> str:
    if data is not None:
        return data
    if run is None:
        raise ConfigError(f"{name}: missing. Only a run has images of its own; name some, such as 'bundled:fashion'.")
    return run.config.data.source


def _open(
    encoder: str | Path,
    run: Run | None,
    role: str | None,
    image_size: int | None,
    seed: int,
    device: str | None,
    precision: str | None,
    workers: int,
    pretrained: bool,
) -> tuple[LoadedEncoder, Subject]:
    forward = forward_settings(device, precision, run)
    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    return loaded, subject_of(loaded, forward, run, seed, workers)


def _linear_settings(protocol: str, run: Run | None, encoder: Encoder, overrides: Sequence[str]) -> LinearConfig:
    """The protocol's settings; from a run how its images are cut and, for `linear`, which features it looks at."""
    published = LinearConfig.model_validate(linear_protocol_settings(protocol, encoder)).model_dump(mode="json")
    kept = ("resize", "crop_ratio", "feature") if protocol == "linear" else ("crop_ratio",)
    own = {} if run is None else {name: getattr(run.config.evaluate, name) for name in kept}
    layers = [Layer(f"the protocol {protocol}", published), Layer("the run", own)]
    return load_config(LinearConfig, layers, list(overrides)).config


def _logistic_settings(run: Run | None, encoder: Encoder, overrides: Sequence[str]) -> LogisticConfig:
    """The protocol's settings; from a run how its images are cut and how many go through at once."""
    kept = ("resize", "crop_ratio", "batch_size")
    own = {} if run is None else {name: getattr(run.config.evaluate, name) for name in kept}
    feature = {} if encoder.has_class_token else {"feature": "mean-before-norm"}
    layers = [Layer("the encoder", feature), Layer("the run", own)]
    return load_config(LogisticConfig, layers, list(overrides)).config


def _whole(run: Run | None) -> Run | None:
    """The run with all images of its training split: a list of labels is one of the whole split."""
    if run is None:
        return None
    names = ("subset_size", "subset_fraction", "subset_per_class", "subset_fraction_per_class", "subset_list")
    data = run.config.data.model_copy(update=dict.fromkeys(names))
    return Run(run.folder, run.config.model_copy(update={"data": data}))


def _read_splits(paths: Sequence[str | Path], source: Source) -> list[LabelSplit]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"--split: the folder '{path}' holds no .txt file.")
        files += inside
    return [read_label_split(file, source, draw) for draw, file in enumerate(files)]


def _with_heads(run: Run, subject: Subject, loaded: LoadedEncoder) -> tuple[Subject, dict[str, Head]]:
    """The run's encoder and head, trained and untrained, of its newest checkpoint: both of one step.

    Raises:
        ConfigError: the run's method has no such head.
    """
    trained, untrained = load_method(run.folder).eval(), untrained_method(run.config).eval()
    heads = trained.class_heads()
    if loaded.role not in heads:
        raise ConfigError(
            f"source: got 'head', but '{trained.name}' as it was trained here has no head that gives images to one of "
            "several outputs. iBOT, DINO, AttMask and MSN have; take source=features."
        )
    if loaded.encoder.image_size != run.config.data.image_size:
        raise ConfigError(
            f"--image-size: got {loaded.encoder.image_size}, but a head is measured at the size it was trained with, "
            f"{run.config.data.image_size}. Leave it out."
        )
    subject = replace(
        subject,
        encoder=trained.encoders()[loaded.role],
        random_encoder=lambda: untrained.encoders()["student"],
    )
    return subject, {"encoder": heads[loaded.role], "random_init": untrained.class_heads()["student"]}


def _of_run(run: Run) -> dict[str, object]:
    """Where a run's images are; which of them it was trained on is not what fine-tuning is restricted to."""
    data = run.config.data
    return {"source": data.source, "root_dir": data.root_dir, "skip_list": data.skip_list}

"""`halfseen logistic`: what a frozen encoder is worth with a few labels, by MSN's logistic regression."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.inputs import (
    Run,
    find_run,
    forward_settings,
    open_images,
    open_test,
    progress_line,
    show_result,
)
from halfseen.cli.measuring import (
    CropRatio,
    Device,
    EncoderWord,
    ForwardBatch,
    ImageSize,
    LastBlocks,
    MaxTest,
    Precision,
    Pretrained,
    Role,
    TestData,
    Workers,
    labelled_data,
    subject_of,
)
from halfseen.config.load import Layer
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.data.label_splits import LabelSplit
    from halfseen.data.sources import Source
    from halfseen.evaluation.low_shot import LogisticConfig

PER_CLASS = (1, 2, 5)


def command(
    encoder: EncoderWord,
    train: Annotated[
        str | None, typer.Option(help="DATA of which a few images have a label; a run's own data if left out.")
    ] = None,
    test: TestData = None,
    split: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Which images have a label, in MSN's format; a folder of such files too. "
            "Repeatable: files of one size are draws of one experiment.",
        ),
    ] = None,
    per_class: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Draw N images of each class; repeatable. Default 1, 2, 5."),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", help="Draw a share of the images: 0.01 for 1 %, 1 for all; repeatable."),
    ] = None,
    draws: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many draws of each; default 3.")] = None,
    lambd: Annotated[
        list[float] | None,
        typer.Option(help="Penalty; repeatable, the first is the headline. Default: MSN's values and a sweep."),
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option(help="cls-before-norm (default), mean-before-norm, cls, mean, cls+mean or mean-plain-norm."),
    ] = None,
    last_blocks: LastBlocks = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Centre each feature vector, scale it to length 1.")
    ] = True,
    role: Role = None,
    image_size: ImageSize = None,
    crop_ratio: CropRatio = None,
    max_test: MaxTest = None,
    batch_size: ForwardBatch = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws the labels, the test subset and the random baseline of a foreign encoder.")
    ] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for msn-logistic.json; RUN/evaluations, or ./evaluations, if left out.")
    ] = None,
) -> None:
    """Measure a frozen encoder by logistic regression on a few labelled images.

    The same network at random initialisation and raw pixels are measured beside it.

    Example: halfseen logistic runs/demo --train bundled:fashion --test bundled:fashion --per-class 5
    """
    run = find_run(encoder)
    if split and (per_class or fraction or draws is not None):
        raise ConfigError("--split: it says which images have a label; leave --per-class, --fraction and --draws out.")
    labelled = labelled_data(train, run, "the images of which a few have a label")
    queries = test if test is not None else labelled

    from halfseen.backbones.weights import load_encoder
    from halfseen.evaluation.low_shot import logistic_protocol
    from halfseen.evaluation.statements import Split

    forward = forward_settings(device, precision, run)
    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    if feature is None and not loaded.encoder.has_class_token:
        feature = "mean-before-norm"
    options = {
        "lambd": lambd[0] if lambd else None,
        "sweep": lambd,
        "feature": feature,
        "last_blocks": last_blocks,
        "normalize": str(normalize).lower(),
        "crop_ratio": crop_ratio,
        "max_test": max_test,
        "batch_size": batch_size,
    }
    config = _settings(run, options)
    source = open_images(labelled, "train", _whole(run))
    if split:
        splits = _read_splits(split, source)
    else:
        counts = per_class or (() if fraction else PER_CLASS)
        splits = _draw_splits(source, counts, fraction or (), 3 if draws is None else draws, seed)
    test_images = open_test(queries, labelled, run)
    with progress_line() as on_progress:
        result = logistic_protocol(
            subject_of(loaded, forward, run, seed, workers),
            Split(source, "train"),
            test_images,
            splits,
            config,
            seed=seed,
            on_progress=on_progress,
        )
    show_result(result, run, out)


def _settings(run: Run | None, options: Mapping[str, object]) -> "LogisticConfig":
    """The protocol's settings; from a run how its images are cut and how many go through at once."""
    from halfseen.config.load import load_config
    from halfseen.evaluation.low_shot import LogisticConfig

    kept = ("resize", "crop_ratio", "batch_size")
    own = {} if run is None else {name: getattr(run.config.evaluate, name) for name in kept}
    changes = [f"{name}={value}" for name, value in options.items() if value is not None]
    return load_config(LogisticConfig, [Layer("the run", own)], changes).config


def _whole(run: Run | None) -> Run | None:
    """The run with all images of its training split: a list of labels is one of the whole split."""
    if run is None:
        return None
    names = ("subset_size", "subset_fraction", "subset_per_class", "subset_fraction_per_class", "subset_list")
    data = run.config.data.model_copy(update=dict.fromkeys(names))
    return Run(run.folder, run.config.model_copy(update={"data": data}))


def _read_splits(paths: Sequence[Path], source: "Source") -> "list[LabelSplit]":
    from halfseen.data.label_splits import read_label_split

    files = []
    for path in paths:
        inside = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"--split: the folder '{path}' holds no .txt file.")
        files += inside
    return [read_label_split(file, source, draw) for draw, file in enumerate(files)]


def _draw_splits(
    source: "Source", per_class: Sequence[int], fractions: Sequence[float], draws: int, seed: int
) -> "list[LabelSplit]":
    from halfseen.data.label_splits import draw_label_splits

    return [
        split
        for draw in range(draws)
        for split in draw_label_splits(source, per_class=per_class, fractions=fractions, draw=draw, seed=seed)
    ]

"""`halfseen logistic`: what a frozen encoder is worth with a few labels, by MSN's logistic regression."""

from pathlib import Path
from typing import Annotated

import typer

from halfseen.cli.inputs import find_run, progress_line, show_result
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
)
from halfseen.errors import ConfigError


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
    penalty: Annotated[
        str | None, typer.Option(help="l2 (default) or elastic-net (absolute weights too; slow).")
    ] = None,
    mask: Annotated[
        float | None, typer.Option(help="Share of the patches that labelled images lose, e.g. 0.7; default 0.")
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
    options = {
        "lambd": lambd[0] if lambd else None,
        "sweep": lambd,
        "penalty": penalty,
        "mask": mask,
        "feature": feature,
        "last_blocks": last_blocks,
        "normalize": str(normalize).lower(),
        "crop_ratio": crop_ratio,
        "max_test": max_test,
        "batch_size": batch_size,
    }
    changes = [f"{name}={value}" for name, value in options.items() if value is not None]

    from halfseen.evaluate import DRAWS, logistic

    with progress_line() as on_progress:
        result = logistic(
            encoder,
            labelled,
            test,
            splits=split or (),
            per_class=per_class,
            fractions=fraction or (),
            draws=DRAWS if draws is None else draws,
            overrides=changes,
            role=role,
            image_size=image_size,
            seed=seed,
            device=device,
            precision=precision,
            workers=workers,
            pretrained=pretrained,
            on_progress=on_progress,
        )
    show_result(result, run, out)

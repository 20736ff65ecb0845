"""`halfseen linear`: what a frozen encoder is worth to a linear classifier, by the published protocols."""

from pathlib import Path
from typing import Annotated

import typer

from halfseen.cli.arguments import sort_words
from halfseen.cli.inputs import find_run, progress_line, show_result
from halfseen.cli.measuring import (
    CropRatio,
    Device,
    EncoderWord,
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
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any other setting, e.g. lr=[0.1,0.3] or weight_decay=[0,1e-6]."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="DATA to train the classifiers on; a run's own data if left out.")
    ] = None,
    test: TestData = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="linear (cached features), ibot-linear, dino-linear, msn-linear, mae-linear, kamim-linear or "
            "localmim-linear."
        ),
    ] = "linear",
    feature: Annotated[
        str | None,
        typer.Option(help="cls, mean, cls+mean, cls-before-norm, mean-before-norm or mean-plain-norm; the protocol's."),
    ] = None,
    last_blocks: LastBlocks = None,
    layer: Annotated[int | None, typer.Option(min=1, help="Block that stands for the last one.")] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="none (features computed once: fast), crop, tf-crop or trivial.")
    ] = None,
    choose: Annotated[
        str | None, typer.Option(help="Which classifier is reported: held-out, test (too high) or last.")
    ] = None,
    lr: Annotated[list[float] | None, typer.Option(help="Learning rate before scaling; may be repeated.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    role: Role = None,
    image_size: ImageSize = None,
    crop_ratio: CropRatio = None,
    max_train: Annotated[int | None, typer.Option(min=2, help="Most training images, drawn by seed.")] = None,
    max_test: MaxTest = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws weights, order, views, subsets, and a foreign encoder's random baseline.")
    ] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for PROTOCOL.json; RUN/evaluations, or ./evaluations, if left out.")
    ] = None,
) -> None:
    """Measure a frozen encoder by linear classifiers.

    The same network at random initialisation and raw pixels are measured beside it.

    Example: halfseen linear runs/demo --train bundled:fashion --test bundled:fashion
    """
    run = find_run(encoder)
    found = sort_words(words or [])
    if found.data is not None:
        raise ConfigError(f"got '{found.data}', expected KEY=VALUE. Name the images by --train and --test.")
    options = {
        "feature": feature,
        "last_blocks": last_blocks,
        "layer": layer,
        "augmentation": augmentation,
        "choose": choose,
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "crop_ratio": crop_ratio,
        "max_train": max_train,
        "max_test": max_test,
    }
    changes = [f"{name}={value}" for name, value in options.items() if value is not None] + found.overrides
    trained_on = labelled_data(train, run, "the labelled images to train the classifiers on")

    from halfseen.evaluate import linear

    with progress_line() as on_progress:
        result = linear(
            encoder,
            trained_on,
            test,
            protocol=protocol,
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

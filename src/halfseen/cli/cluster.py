"""`halfseen cluster`: whether clusters of the features, found without labels, agree with the classes."""

from pathlib import Path
from typing import Annotated

import typer

from halfseen.cli.arguments import sort_words
from halfseen.cli.inputs import find_run, progress_line, show_result
from halfseen.cli.measuring import (
    CropRatio,
    Device,
    EncoderWord,
    ForwardBatch,
    ImageSize,
    LastBlocks,
    Precision,
    Pretrained,
    Role,
    Workers,
    labelled_data,
)
from halfseen.errors import ConfigError


def command(
    encoder: EncoderWord,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any other setting, e.g. normalize=false or restarts=10."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="DATA that is grouped: its test split, or all of it; a run's own data if left out."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="features (k-means; default) or head (the largest output of the run's own head: iBOT, MSN)."),
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(min=2, help="Clusters of k-means; default: one for each class.")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="How many times k-means starts anew; default 5.")] = None,
    feature: Annotated[
        str | None, typer.Option(help="cls, mean, cls+mean or mean-before-norm; the run's choice, else mean.")
    ] = None,
    last_blocks: LastBlocks = None,
    role: Role = None,
    image_size: ImageSize = None,
    crop_ratio: CropRatio = None,
    max_images: Annotated[int | None, typer.Option(min=2, help="Most images that are grouped, drawn by seed.")] = None,
    batch_size: ForwardBatch = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws starts, subset and the random baseline of a foreign encoder.")
    ] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for cluster.json; RUN/evaluations, or ./evaluations, if left out."),
    ] = None,
) -> None:
    """Compare clusters of the images, found without labels, with their classes.

    The same network at random initialisation and raw pixels are measured beside it.

    Example: halfseen cluster runs/demo --data bundled:fashion
    """
    run = find_run(encoder)
    found = sort_words(words or [])
    if found.data is not None:
        raise ConfigError(f"got '{found.data}', expected KEY=VALUE. Name the images by --data.")
    options = {
        "source": source,
        "clusters": clusters,
        "runs": runs,
        "feature": feature,
        "last_blocks": last_blocks,
        "crop_ratio": crop_ratio,
        "max_images": max_images,
        "batch_size": batch_size,
    }
    changes = [f"{name}={value}" for name, value in options.items() if value is not None] + found.overrides
    grouped = labelled_data(data, run, "the images to group", option="--data")

    from halfseen.evaluate import cluster

    with progress_line() as on_progress:
        result = cluster(
            encoder,
            grouped,
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

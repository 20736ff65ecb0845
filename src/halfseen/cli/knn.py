"""`halfseen knn`: how well the nearest neighbours in feature space agree on the class, beside both baselines."""

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
    MaxTest,
    Precision,
    Pretrained,
    Role,
    TestData,
    Workers,
    labelled_data,
)


def command(
    encoder: EncoderWord,
    train: Annotated[
        str | None, typer.Option(help="DATA whose labelled images vote; a run's own data if left out.")
    ] = None,
    test: TestData = None,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Voting neighbours; may be repeated.")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="T of the votes exp(cosine/T); may be repeated. Default 0.07.")
    ] = None,
    feature: Annotated[
        str | None, typer.Option(help="cls, mean, cls+mean or mean-before-norm; the run's choice, else mean.")
    ] = None,
    role: Role = None,
    image_size: ImageSize = None,
    crop_ratio: CropRatio = None,
    max_train: Annotated[int | None, typer.Option(min=2, help="Most images that vote, drawn by seed.")] = None,
    max_test: MaxTest = None,
    batch_size: ForwardBatch = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws the subsets and the random baseline of a foreign encoder.")
    ] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for knn.json; RUN/evaluations, or ./evaluations, if left out.")
    ] = None,
) -> None:
    """Measure a frozen encoder by weighted k-nearest neighbours.

    The same network at random initialisation and raw pixels are measured beside it.

    Example: halfseen knn runs/demo --train bundled:fashion --test bundled:fashion --k 20
    """
    run = find_run(encoder)
    options = {
        "k": k,
        "temperature": temperature,
        "feature": feature,
        "crop_ratio": crop_ratio,
        "max_train": max_train,
        "max_test": max_test,
        "batch_size": batch_size,
    }
    changes = [f"{name}={value}" for name, value in options.items() if value is not None]
    voters = labelled_data(train, run, "the labelled images that vote")

    from halfseen.evaluate import knn

    with progress_line() as on_progress:
        result = knn(
            encoder,
            voters,
            test,
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

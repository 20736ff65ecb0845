"""`halfseen knn`: how well the nearest neighbours in feature space agree on the class, beside both baselines."""

from collections.abc import Mapping
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
    same_network,
    show_result,
)
from halfseen.config.load import Layer
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.evaluation.results import EvaluateConfig


def command(
    encoder: Annotated[
        str, typer.Argument(help="A run's folder, an encoder.safetensors, an official checkpoint, or timm:NAME.")
    ],
    train: Annotated[
        str | None, typer.Option(help="DATA whose labelled images vote; a run's own data if left out.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="DATA that is classified: its test split, or all of it; --train if left out.")
    ] = None,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Voting neighbours; may be repeated.")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="T of the votes exp(cosine/T); may be repeated. Default 0.07.")
    ] = None,
    feature: Annotated[
        str | None, typer.Option(help="cls, mean, cls+mean or mean-before-norm; the run's choice, else mean.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="student or teacher, of a run that has both.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images; the encoder's if left out.")
    ] = None,
    crop_ratio: Annotated[
        float | None, typer.Option(help="Side of the centre crop over the resized shorter side, e.g. 0.875 or 1.")
    ] = None,
    max_train: Annotated[int | None, typer.Option(min=2, help="Most images that vote, drawn by seed.")] = None,
    max_test: Annotated[int | None, typer.Option(min=1, help="Most images that are classified.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per forward pass.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws the subsets and the random baseline of a foreign encoder.")
    ] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest one found if left out.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the forward pass: fp32, bf16 or fp16; the run's, else fp32.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 0,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Download timm's weights for timm:NAME.")] = False,
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
    config = _settings(run, options)
    forward = forward_settings(device, precision, run)
    voters = train if train is not None else None if run is None else run.config.data.source
    if voters is None:
        raise ConfigError("--train: missing. Name the labelled images that vote, for instance --train bundled:fashion.")
    queries = test if test is not None else voters

    from halfseen.backbones.weights import load_encoder
    from halfseen.evaluation.protocols import knn_protocol
    from halfseen.evaluation.statements import Split
    from halfseen.reports.runfiles import pretraining_fingerprint

    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    train_images = Split(open_images(voters, "train", run), "train")
    test_images = open_test(queries, voters, run)
    with progress_line() as on_progress:
        result = knn_protocol(
            loaded.encoder,
            same_network(loaded, run, seed),
            train_images,
            test_images,
            config,
            mean=loaded.mean,
            std=loaded.std,
            role=loaded.role,
            origin=loaded.origin,
            pretrained_on=None if run is None else pretraining_fingerprint(run.folder),
            seed=seed,
            device=forward.device,
            precision=forward.precision,
            workers=workers,
            strict_k=k is not None,
            on_progress=on_progress,
        )
    show_result(result, run, out)


def _settings(run: Run | None, options: Mapping[str, object]) -> "EvaluateConfig":
    """The run's own settings of its evaluation, or the defaults, changed by the options; all images unless limited."""
    from halfseen.config.load import load_config
    from halfseen.evaluation.results import EvaluateConfig

    base = EvaluateConfig.model_validate({}) if run is None else run.config.evaluate
    changes = [f"{name}={value}" for name, value in options.items() if value is not None]
    layer = Layer("the run", {**base.model_dump(mode="json"), "max_train": None, "max_test": None})
    return load_config(EvaluateConfig, [layer], changes).config

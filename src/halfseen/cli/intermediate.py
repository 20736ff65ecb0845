"""`halfseen intermediate`: from one pre-trained encoder to several that have learned labels of images or of patches."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.arguments import sort_words
from halfseen.cli.inputs import (
    Run,
    console,
    find_run,
    forward_settings,
    open_images,
    open_test,
    progress_line,
    show_result,
)
from halfseen.cli.measuring import Device, EncoderWord, Precision, Pretrained, Role, Workers, subject_of
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.evaluation.intermediate.config import IntermediateConfig

FOLDER = "intermediate"


def command(
    encoder: EncoderWord,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any other setting, e.g. epochs=5 lr=1e-4, for all objectives."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="DATA with labels or masks; once for all objectives, or once for each. A run's own data."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="classification (= viny-intel), patchwise (= viny-spatial), viny-cls-intel, viny-cls-pets, or none, "
            "which copies the encoder; may be repeated.",
            show_default="classification",
        ),
    ] = None,
    role: Role = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images; the encoder's if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the head, order, augmentation, mixing and subsets.")] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same call was interrupted; finished stages are kept.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that gets one folder per objective; RUN/intermediate, or ./intermediate."),
    ] = None,
) -> None:
    """Train a pre-trained encoder on labels of images or of patches, as a stage before its use.

    Each objective starts from the same encoder and ends in a folder that every command takes as ENCODER.

    \b
    Examples:
      halfseen intermediate runs/first --data intel:intel --objective classification
      halfseen intermediate runs/first --data bundled:fashion-scenes --objective none --objective patchwise epochs=5
    """
    run = find_run(encoder)
    found = sort_words(words or [])
    if found.data is not None:
        raise ConfigError(f"got '{found.data}', expected KEY=VALUE. Name the images by --data.")
    configs = _configs(objective or ["classification"], found.overrides)
    sources = _one_each(data or [], len(configs), run)
    folder = out if out is not None else Path(FOLDER) if run is None else run.folder / FOLDER

    from halfseen.backbones.weights import load_encoder
    from halfseen.evaluation.intermediate.config import UNCHANGED
    from halfseen.evaluation.intermediate.protocol import intermediate_stage
    from halfseen.evaluation.intermediate.saved import keep_encoder
    from halfseen.evaluation.statements import Split

    forward = forward_settings(device, precision, run)
    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    subject = subject_of(loaded, forward, run, seed, workers)
    size = loaded.encoder.image_size
    splits = [
        None
        if config is None
        else (Split(open_images(source, "train", run, size), "train"), open_test(source, source, run, size))
        for config, source in zip(configs, sources, strict=True)
    ]
    screen = console()
    for config, pair in zip(configs, splits, strict=True):
        if config is None or pair is None:
            place = folder / UNCHANGED
            keep_encoder(subject, place, resume)
        else:
            place = folder / config.protocol
            with progress_line() as on_progress:
                stage = intermediate_stage(
                    subject, *pair, config, out=place, seed=seed, resume=resume, on_progress=on_progress
                )
            show_result(stage.result, None, place)
        screen.print(f"Encoder: {place}", soft_wrap=True)


def _configs(objectives: Sequence[str], overrides: list[str]) -> "list[IntermediateConfig | None]":
    """The settings of each objective; None for the one that trains nothing.

    Raises:
        ConfigError: an unknown objective, one that is given twice, or settings that don't fit one of them.
    """
    from halfseen.config.load import Layer, load_config
    from halfseen.evaluation.intermediate.config import UNCHANGED, IntermediateConfig, intermediate_settings

    configs: list[IntermediateConfig | None] = []
    for word in objectives:
        if word == UNCHANGED:
            configs.append(None)
            continue
        settings = intermediate_settings(word)
        name = str(settings["protocol"])
        configs.append(
            load_config(
                IntermediateConfig,
                [Layer(f"the protocol {name}", IntermediateConfig.model_validate(settings).model_dump(mode="json"))],
                overrides,
            ).config
        )
    names = [UNCHANGED if config is None else config.protocol for config in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"--objective: '{twice}' is given twice, but each has one folder. Leave one out, or give it a call of its "
            "own with another --out."
        )
    return configs


def _one_each(data: Sequence[str], count: int, run: Run | None) -> list[str]:
    """The data of each objective.

    Raises:
        ConfigError: none at all, or another number than objectives.
    """
    if not data:
        if run is None:
            raise ConfigError("--data: missing. Name the images to learn from, for instance --data my_photos.")
        return [run.config.data.source] * count
    if len(data) == 1:
        return list(data) * count
    if len(data) != count:
        raise ConfigError(
            f"--data: got {len(data)} for {count} objectives. Give one for all of them, or one for each, in their "
            "order."
        )
    return list(data)

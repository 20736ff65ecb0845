"""`halfseen cluster`: whether clusters of the features, found without labels, agree with the classes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.arguments import sort_words
from halfseen.cli.inputs import (
    Run,
    find_run,
    forward_settings,
    need_run,
    open_images,
    progress_line,
    show_result,
    whole_or_split,
)
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
    subject_of,
)
from halfseen.config.load import Layer
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.backbones.weights import LoadedEncoder
    from halfseen.evaluation.clustering import ClusterConfig, Head
    from halfseen.evaluation.subject import Subject


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
    config = _settings(run, changes)
    forward = forward_settings(device, precision, run)
    grouped = labelled_data(data, run, "the images to group", option="--data")

    from halfseen.backbones.weights import load_encoder
    from halfseen.evaluation.clustering import cluster_protocol
    from halfseen.evaluation.statements import Split

    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    subject = subject_of(loaded, forward, run, seed, workers)
    heads: Mapping[str, Head] | None = None
    if config.source == "head":
        subject, heads = _with_heads(need_run(encoder), subject, loaded)
    split = whole_or_split(grouped, "test")
    images = Split(open_images(grouped, split, run), split if split == "test" else "all")
    with progress_line() as on_progress:
        result = cluster_protocol(subject, images, config, heads=heads, seed=seed, on_progress=on_progress)
    show_result(result, run, out)


def _settings(run: Run | None, changes: list[str]) -> "ClusterConfig":
    """The protocol's settings; from a run which features it looks at and how its images are cut."""
    from halfseen.config.load import load_config
    from halfseen.evaluation.clustering import ClusterConfig

    kept = ("feature", "resize", "crop_ratio", "batch_size")
    own = {} if run is None else {name: getattr(run.config.evaluate, name) for name in kept}
    return load_config(ClusterConfig, [Layer("the run", own)], changes).config


def _with_heads(run: Run, subject: "Subject", loaded: "LoadedEncoder") -> "tuple[Subject, dict[str, Head]]":
    """The run's encoder and head, trained and untrained, of its newest checkpoint: both of one step.

    Raises:
        ConfigError: the run's method has no such head.
    """
    from halfseen.pretraining.build import load_method, untrained_method

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

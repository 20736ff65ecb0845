"""`halfseen segment`: what an encoder is worth for the classes of pixels, by ViNy's protocol or with frozen tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.arguments import sort_words
from halfseen.cli.inputs import (
    find_run,
    forward_settings,
    progress_line,
    show_result,
)
from halfseen.cli.measuring import (
    Device,
    EncoderWord,
    ImageSize,
    Precision,
    Pretrained,
    Role,
    Workers,
    labelled_data,
    subject_of,
)
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.evaluation.results import Result
    from halfseen.evaluation.segmentation.config import SegmentationConfig
    from halfseen.evaluation.subject import OnProgress
    from halfseen.ops.precision import Precision as PrecisionName


def command(
    encoder: EncoderWord,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any other setting, e.g. augment_test=false or gamma=0.1."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="DATA with masks to learn from; a run's own data if left out.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="DATA with masks to measure on: its test split, or all of it; --train.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="viny-segmentation (encoder and head learn), linear-segmentation or knn-segmentation.")
    ] = "viny-segmentation",
    train_size: Annotated[
        int | None, typer.Option(min=1, help="Training images, drawn from both splits together; viny: 6000.")
    ] = None,
    test_size: Annotated[
        int | None, typer.Option(min=1, help="Test images, drawn from both splits together; viny: 1000.")
    ] = None,
    own_splits: Annotated[
        bool, typer.Option("--own-splits", help="Take the data's own splits as they are, instead of drawing.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    role: Role = None,
    image_size: ImageSize = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draws head, order, augmentation, and a foreign encoder's random baseline.")
    ] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="ENCODER is a segmentation model already: measure it again.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same call was interrupted in --run-dir.")
    ] = False,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the model, its checkpoints and pictures; runs/PROTOCOL-DATA-N if left out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for PROTOCOL.json; RUN/evaluations, or ./evaluations, if left out.")
    ] = None,
) -> None:
    """Measure an encoder by the classes of pixels: fine-tuned (ViNy), or with frozen patch tokens.

    The same network at random initialisation learns in the same way beside it.

    \b
    Examples:
      halfseen segment runs/first --train oxford-iiit-pet --train-size 250
      halfseen segment runs/first --train bundled:fashion-scenes --protocol linear-segmentation --own-splits
      halfseen segment runs/viny-segmentation-pets-1 --train oxford-iiit-pet --no-training
    """
    run = find_run(encoder)
    found = sort_words(words or [])
    if found.data is not None:
        raise ConfigError(f"got '{found.data}', expected KEY=VALUE. Name the images by --train and --test.")
    sizes: dict[str, object] = {"train_size": train_size, "test_size": test_size}
    if own_splits:
        given = next((name for name, value in sizes.items() if value is not None), None)
        if given is not None:
            raise ConfigError(f"--own-splits: given beside --{given.replace('_', '-')}. Leave one out.")
        sizes = dict.fromkeys(sizes, "null")
    options = {**sizes, "epochs": epochs, "lr": lr, "batch_size": batch_size}
    changes = [f"{name}={value}" for name, value in options.items() if value is not None] + found.overrides
    trained_on = labelled_data(train, run, "the images with masks to learn from")

    from halfseen.evaluate import segmentation_config, segmentation_splits

    config = segmentation_config(protocol, changes)
    forward = forward_settings(device, precision, run)
    if resume and run_dir is None:
        raise ConfigError("--resume: missing --run-dir. Name the folder of the segmentation that was interrupted.")
    if no_training:
        if run_dir is not None or seed or image_size is not None:
            raise ConfigError(
                "--no-training: a model is measured as it was trained, so leave out --run-dir, --resume, --seed and "
                "--image-size."
            )
        with progress_line() as on_progress:
            result = _measure(
                Path(encoder),
                config,
                changes,
                trained_on,
                test,
                forward.device,
                None if precision is None else forward.precision,
                workers,
                on_progress,
            )
        show_result(result, None, out)
        return

    from halfseen.backbones.weights import load_encoder
    from halfseen.engine.folder import open_folder
    from halfseen.evaluation.segmentation.protocol import segmentation_protocol
    from halfseen.evaluation.segmentation.task import prepare_task

    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    learned, tested = segmentation_splits(trained_on, test, run, loaded.encoder.image_size)
    prepare_task(learned, tested, config, seed)  # What doesn't fit is said before a folder is made.
    folder = run_dir if run_dir is not None else open_folder(None, protocol, trained_on)
    with progress_line() as on_progress:
        result = segmentation_protocol(
            subject_of(loaded, forward, run, seed, workers),
            learned,
            tested,
            config,
            seed=seed,
            run_dir=folder,
            resume=resume,
            on_progress=on_progress,
        )
    _show_folder(folder, show_result(result, run, out))


def _measure(
    path: Path,
    config: "SegmentationConfig",
    changes: list[str],
    train: str,
    test: str | None,
    device: str,
    precision: "PrecisionName | None",
    workers: int,
    on_progress: "OnProgress",
) -> "Result":
    """A finished segmentation model on the images that its own settings choose.

    Raises:
        ConfigError: settings given for a model that has its own.
    """
    from halfseen.evaluate import segmentation_splits
    from halfseen.evaluation.segmentation.protocol import measure_again
    from halfseen.evaluation.segmentation.saved import load_trained

    if path.is_dir() and changes:
        raise ConfigError(
            f"--no-training: got {changes[0]}, but '{path}' is measured by the settings it was trained with. Leave it "
            "out."
        )
    trained = load_trained(path, config, device=device, precision=precision, workers=workers)
    return measure_again(
        trained, *segmentation_splits(train, test, None, trained.subject.size), on_progress=on_progress
    )


def _show_folder(folder: Path, result: Path) -> None:
    """Draw the examples, put their arrays beside the result too, for a report, and say what lies in the folder."""
    import shutil

    from halfseen.cli.inputs import console
    from halfseen.evaluation.segmentation.saved import EXAMPLES
    from halfseen.reports.figures.pictures import draw_segmentation

    shutil.copyfile(folder / EXAMPLES, result.with_suffix(".npz"))
    screen = console()
    screen.print(f"Examples: {draw_segmentation(folder / EXAMPLES)}", soft_wrap=True)
    if (folder / "encoder.safetensors").is_file():
        screen.print(f"Model: {folder} (measure it again with --no-training)", soft_wrap=True)

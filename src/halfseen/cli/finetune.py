"""`halfseen finetune`: an encoder trained on as a classifier, by the published protocols."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from halfseen.cli.arguments import override, run_dir_of
from halfseen.cli.exits import INTERRUPTED, USERS_FAULT, is_first_process
from halfseen.cli.inputs import Run, console, find_run
from halfseen.cli.measuring import Device, ImageSize, Pretrained, Role, TestData, labelled_data
from halfseen.cli.resuming import launch_again, settings_to_go_on
from halfseen.config.load import is_override
from halfseen.errors import ConfigError, HalfseenError

if TYPE_CHECKING:
    from halfseen.backbones.base import Encoder
    from halfseen.config.load import Loaded
    from halfseen.evaluation.finetuning.config import FinetuneConfig
    from halfseen.evaluation.finetuning.protocol import FinetuneOutcome
    from halfseen.evaluation.finetuning.published import Protocol
    from halfseen.evaluation.subject import Subject


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENCODER [KEY=VALUE]...",
            help="ENCODER: a run's folder, an encoder.safetensors, an official checkpoint, or timm:NAME. KEY=VALUE: "
            "any other setting, such as train.epochs=20 or layer_decay=0.65.",
        ),
    ] = None,
    train: Annotated[str | None, typer.Option(help="DATA to train on; a run's own data if left out.")] = None,
    test: TestData = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="finetune (small images, a CPU; the default), mae-finetune, simmim-finetune, localmim-finetune, "
            "kamim-finetune, msn-finetune or ibot-finetune."
        ),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Go on with this fine-tuning run, from its newest checkpoint.")
    ] = None,
    task: Annotated[
        Literal["classify", "segment"], typer.Option(help="classify, or segment: the same as `halfseen segment`.")
    ] = "classify",
    baselines: Annotated[
        bool | None,
        typer.Option(help="Train the same network from random weights, too; the protocol's choice if left out."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep the run in runs/NAME.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Keep the run in this folder.")] = None,
    role: Role = None,
    image_size: ImageSize = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws order, augmentation, first weights and splits.")
    ] = None,
    device: Device = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; bf16 if left out where the device computes it natively.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Loader processes.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine: GPUs, or CPU processes.")] = 1,
    pretrained: Pretrained = False,
) -> None:
    """Train an encoder on as a classifier and measure it on test images.

    The same network from random weights is trained beside it (--baselines).

    \b
    Examples:
      halfseen finetune runs/demo --train bundled:fashion --test bundled:fashion
      halfseen finetune vit_base.pth --train imagenet --protocol mae-finetune
      halfseen finetune --resume runs/finetune-fashion-1
    """
    encoder, overrides = _sorted(words or [])
    texts = {
        "test": test,
        "runtime.device": device,
        "runtime.precision": precision,
        "run_dir": run_dir_of(name, run_dir),
    }
    numbers = {
        "baselines": None if baselines is None else str(baselines).lower(),
        "data.image_size": image_size,
        "seed": seed,
        "runtime.workers": workers,
    }
    changes = [override(key, value) for key, value in texts.items() if value is not None]
    changes += [f"{key}={value}" for key, value in numbers.items() if value is not None] + overrides
    if resume is not None:
        refused = {"ENCODER": encoder, "--train": train, "--role": role, "--name": name, "--run-dir": run_dir}
        given = [option for option, value in refused.items() if value is not None]
        if given:
            raise ConfigError(f"--resume goes on with the run's own encoder, data and folder. Leave out {given[0]}.")
    elif encoder is None:
        raise ConfigError("ENCODER: missing. Name a run, a file of weights or timm:NAME, or --resume FOLDER.")
    if devices > 1:
        launched = {
            "--train": train,
            "--protocol": protocol,
            "--resume": resume,
            "--role": role,
            "--pretrained": pretrained or None,
        }
        raise typer.Exit(
            launch_again("finetune", devices, [*([] if encoder is None else [encoder]), *changes], launched)
        )
    from halfseen.evaluate import finetune_splits, prepare_finetune

    try:
        if resume is None:
            labelled_data(train, find_run(str(encoder)), "the labelled images to train on")
        subject, config, settings = (
            prepare_finetune(str(encoder), changes, train, protocol or "finetune", role, pretrained)
            if resume is None
            else _old(resume, changes, protocol)
        )
        splits = finetune_splits(config.config)
    except HalfseenError:
        if is_first_process():
            raise
        raise typer.Exit(USERS_FAULT) from None
    from halfseen.evaluation.finetuning.protocol import finetune

    outcome = finetune(subject, *splits, config, settings, resume=resume is not None)
    if is_first_process():
        _show(outcome, config.config)
    if not outcome.finished:
        raise typer.Exit(INTERRUPTED)


def _sorted(words: list[str]) -> tuple[str | None, list[str]]:
    """The encoder's word, if there is one, and the overrides."""
    plain = [word for word in words if not is_override(word)]
    if len(plain) > 1:
        raise ConfigError(
            f"got {len(plain)} encoders ({', '.join(repr(word) for word in plain)}), expected one ENCODER and "
            "key=value words. Name the images by --train and --test."
        )
    return (plain[0] if plain else None), [word for word in words if is_override(word)]


def _old(folder: str, changes: list[str], name: str | None) -> "tuple[Subject, Loaded[FinetuneConfig], Protocol]":
    """A run that goes on, with the encoders it has kept."""
    from halfseen.backbones.weights import load_encoder
    from halfseen.data.diary import read_drawn_from
    from halfseen.evaluation.finetuning.config import FinetuneConfig
    from halfseen.evaluation.finetuning.published import finetune_settings
    from halfseen.evaluation.finetuning.run import RANDOM, START
    from halfseen.evaluation.subject import Subject

    changes = changes if name is None else [override("protocol", name), *changes]
    config = settings_to_go_on(FinetuneConfig, "finetune", folder, [], changes, free=["baselines"])
    settled = config.config
    loaded = load_encoder(Path(folder) / START)
    random = Path(folder) / RANDOM / START
    run = find_run(settled.encoder)

    def random_encoder() -> "Encoder":
        return load_encoder(random).encoder

    subject = Subject(
        loaded.encoder,
        random_encoder if random.is_dir() else None,
        settled.data.mean,
        settled.data.std,
        settled.encoder,
        role=loaded.role,
        pretrained_on=_seen(run),
        pretrained_from=() if run is None else read_drawn_from(run.folder),
        device=settled.runtime.device,
        precision=settled.runtime.precision,
        taught_on=loaded.taught_on,
    )
    return subject, config, finetune_settings(settled.protocol, loaded.encoder, settled.data.image_size)


def _seen(run: Run | None) -> str | None:
    if run is None:
        return None
    from halfseen.reports.runfiles import pretraining_fingerprint

    return pretraining_fingerprint(run.folder)


def _show(outcome: "FinetuneOutcome", config: "FinetuneConfig") -> None:
    """The result, for the person at the terminal; a run that was fine-tuned gets a copy of it."""
    from halfseen.reports.runfiles import Evaluation
    from halfseen.reports.tables import result_table

    screen = console()
    result = outcome.result
    if result is not None:
        screen.print(result_table(Evaluation.model_validate(result.model_dump())))
        for note in result.notes:
            screen.print(f"- {note}", soft_wrap=True)
    screen.print(outcome.message, soft_wrap=True)
    if outcome.classifier is not None:
        screen.print(f"Classifier: {outcome.classifier}", soft_wrap=True)
    run = find_run(config.encoder)
    if result is None or run is None:
        return
    if config.changes_blocks:
        screen.print(f"Not copied to {run.folder}, whose report is about the whole encoder.", soft_wrap=True)
    else:
        path = result.write(run.folder / "evaluations")
        screen.print(f"Written: {path}", soft_wrap=True)
        screen.print(f"`halfseen report {run.folder}` brings it into the run's report.", soft_wrap=True)

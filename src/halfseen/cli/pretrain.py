"""`halfseen pretrain`: reads the words, settles the settings, and hands over to `pretraining.run`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.arguments import add_override, run_dir_of, sort_words
from halfseen.cli.exits import INTERRUPTED, USERS_FAULT, is_first_process, was_launched
from halfseen.cli.resuming import launch_again, settings_to_go_on
from halfseen.errors import ConfigError, HalfseenError

if TYPE_CHECKING:
    from halfseen.config.load import Loaded
    from halfseen.pretraining.config import RunConfig
    from halfseen.pretraining.run import RunResult


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="DATA: a folder of images, a manifest.csv or .parquet, bundled:fashion or torchvision:NAME; the "
            "recipe's if left out. KEY=VALUE: any setting, such as train.epochs=20.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Start from this recipe (`halfseen recipes list`); otherwise what suits DATA.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings; stronger than the recipe.")] = None,
    msn_config: Annotated[
        Path | None,
        typer.Option(help="A YAML file of MSN's published code, as it is; says what became of each key."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this run, from its newest checkpoint.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep the run in runs/NAME.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Keep the run in this folder.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine: GPUs, or CPU processes.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, size, and an estimate of time and memory; train nothing.")
    ] = False,
) -> None:
    """Pre-train an encoder on images; ends in weights, a number beside its baselines, and a report.

    Without a recipe, image size, patch size, batch and length are chosen to suit the images (method.name=mae unless
    given).

    \b
    Examples:
      halfseen pretrain my_photos
      halfseen pretrain my_photos --recipe simmim_small train.epochs=50 --name first
      halfseen pretrain --resume runs/first
    """
    found = sort_words(words or [])
    overrides = add_override(found.overrides, "data.source", found.data, "DATA")
    if resume is not None and (name is not None or run_dir is not None):
        raise ConfigError("--resume goes on in the run's own folder. Leave out --name and --run-dir.")
    overrides = add_override(overrides, "run_dir", run_dir_of(name, run_dir), "--run-dir" if run_dir else "--name")
    if msn_config is not None and (recipe is not None or resume is not None):
        other = "--recipe" if recipe is not None else "--resume"
        raise ConfigError(f"--msn-config and {other} both say which run this is. Give one of them.")
    loaded = _settle(recipe, config, msn_config, resume, overrides, devices)
    if dry_run:
        _print_dry_run(loaded, devices)
        return
    if devices > 1:
        options = {
            "--recipe": recipe,
            "--config": config,
            "--msn-config": msn_config,
            "--resume": resume,
            "--name": name,
            "--run-dir": run_dir,
        }
        raise typer.Exit(launch_again("pretrain", devices, words or [], options))
    from halfseen.pretraining.run import run

    result = run(loaded, resume=resume is not None)
    if is_first_process():
        print_result(result)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


def _settle(
    recipe: str | None,
    file: Path | None,
    msn_file: Path | None,
    resume: str | None,
    overrides: list[str],
    devices: int,
) -> "Loaded[RunConfig]":
    """The settings of the run. Of several processes only the first one speaks of faults: all find the same ones."""
    from halfseen.pretraining.run import resolve

    try:
        if msn_file is not None:
            return _of_msn_file(msn_file, file, overrides, devices)
        return resolve(recipe, file, overrides) if resume is None else resumed(resume, recipe, file, overrides)
    except HalfseenError:
        if is_first_process():
            raise
        raise typer.Exit(USERS_FAULT) from None


def _of_msn_file(msn_file: Path, file: Path | None, overrides: list[str], devices: int) -> "Loaded[RunConfig]":
    """The settings that a file of MSN's published code describes; says on stderr what became of its keys, once."""
    from halfseen.pretraining.msn_yaml import load_msn_file

    processes = max(devices, int(os.environ.get("WORLD_SIZE", "1")))
    loaded, sentences = load_msn_file(msn_file, processes, file, overrides)
    if is_first_process() and not was_launched():
        for sentence in sentences:
            typer.echo(sentence, err=True)
    return loaded


def resumed(run: str, recipe: str | None, file: Path | None, overrides: Sequence[str]) -> "Loaded[RunConfig]":
    """The settings with which a run goes on: its own, in which runtime and bookkeeping may be changed.

    Raises:
        ConfigError: no such run, one of fine-tuning, or other settings that decide the weights.
    """
    from halfseen.config.load import Layer
    from halfseen.config.recipes import recipe_layer
    from halfseen.config.yaml_text import read_settings
    from halfseen.pretraining.config import RunConfig

    layers = [] if recipe is None else [recipe_layer(recipe)]
    if file is not None:
        layers.append(Layer(f"file '{file}'", read_settings(file)))
    return settings_to_go_on(RunConfig, "pretrain", run, layers, overrides)


def print_result(result: "RunResult") -> None:
    """What the run has left, for the person at the terminal."""
    from halfseen.cli.inputs import console
    from halfseen.reports.runfiles import Evaluation
    from halfseen.reports.tables import result_table

    screen = console()
    for evaluation in result.evaluations:
        screen.print(result_table(Evaluation.model_validate(evaluation.model_dump())))
        for note in evaluation.notes:
            screen.print(f"- {note}")
    screen.print(result.message)
    if result.encoder is not None:
        screen.print(f"Encoder: {result.encoder}")
    if result.report is not None:
        screen.print(f"Report:  {result.report}")


def _print_dry_run(loaded: "Loaded[RunConfig]", devices: int) -> None:
    from halfseen.config.load import dump_config
    from halfseen.pretraining.estimate import describe

    if is_first_process():
        typer.echo(dump_config(loaded.config, loaded.provenance), nl=False)
        typer.echo(f"\n{describe(loaded.config, devices)}")

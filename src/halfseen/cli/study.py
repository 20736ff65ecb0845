"""`halfseen study`: a grid of pre-training, intermediate stages and fine-tuning sizes, with its table and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.arguments import sort_words
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.pretraining.study import Plan
    from halfseen.pretraining.study_config import StudyConfig

OF_PRETRAINING = "pretrain."


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="DATA: images of all parts. KEY=VALUE: e.g. seeds=[0,1] finetune_sizes=[50,200] "
            "segmentation.epochs=20 classification_data=intel:PATH, and pretrain.KEY for pre-training, e.g. "
            "pretrain.train.epochs=5.",
        ),
    ] = None,
    grid: Annotated[
        str,
        typer.Option(help="miniature (bundled scenes, about half an hour of two cores) or viny (the published one)."),
    ] = "miniature",
    recipe: Annotated[str | None, typer.Option(help="Recipe of pre-training; ViNy's SimMIM if left out.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder, studies/GRID if left out; what is finished there is read.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid and the number of trainings; train nothing.")
    ] = False,
) -> None:
    """Replay a study: how do pre-training and intermediate stages change segmentation, by fine-tuning size?

    Stopped at any moment, the same call goes on. Ends in study.json, study.md and two figures.

    \b
    Examples:
      halfseen study --dry-run
      halfseen study --grid viny imagenet/train classification_data=intel:intel segmentation_data=oxford-iiit-pet
    """
    found = sort_words(words or [])
    config = _settings(grid, recipe, found.data, found.overrides)
    folder = out if out is not None else Path("studies") / grid

    from halfseen.cli.inputs import console, progress_line
    from halfseen.pretraining.study import plan_study, run_study

    screen = console()
    plan = plan_study(config, folder)
    for line in _plan_lines(config, plan, folder):
        screen.print(line, soft_wrap=True)
    if dry_run:
        return
    result = run_study(config, folder, name=grid, watching=progress_line)
    screen.print(result.table.read_text(encoding="utf-8"), soft_wrap=True)
    screen.print(f"Written: {', '.join(str(path) for path in (result.study, result.table, *result.figures))}")


def _settings(grid: str, recipe: str | None, data: str | None, overrides: Sequence[str]) -> "StudyConfig":
    """The study's settings; `pretrain.KEY=VALUE` words go to the pre-training runs, after the grid's own.

    Raises:
        ConfigError: all faults, one a line.
    """
    import json

    from halfseen.config.load import Layer, load_config
    from halfseen.pretraining.study_config import StudyConfig, study_settings

    settings = dict(study_settings(grid))
    given = [word.removeprefix(OF_PRETRAINING) for word in overrides if word.startswith(OF_PRETRAINING)]
    known = settings.get("pretrain", ())
    # Another recipe has other keys: the grid's own settings of pre-training belong to its recipe.
    own = list(known) if isinstance(known, tuple) and recipe is None else []
    settings["pretrain"] = [*own, *given]
    if recipe is not None:
        settings["recipe"] = recipe
    if data is not None:
        settings["data"] = data
    twice = [word for word in overrides if data is not None and word.startswith("data=")]
    if twice:
        raise ConfigError(f"data: given twice, as DATA ('{data}') and by {twice[0]}. Leave one out.")
    rest = [word for word in overrides if not word.startswith(OF_PRETRAINING)]
    layers = [Layer(f"the grid {grid}", json.loads(json.dumps(settings)))]
    return load_config(StudyConfig, layers, rest).config


def _plan_lines(config: "StudyConfig", plan: "Plan", folder: Path) -> list[str]:
    from halfseen.reports.study import condition_words

    lines = [f"{len(config.conditions)} encoders:"]
    lines += [f"  {condition_words(condition.pretrain, condition.intermediate)}" for condition in config.conditions]
    sizes = ", ".join(f"{size:,}" for size in config.finetune_sizes)
    lines.append(f"x {len(config.finetune_sizes)} fine-tuning sizes ({sizes} images)")
    lines.append(f"x {len(config.seeds)} seeds ({', '.join(map(str, config.seeds))})")
    parts = {
        "pre-training runs": plan.pretrainings,
        "intermediate stages": plan.stages,
        "segmentations": plan.segmentations,
    }
    counts = ", ".join(f"{all_of} {words}" for words, (all_of, _) in parts.items())
    total, done = (sum(part[place] for part in parts.values()) for place in (0, 1))
    lines.append(f"= {total} trainings: {counts}; {done} are finished in '{folder}'.")
    return lines

"""`halfseen recipes list / show / diff`: what recipes there are, and what they come to with all defaults filled in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.config.load import Layer, flatten
from halfseen.config.recipes import recipe_comment, recipe_layer, recipe_names
from halfseen.config.yaml_text import Value, read_settings, show

if TYPE_CHECKING:
    from halfseen.config.load import Loaded
    from halfseen.pretraining.config import RunConfig

app = typer.Typer(
    add_completion=False,
    help="List, show and compare the recipes: published ones and small ones for minutes on a laptop.",
    epilog="Example: halfseen recipes show mae_small",
)


@app.command("list", epilog="Example: halfseen recipes list | grep kamim")
def list_recipes(
    names: Annotated[bool, typer.Option("--names", help="Print the bare names, one a line.")] = False,
) -> None:
    """Print all recipes with method, model, image size, epochs, batch size and source."""
    if names:
        typer.echo("\n".join(recipe_names()))
        return
    from rich import box
    from rich.table import Table

    from halfseen.cli.inputs import console

    table = Table(box=box.SIMPLE)
    for title in ("recipe", "method", "model"):
        table.add_column(title, no_wrap=True)
    for title in ("pixels", "epochs", "batch"):
        table.add_column(title, justify="right")
    table.add_column("source")
    for name in recipe_names():
        values = flatten(recipe_layer(name).values)
        keys = ("method.name", "model.name", "data.image_size", "train.epochs", "train.batch_size")
        table.add_row(name, *(_cell(values.get(key)) for key in keys), recipe_comment(name)[0])
    console().print(table)


@app.command("show", epilog="Example: halfseen recipes show mae_small method.mask_ratio=0.6")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a run's folder, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
) -> None:
    """Print a recipe with all its settings; what is not a default is followed by its source."""
    from halfseen.config.load import dump_config

    if recipe in recipe_names():
        typer.echo("\n".join(f"# {line}".rstrip() for line in recipe_comment(recipe)) + "\n")
    loaded = resolve(recipe, overrides or [])
    typer.echo(dump_config(loaded.config, loaded.provenance), nl=False)


@app.command("diff", epilog="Example: halfseen recipes diff simmim_small mae_small")
def diff_recipes(
    first: Annotated[str, typer.Argument(help="A recipe's name, or a run's folder, or a YAML file.")],
    second: Annotated[str, typer.Argument(help="What to compare it with.")],
) -> None:
    """Print the settings in which two recipes, runs or files differ, all defaults filled in."""
    from halfseen.config.load import leaves

    left, right = leaves(resolve(first, []).config), leaves(resolve(second, []).config)
    keys = [key for key in dict.fromkeys([*left, *right]) if _side(left, key) != _side(right, key)]
    if not keys:
        typer.echo(f"{first} and {second} do not differ.")
        return
    from rich import box
    from rich.table import Table

    from halfseen.cli.inputs import console

    table = Table("setting", first, second, box=box.SIMPLE)
    for key in keys:
        table.add_row(key, _side(left, key), _side(right, key))
    console().print(table)


def resolve(recipe: str, overrides: list[str]) -> "Loaded[RunConfig]":
    """The complete settings of a recipe, a run or a file.

    Raises:
        ConfigError: unknown name, or settings that are not allowed.
    """
    layer = layer_of(recipe)
    from halfseen.config.load import load_config
    from halfseen.pretraining.config import RunConfig

    return load_config(RunConfig, [layer], overrides)


def layer_of(recipe: str) -> Layer:
    """The settings of a recipe by name, or of a run's folder or a YAML file."""
    if recipe not in recipe_names() and Path(recipe).exists():
        from halfseen.cli.arguments import settings_file

        path = settings_file(recipe)
        return Layer(f"file '{path}'", read_settings(path))
    return recipe_layer(recipe)


def _cell(value: Value) -> str:
    return "" if value is None else str(value)


def _side(values: dict[str, Value], key: str) -> str:
    return show(values[key]) if key in values else "-"

"""The recipes that ship inside the package: their names, their texts, and what their opening comments say."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from halfseen.config.errors import closest, did_you_mean
from halfseen.config.load import Layer
from halfseen.config.yaml_text import parse_settings
from halfseen.errors import ConfigError


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in _folder().iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A recipe's YAML text with its comments.

    Raises:
        ConfigError: there is no such recipe.
    """
    names = recipe_names()
    if name not in names:
        if name.endswith((".yaml", ".yml")):
            raise ConfigError(f"recipe: got '{name}', expected a recipe's name. Give files with --config {name}.")
        near = closest(name, names, count=2)
        raise ConfigError(
            f"recipe: unknown '{name}'.{did_you_mean(near)} `halfseen recipes list` shows all {len(names)}."
        )
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_layer(name: str) -> Layer:
    """A recipe's settings as a layer named "recipe NAME"; they give way to stronger ones."""
    return Layer(f"recipe {name}", parse_settings(recipe_text(name), f"recipe '{name}'"), gives_way=True)


def recipe_comment(name: str) -> list[str]:
    """The lines of a recipe's opening comment, without their `#`. The first one names the source."""
    lines = []
    for line in recipe_text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def _folder() -> Traversable:
    return files("halfseen.recipes")

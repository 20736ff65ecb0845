"""`{recipes} mae`: a table of the shipped recipes whose names start with a word, with what their first lines say."""

import re

from docutils import nodes
from docutils.parsers.rst import Directive
from settings import table
from sphinx.application import Sphinx

from halfseen.config.recipes import recipe_comment, recipe_names


class Recipes(Directive):
    """The directive itself."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table with one row per recipe."""
        names = [name for name in recipe_names() if name.startswith(self.arguments[0])]
        if not names:
            raise self.error(f"no recipe starts with {self.arguments[0]!r}")
        lines = [(name, *in_columns(recipe_comment(name))) for name in names]
        return [table(("recipe", "source", "expected", "cost"), lines, (34, 20, 30, 16))]


def in_columns(comment: list[str]) -> tuple[str, str, str]:
    """Source, expected result and cost from a recipe's opening comment."""
    text = " ".join(comment[1:])
    expected = re.search(r"Expected: (.*?)(?= Cost:|$)", text)
    cost = re.search(r"Cost: (.*?)\.(?= [A-Z]|$)", text)
    return comment[0], expected[1] if expected else "", cost[1] if cost else ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("recipes", Recipes)
    return {"parallel_read_safe": True}

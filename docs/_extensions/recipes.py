"""`{recipes} mae`: a table of the shipped recipes whose names start with a word, with what their first lines say."""

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
        return [table(("recipe", "what it is"), [(name, " ".join(recipe_comment(name))) for name in names], (40, 60))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("recipes", Recipes)
    return {"parallel_read_safe": True}

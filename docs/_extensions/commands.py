"""`{help} data check`: what `halfseen data check --help` prints, taken when the documentation is built."""

import os
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class Help(Directive):
    """The directive itself."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The help text as a literal block."""
        words = self.arguments[0].split() if self.arguments else []
        command = [str(Path(sys.executable).with_name("halfseen")), *words, "--help"]
        plain = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        shown = subprocess.run(command, check=True, capture_output=True, text=True, env=plain).stdout
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("help", Help)
    return {"parallel_read_safe": True}

"""What README and docs tell people to type works: commands and Python examples are run, each page as one story.

A page's blocks run in order, in a folder of the page's own that holds `photos/` (96 small pictures in two class
folders) and `runs/first` (a finished tiny run). The convention, for whoever writes a page:

* ```` ```console ```` : lines that begin with `$ ` are run; they must succeed. `make TARGET` is tried with --dry-run,
  for what it would do is this very test run.
* ```` ```python ```` : run as a script.
* ```` ```text ```` : not run, for what needs hardware, data or weights that a test doesn't have; but commands and
  options shown in it must exist.
* `<!-- with: a=1 b=2 -->` right above a console block appends these words to its commands, to make them small.
* `<!-- fails: 2 -->` right above it: each command must end with this exit code, and a sentence instead of a traceback.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
HALFSEEN = str(Path(sys.executable).with_name("halfseen"))
BLOCK = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)```", re.DOTALL)
TINY = "model.depth=1 model.embed_dim=32 model.num_heads=2 train.max_steps=2 train.batch_size=8 data.subset_size=64 "
TINY_EVALUATION = (
    "evaluate.max_train=200 evaluate.max_test=100 evaluate.analyze=none runtime.threads=1 runtime.workers=0"
)


class Block(NamedTuple):
    """A fenced block of a page, and the comment above it."""

    language: str
    text: str
    note: str

    def commands(self) -> list[str]:
        """Its command lines without the prompt; a trailing backslash continues a line."""
        joined = self.text.replace("\\\n", " ")
        return [
            line.removeprefix("$ ").split("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")
        ]


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"].strip(), match["text"], match["note"] or "") for match in found]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


def words_of(command: str, note: str) -> list[str]:
    """The argument list that stands for a command of the docs."""
    words = shlex.split(command)
    if words[0] == "make":
        return ["make", "--dry-run", "--directory", str(ROOT), *words[1:]]
    if words[0] == "halfseen":
        words[0] = HALFSEEN
    if note.startswith("with:") and "--resume" not in words:
        words += note.removeprefix("with:").split()
    return words


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run."""
    folder = tmp_path_factory.mktemp("first")
    command = f"{HALFSEEN} pretrain bundled:fashion --recipe mae_small --run-dir runs/first {TINY} {TINY_EVALUATION}"
    done = run(shlex.split(command), folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "first"


STORIES = [page for page in PAGES if any(block.language in ("console", "python") for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_tells_you_to_type_works(
    page: Path, tmp_path: Path, make_images: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    make_images(tmp_path / "photos", count=96, size=64)
    if "runs/first" in page.read_text(encoding="utf-8"):
        shutil.copytree(request.getfixturevalue("first_run"), tmp_path / "runs" / "first")
    for block in blocks(page):
        if block.language == "python":
            done = run([sys.executable, "-c", block.text], tmp_path)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
        elif block.language == "console":
            assert block.commands(), f"a console block without a '$ ' line:\n{block.text}"
            expected = int(block.note.removeprefix("fails:")) if block.note.startswith("fails:") else 0
            for command in block.commands():
                done = run(words_of(command, block.note), tmp_path)
                assert done.returncode == expected, f"$ {command}\n{done.stdout}\n{done.stderr}"
                assert "Traceback" not in done.stderr, f"$ {command}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_block_hides_from_the_test(page: Path) -> None:
    unknown = {
        block.language
        for block in blocks(page)
        if not block.language.startswith("{") and block.language not in ("console", "python", "text", "yaml", "bibtex")
    }
    assert unknown == set(), "use console, python, text, yaml or bibtex"
    notes = [block.note for block in blocks(page) if block.note and block.language != "console"]
    assert notes == [], "only console blocks can carry a comment that changes how they run"


@cache
def help_of(*command: str) -> str:
    done = run([HALFSEEN, *command, "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_are_only_shown_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language != "text":
            continue
        for command in block.commands():
            words = shlex.split(command)
            if words[0] == "torchrun":
                words = words[words.index("halfseen") :]
            if words[0] != "halfseen":
                continue
            groups = 2 if words[1] in ("recipes", "data") else 1
            text = help_of(*words[1 : 1 + groups])
            for option in (word.split("=")[0] for word in words if word.startswith("--")):
                assert option in text, f"$ {command}: no option {option}"


LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page: Path) -> None:
    dead = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()]
    assert dead == []


KEY = re.compile(r"\b(?:data|method|model|train|evaluate|runtime)(?:\.[a-z][a-z_0-9]*)+")


@cache
def known_keys() -> frozenset[str]:
    """Every dotted key that some run has, and every section."""
    from halfseen.config.keys import KeySpace
    from halfseen.pretraining.config import RunConfig

    return frozenset(KeySpace(RunConfig))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_that_are_named_exist(page: Path) -> None:
    prose = "\n".join(re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")))
    named = {match.group() for match in KEY.finditer(prose)}
    assert {name for name in named - known_keys() if not name.endswith((".json", ".yaml"))} == set()


def test_every_command_and_every_recipe_family_has_its_place_in_the_docs() -> None:
    from halfseen.cli.main import COMMANDS
    from halfseen.methods.table import METHODS

    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"```{{help}} {name}" not in text] == []
    assert [name for name in METHODS if not (ROOT / f"docs/methods/{name}.md").is_file()] == []

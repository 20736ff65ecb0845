"""The command `halfseen` itself: help is instant, wrong words give one sentence and exit code 2, pipes may close."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halfseen.cli.exits import complain
from halfseen.cli.main import COMMANDS, run
from halfseen.errors import DataError

HEAVY = ("torch", "torchvision", "timm", "cv2", "matplotlib", "sklearn")


def halfseen(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "halfseen", *words], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_help_is_there_within_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = halfseen("--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(seconds) < 1.0
    for name, entry in COMMANDS.items():
        assert name in done.stdout
        assert entry.summary.split(":")[0][:20] in done.stdout


def test_the_installed_command_is_the_same() -> None:
    script = Path(sys.executable).parent / "halfseen"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.fullmatch(r"halfseen \d+\.\d+\.\d+\n", done.stdout)


def test_help_of_no_command_waits_for_torch() -> None:
    """One process asks for all help pages and looks at what was loaded."""
    code = (
        "import sys\n"
        "from halfseen.cli.main import COMMANDS, run\n"
        "codes = [run([name, '--help']) for name in ['--help', *COMMANDS][1:]]\n"
        f"print(codes, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{[0] * len(COMMANDS)} []", done.stderr


GROUPS = {"recipes": ("list", "show", "diff"), "data": ("check",)}
PAGES = [*COMMANDS.keys() - GROUPS, *(f"{group} {name}" for group, names in GROUPS.items() for name in names)]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_help_page_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"Examples?:\s+halfseen " + name, text)


def test_the_groups_are_those_of_the_table() -> None:
    assert {name for name, entry in COMMANDS.items() if entry.is_group} == GROUPS.keys()


def test_no_words_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert capsys.readouterr().out.startswith("Usage: halfseen")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretian", "x"], r"unknown command 'pretian'\. Known: demo, pretrain, .*\. Did you mean 'pretrain'\?"),
        (["--hlep"], r"halfseen: No such option: --hlep.*\. See `halfseen --help`\."),
        (["recipes", "lst"], r"halfseen recipes: No such command 'lst'.*\. See `halfseen recipes --help`\."),
        (["recipes", "show"], r"halfseen recipes show: Missing argument .*\. See `halfseen recipes show --help`\."),
        (
            ["pretrain", "--devices", "two"],
            r"halfseen pretrain: Invalid value for '--devices': .*integer.*\. See `halfseen pretrain --help`\.",
        ),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    assert re.fullmatch(sentence + "\n", heard.err), heard.err


def test_a_users_fault_has_no_traceback_and_ours_has() -> None:
    theirs = halfseen("recipes", "show", "mae_smal")
    assert theirs.returncode == 2
    assert theirs.stderr == (
        "recipe: unknown 'mae_smal'. Did you mean 'mae_small' or 'mae_small_64px'? `halfseen recipes list` shows all "
        f"{len(halfseen('recipes', 'list', '--names').stdout.split())}.\n"
    )
    code = (
        "import halfseen.cli.recipes as recipes\n"
        "recipes.recipe_names = lambda: 1 / 0\n"
        "from halfseen.cli.main import main\n"
        "main()\n"
    )
    ours = subprocess.run([sys.executable, "-c", code, "recipes", "list"], capture_output=True, text=True, check=False)
    assert ours.returncode == 1
    assert ours.stderr.startswith("Traceback (most recent call last):")
    assert ours.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_closed_pipe_is_no_fault() -> None:
    command = f"'{sys.executable}' -m halfseen recipes list --names | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "attmask_small\n"
    assert done.stderr == ""


def test_a_child_hands_its_fault_to_the_process_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complain(DataError("said once"))
    assert capsys.readouterr().err == "said once\n"
    monkeypatch.setenv("HALFSEEN_LAUNCH_DIR", str(tmp_path))
    complain(DataError("said by the parent"))
    assert capsys.readouterr().err == ""
    assert "said by the parent" in (tmp_path / "failure.json").read_text()

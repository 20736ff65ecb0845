"""What several sub-commands read from their command line: `DATA` among `key=value` words, and where a run is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from halfseen.config.load import is_override, parse_override
from halfseen.config.yaml_text import scalar_text
from halfseen.errors import ConfigError

RUNS = Path("runs")
SETTINGS_FILE = "config.yaml"


class Words(NamedTuple):
    """The free words of a command line, sorted: at most one data set, and overrides."""

    data: str | None
    overrides: list[str]


def sort_words(words: Sequence[str]) -> Words:
    """Tells `DATA` from `key.sub=value` by the word before the first `=`; `./a=b` is a path.

    Raises:
        ConfigError: more than one word that is not an override.
    """
    data = [word for word in words if not is_override(word)]
    if len(data) > 1:
        raise ConfigError(
            f"got {len(data)} data sets ({', '.join(repr(word) for word in data)}), expected one DATA and key=value "
            "words. Write key=value without blanks around '='."
        )
    return Words(data[0] if data else None, [word for word in words if is_override(word)])


def override(key: str, value: str) -> str:
    """`key=value` for any text, also one that looks like a number or a list."""
    return f"{key}={scalar_text(value)}"


def add_override(overrides: Sequence[str], key: str, value: str | None, given_as: str) -> list[str]:
    """The overrides with `key=value` from an option or argument in front; None adds nothing.

    Raises:
        ConfigError: an override sets the same key.
    """
    if value is None:
        return list(overrides)
    for word in overrides:
        if parse_override(word).dotted == key:
            raise ConfigError(f"{key}: given twice, by {given_as} ('{value}') and by {word}. Leave one out.")
    return [override(key, value), *overrides]


def run_dir_of(name: str | None, run_dir: str | None) -> str | None:
    """The run's folder from `--name` (below runs/) or `--run-dir`; None where neither is given.

    Raises:
        ConfigError: both are given, or the name is a path.
    """
    if name is not None and run_dir is not None:
        raise ConfigError("--name and --run-dir both choose the run's folder. Give one of them.")
    if name is None:
        return run_dir
    if not name or Path(name).name != name:
        raise ConfigError(
            f"--name: got '{name}', expected a plain name (the run is kept in runs/NAME). Or use --run-dir."
        )
    return str(RUNS / name)


def settings_file(run_or_file: str) -> Path:
    """The YAML file meant by a run's folder or a file's path.

    Raises:
        ConfigError: there is no such file or folder, or no config.yaml in it.
    """
    path = Path(run_or_file)
    if path.is_dir():
        path = path / SETTINGS_FILE
        if not path.is_file():
            raise ConfigError(f"'{run_or_file}': no {SETTINGS_FILE} in this folder, so it is not a run.")
    if not path.is_file():
        raise ConfigError(f"'{run_or_file}': no such run or file. Give a run's folder, such as runs/NAME.")
    return path

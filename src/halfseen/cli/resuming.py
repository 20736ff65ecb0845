"""What the commands that train share: going on with a run, and starting several processes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from halfseen.cli.arguments import add_override, settings_file
from halfseen.cli.exits import complain
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.config.load import Layer, Loaded

Model = TypeVar("Model", bound=BaseModel)

OTHER = {"pretrain": "finetune", "finetune": "pretrain"}
"""Which command goes on with the other kind of run."""


def settings_to_go_on(
    model_class: type[Model],
    command: str,
    run: str,
    layers: Sequence["Layer"],
    overrides: Sequence[str],
    free: Sequence[str] = (),
) -> "Loaded[Model]":
    """The settings with which a run goes on: its own, in which runtime and bookkeeping may be changed.

    Threads that nobody chose are counted anew if another number of processes shares the cores; else they stay, for
    their number decides the order of float sums.

    Args:
        model_class: the run's settings.
        command: the sub-command, "pretrain" or "finetune".
        run: the run's folder.
        layers, overrides: what is said anew.
        free: further keys that may be changed.
    Raises:
        ConfigError: no such run, one of the other command, or other settings that decide the weights.
    """
    from halfseen.config.load import DEFAULT, Layer, load_config
    from halfseen.config.yaml_text import read_settings, show
    from halfseen.engine.config import local_processes, science_settings
    from halfseen.engine.folder import read_environment

    stored = settings_file(run)
    settings = read_settings(stored)
    if ("protocol" in settings) != (command == "finetune"):
        raise ConfigError(
            f"--resume: '{stored.parent}' is a run of `halfseen {OTHER[command]}`. Go on with it by `halfseen "
            f"{OTHER[command]} --resume {stored.parent}`."
        )
    own = Layer(f"run '{stored.parent}'", settings)
    before = science_settings(load_config(model_class, [own]).config.model_dump(mode="json"))
    environment, runtime = read_environment(stored.parent), settings.get("runtime")
    from_cores = environment.get("threads_from_cores", False)
    if from_cores and environment["processes"] != local_processes() and isinstance(runtime, dict):
        runtime.pop("threads", None)
    words = add_override(overrides, "run_dir", str(stored.parent), "--resume")
    loaded = load_config(model_class, [own, *layers], words)
    now = science_settings(loaded.config.model_dump(mode="json"))
    changed = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key) and key not in free]
    if changed:
        raise ConfigError(
            "\n".join(
                f"{key}: got {show(now.get(key))}, but the run in '{stored.parent}' was started with "
                f"{show(before.get(key))}. Leave it out to go on, or start a new run."
                for key in changed
            )
        )
    if from_cores and loaded.provenance["runtime.threads"] == own.name:
        loaded.provenance["runtime.threads"] = DEFAULT
    return loaded


def launch_again(command: str, devices: int, words: Sequence[str], options: Mapping[str, object]) -> int:
    """Runs the same command line in several processes and gives the exit code.

    Args:
        options: by name; None is left out, True stands for a flag.
    """
    from halfseen.engine.distributed import launch

    given: list[str] = []
    for option, value in options.items():
        if value is not None:
            given += [option] if value is True else [option, str(value)]
    ended = launch(devices, [command, *words, *given])
    if ended.message is not None:
        complain(ended.message)
    return ended.exit_code

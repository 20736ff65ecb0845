"""A pre-training run's settings in its folder. All else in it is the engine's (`engine.folder`) or the data's."""

from pathlib import Path

from halfseen.config.load import Loaded, dump_config
from halfseen.engine.folder import CONFIG, write_whole
from halfseen.errors import CheckpointError
from halfseen.pretraining.config import RunConfig, load_run_config


def write_config(folder: Path, loaded: Loaded[RunConfig]) -> None:
    """Write config.yaml: all settings, each with a comment that says who set it."""
    write_whole(folder / CONFIG, dump_config(loaded.config, loaded.provenance))


def read_config(folder: Path) -> RunConfig:
    """The settings of a run.

    Raises:
        CheckpointError: the folder is not a run's.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"'{folder}' is not a run: it has no {CONFIG}. Give the folder of a run, e.g. runs/mae-1."
        )
    return load_run_config(None, folder / CONFIG).config

"""What people's words for encoders and images mean: a run's folder with its settings, a file, a data set, its splits.

Shared by the command line and `halfseen.evaluate`. Light: the library is imported when something is opened.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.backbones.base import Encoder
    from halfseen.backbones.weights import LoadedEncoder
    from halfseen.data.sources import Source
    from halfseen.engine.config import RuntimeConfig
    from halfseen.evaluation.statements import Split as Side
    from halfseen.evaluation.subject import Subject
    from halfseen.pretraining.config import RunConfig

Split = Literal["train", "test"]


class Run(NamedTuple):
    """A run's folder and its configuration."""

    folder: Path
    config: "RunConfig"


def find_run(word: str) -> Run | None:
    """The run of pre-training that a word names; None where it names something else: a file, a timm model, a folder."""
    folder = Path(word)
    if not (folder / "config.yaml").is_file() or is_finetuning(folder):
        return None
    from halfseen.pretraining.folder import read_config

    return Run(folder, read_config(folder))


def is_finetuning(folder: Path) -> bool:
    """Whether a folder with a config.yaml is one of fine-tuning, whose encoder is measured like any exported one."""
    from halfseen.config.yaml_text import read_settings

    return "protocol" in read_settings(folder / "config.yaml")


def need_run(word: str) -> Run:
    """The run that a word names.

    Raises:
        ConfigError: if it isn't a run's folder.
    """
    run = find_run(word)
    if run is None:
        raise ConfigError(f"'{word}' is not a run: it is no folder with a config.yaml. Give one like runs/NAME.")
    return run


def open_images(source: str, split: Split, run: Run | None = None, size: int | None = None) -> "Source":
    """A split of some data, opened with the run's own settings where it is the run's data.

    Args:
        size: side of the images that are looked at: other data that is composed is drawn for it, whoever asks.
    """
    from halfseen.data.config import DataConfig
    from halfseen.data.sources import open_source

    own = None if run is None else run.config.data
    if size is not None and (own is None or own.source != source):
        own = DataConfig(source=source, image_size=min(max(size, 16), 4096))
    return open_source(source, split, config=own)


def whole_or_split(source: str, split: Split) -> Split:
    """`split` where the data has it; 'train', which is all of it, where the data has no parts."""
    from halfseen.data.sources import has_split

    return split if split == "train" or has_split(source, split) else "train"


def open_test(source: str, train: str, run: Run | None = None, size: int | None = None) -> "Side | None":
    """The images that are classified: the test split of `source`, or all of it; None where they are `train`'s own."""
    from halfseen.evaluation.statements import Split as Side

    split = whole_or_split(source, "test")
    if split == "train" and source == train:
        return None
    return Side(open_images(source, split, run, size), split if split == "test" else "all")


def same_network(loaded: "LoadedEncoder", run: Run | None, seed: int) -> Callable[[], "Encoder"]:
    """Builds the encoder's network anew: as the run's method begins it, or as timm does for other encoders."""

    def build() -> "Encoder":
        if run is not None and run.config.data.image_size == loaded.encoder.image_size:
            from halfseen.pretraining.build import untrained_encoder

            return untrained_encoder(run.config)
        import torch

        from halfseen.backbones.build import build_encoder

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_encoder(loaded.encoder.config, loaded.encoder.image_size)

    return build


def forward_settings(device: str | None, precision: str | None, run: Run | None = None) -> "RuntimeConfig":
    """Where and in which number format the encoder computes: as asked, else as the run did, else fp32.

    Raises:
        ConfigError: an unknown device or precision.
    """
    from halfseen.config.load import load_config
    from halfseen.engine.config import RuntimeConfig

    if precision is None:
        precision = "fp32" if run is None else run.config.runtime.precision
    words = [f"precision={precision}"] + ([] if device is None else [f"device={device}"])
    return load_config(RuntimeConfig, overrides=words).config


def subject_of(
    loaded: "LoadedEncoder", forward: "RuntimeConfig", run: Run | None, seed: int, workers: int
) -> "Subject":
    """A loaded encoder as what a protocol measures."""
    from halfseen.data.diary import read_drawn_from
    from halfseen.evaluation.subject import Subject
    from halfseen.reports.runfiles import pretraining_fingerprint

    return Subject(
        loaded.encoder,
        same_network(loaded, run, seed),
        loaded.mean,
        loaded.std,
        loaded.origin,
        role=loaded.role,
        pretrained_on=None if run is None else pretraining_fingerprint(run.folder),
        pretrained_from=() if run is None else read_drawn_from(run.folder),
        device=forward.device,
        precision=forward.precision,
        workers=workers,
        taught_on=loaded.taught_on,
    )

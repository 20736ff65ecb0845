"""What the commands that measure a frozen encoder share: their options, and how words become a `Subject`."""

from typing import Annotated

import typer

from halfseen.errors import ConfigError
from halfseen.opening import Run, subject_of

__all__ = [
    "CropRatio",
    "Device",
    "EncoderWord",
    "ForwardBatch",
    "ImageSize",
    "LastBlocks",
    "MaxTest",
    "Precision",
    "Pretrained",
    "Role",
    "TestData",
    "Workers",
    "labelled_data",
    "subject_of",
]

EncoderWord = Annotated[
    str, typer.Argument(help="A run's folder, an encoder.safetensors, an official checkpoint, or timm:NAME.")
]
TestData = Annotated[
    str | None,
    typer.Option(help="DATA that is classified: its test split, or all of it; --train if left out."),
]
LastBlocks = Annotated[int | None, typer.Option(min=1, help="Blocks whose tokens are concatenated.")]
Role = Annotated[str | None, typer.Option(help="student or teacher, of a run that has both.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Side of the images; the encoder's if left out.")]
CropRatio = Annotated[
    float | None, typer.Option(help="Side of the centre crop over the resized shorter side, e.g. 0.875 or 1.")
]
MaxTest = Annotated[int | None, typer.Option(min=1, help="Most images that are classified.")]
ForwardBatch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images per forward pass.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest one found if left out.")]
Precision = Annotated[str | None, typer.Option(help="Of the forward pass: fp32, bf16 or fp16; the run's, else fp32.")]
Workers = Annotated[int, typer.Option(min=0, help="Loader processes.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download timm's weights for timm:NAME.")]


def labelled_data(train: str | None, run: Run | None, purpose: str, option: str = "--train") -> str:
    """The data whose labels are used: as asked, else the run's own.

    Args:
        option: the one that names it.
        purpose: what the labelled images are for, after "Name ", in the sentence where there are none.
    Raises:
        ConfigError: neither.
    """
    if train is not None:
        return train
    if run is None:
        raise ConfigError(f"{option}: missing. Name {purpose}, for instance {option} bundled:fashion.")
    return run.config.data.source

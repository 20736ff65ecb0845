"""The linear head that was trained on top of an encoder, in a file beside it."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

HEAD = "head.safetensors"
_PREFIX = "head."


def write_head(head: nn.Linear, folder: Path) -> None:
    """Write the head's weights, replacing an older file whole."""
    tensors = {f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    beside = folder / f"{HEAD}.partial"
    save_file(tensors, beside)
    beside.replace(folder / HEAD)


def read_head(head: nn.Linear, folder: Path) -> None:
    """Give `head` the weights that `write_head` wrote."""
    head.load_state_dict({name.removeprefix(_PREFIX): value for name, value in load_file(folder / HEAD).items()})

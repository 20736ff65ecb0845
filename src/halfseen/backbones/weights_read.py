"""Reading files of weights from strangers without running any code of theirs."""

import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from halfseen.errors import WeightsError


class _Settings:
    """Stands in for the settings objects that original training scripts store beside the weights.

    Becomes an empty ordered dictionary whatever it is called with: its content is read as plain data, never executed.
    """

    def __new__(cls, *args: object, **kwargs: object) -> OrderedDict[str, object]:  # type: ignore[misc]
        return OrderedDict()


# Classes that published checkpoints carry in their settings; each is replaced by the harmless one above.
_HARMLESS = ("yacs.config.CfgNode", "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.Path")

# Where the weights stand in a checkpoint, in the order in which they are looked for.
_CONTAINERS = ("model", "model_state_dict", "state_dict")

Role = Literal["student", "teacher"]
# The same where a checkpoint holds two networks: iBOT, DINO and AttMask; MSN.
_BY_ROLE: tuple[dict[Role, str], ...] = (
    {"teacher": "teacher", "student": "student"},
    {"teacher": "target_encoder", "student": "encoder"},
)
PROTOTYPES = "prototypes"
"""Name of MSN's prototypes, which stand beside its two networks."""


def read_tensors(path: Path, role: Role | None = None) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file or a PyTorch checkpoint, by name, on the CPU.

    A checkpoint's weights are taken from its `model`, `model_state_dict` or `state_dict`, else from the top; the
    prefix `module.` of data-parallel training is removed.

    Args:
        role: which network of a file with a student and a teacher (MSN: anchor and target); None = the teacher.
    Raises:
        WeightsError: a missing, damaged or foreign file, or one that would have to run code to be read; a role that
            the file hasn't.
    """
    if not path.is_file():
        raise WeightsError(f"weights: there is no file {str(path)!r}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    container: object = _of_role(content, role) if isinstance(content, dict) else content
    for name in _CONTAINERS:
        if isinstance(container, dict) and isinstance(container.get(name), dict):
            container = container[name]
            break
    tensors = {
        str(name): value.detach()
        for name, value in (container.items() if isinstance(container, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightsError(
            f"weights: {str(path)!r} holds no tensors by name; give a state dict, or a checkpoint with one under "
            f"{', '.join(map(repr, _CONTAINERS))}."
        )
    if all(name.startswith("module.") or name == PROTOTYPES for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _of_role(content: dict[str, object], role: Role | None) -> dict[str, object]:
    """The network of a role, or the whole content where there is but one network."""
    for names in _BY_ROLE:
        if any(isinstance(content.get(name), dict) for name in names.values()):
            chosen = content.get(names[role or "teacher"])
            if not isinstance(chosen, dict) and role is None:
                chosen = content.get(names["student"])
            if not isinstance(chosen, dict):
                raise WeightsError(f"role: the file has no {role}; it holds {', '.join(map(repr, content))}.")
            prototypes = content.get(PROTOTYPES)
            return chosen | ({PROTOTYPES: prototypes} if isinstance(prototypes, Tensor) else {})
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"weights: {str(path)!r} is damaged or no safetensors file ({error}). Copy or download it again."
        ) from error


def _read_pickle(path: Path) -> object:
    stubs = [(_Settings, name) for name in _HARMLESS]
    try:
        with torch.serialization.safe_globals(stubs), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # remarks on the file's pickle protocol; a fault raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the foreign object '{found.group(1)}'" if found else "foreign objects"
        raise WeightsError(
            f"weights: {str(path)!r} is refused: reading it would run code for {what}. If you trust its author, load "
            "it where nothing can be harmed, save only the state dict with safetensors.torch.save_file, and give that "
            "file."
        ) from error
    except Exception as error:  # A damaged file can fail anywhere in torch's reader.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(
            f"weights: {str(path)!r} can't be read as a PyTorch checkpoint ({reason}). Is it complete? Copy or "
            "download it again."
        ) from error

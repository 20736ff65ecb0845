"""Reading files of weights from strangers without running any code of theirs."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

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


class _Number:
    """Stands in for numpy's numbers and arrays, in which optimizers of original scripts keep their learning rates.

    Holds nothing, whatever it is called with or filled from.
    """

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Classes that published checkpoints carry beside their weights; each is replaced by one of the harmless ones above.
_SETTINGS = ("yacs.config.CfgNode", "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.Path")
_NUMBERS = (
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
)

# Where the weights stand in a checkpoint, in the order in which they are looked for.
_CONTAINERS = ("model", "model_state_dict", "state_dict", "encoder")

Role = Literal["student", "teacher"]
ROLES: tuple[Role, ...] = ("student", "teacher")
Family = Literal["ibot", "msn"]
# Where they stand in a checkpoint of two networks; iBOT's entries are also those of DINO and AttMask.
_BY_ROLE: dict[Family, dict[Role, str]] = {
    "ibot": {"teacher": "teacher", "student": "student"},
    "msn": {"teacher": "target_encoder", "student": "encoder"},
}
PROTOTYPES = "prototypes"
"""Name of MSN's prototypes, which stand beside its two networks."""


class Content(NamedTuple):
    """The tensors of a file, and what its outer layout tells.

    Attributes:
        tensors: one network, by name.
        role: which of a student and a teacher it is; None where the file doesn't tell them apart.
        roles: all that the file holds.
        family: whose layout of two networks it is.
    """

    tensors: dict[str, Tensor]
    role: Role | None = None
    roles: tuple[Role, ...] = ()
    family: Family | None = None


def read_tensors(path: Path, role: Role | None = None) -> Content:
    """All tensors of a `.safetensors` file or a PyTorch checkpoint, by name, on the CPU.

    A checkpoint's weights are taken from its `model`, `model_state_dict`, `state_dict` or `encoder`, else from the
    top; the prefix `module.` of data-parallel training is removed.

    Args:
        role: which network of a file with a student and a teacher (MSN: anchor and target); None = the teacher, or
            the only one there.
    Raises:
        WeightsError: a missing, damaged or foreign file, or one that would have to run code to be read; a role that
            a file of two networks lacks.
    """
    if not path.is_file():
        raise WeightsError(f"weights: there is no file {str(path)!r}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    found = _networks(content) if isinstance(content, dict) else None
    if found is None:
        return Content(_named_tensors(content, path))
    family, networks, prototypes = found
    roles = tuple(networks)  # the teacher first
    chosen = role or roles[0]
    if chosen not in networks:
        raise WeightsError(f"role: {str(path)!r} has no {chosen}, only a {roles[0]}.")
    tensors = _named_tensors(networks[chosen], path)
    return Content(tensors | prototypes, chosen, roles, family)


def _networks(
    content: Mapping[str, object],
) -> tuple[Family, dict[Role, Mapping[str, object]], dict[str, Tensor]] | None:
    """Whose layout it is, the networks by role, and MSN's prototypes; None for a file without such entries."""
    content = _nested(content)
    prototypes = content.get(PROTOTYPES)
    beside = {PROTOTYPES: prototypes} if isinstance(prototypes, Tensor) else {}
    for family, entries in _BY_ROLE.items():
        networks: dict[Role, Mapping[str, object]] = {}
        for role, entry in entries.items():
            network = content.get(entry)
            if isinstance(network, Mapping):
                networks[role] = network
        # A lone `encoder` is anybody's.
        if networks and (family == "ibot" or "teacher" in networks or beside):
            return family, networks, beside
    return None


def _nested(content: Mapping[str, object]) -> Mapping[str, object]:
    """A flat file of two networks (`teacher.backbone.norm.weight`) like the checkpoint that it was made from.

    A run's own checkpoints (`teacher.trunk.norm.weight`) are left as they are.
    """
    names = [str(name) for name in content]
    if any(name.startswith(("encoder.trunk.", "teacher.trunk.")) for name in names):
        return content
    entries: tuple[str, ...] = ()
    if any(name.startswith(("student.", "teacher.")) for name in names):
        entries = ("student", "teacher")
    elif any(name.startswith("target_encoder.") for name in names):
        entries = ("encoder", "target_encoder")
    networks: dict[str, dict[str, object]] = {}
    rest: dict[str, object] = {}
    for name, value in content.items():
        entry, _, inner = str(name).partition(".")
        if inner and entry in entries:
            networks.setdefault(entry, {})[inner] = value
        else:
            rest[name] = value
    return rest | networks


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one inside a checkpoint."""
    container = content
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
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"weights: {str(path)!r} is damaged or no safetensors file ({error}). Copy or download it again."
        ) from error


def _read_pickle(path: Path) -> object:
    stubs = [*((_Settings, name) for name in _SETTINGS), *((_Number, name) for name in _NUMBERS)]
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

"""Checkpoints that survive anything: a folder appears under its name only when all of it is on the disk.

`checkpoints/step-XXXXXXXX/` holds model.safetensors, optimizer.safetensors, state.json and checksums.json (sha256 of
the others). It is written beside under a hidden name, flushed to the disk, then renamed; so a kill at any moment, or a
full disk, leaves the previous checkpoint as it was. No pickles: reading one can't run code.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfseen.engine.state import TrainState
from halfseen.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "checkpoints"
MODEL, OPTIMIZER, STATE, CHECKSUMS = "model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"
PARTIAL = ".partial-"
REPLACED = ".replaced-"


@dataclass(frozen=True)
class Identity:
    """What a run is: its method and all settings that decide its weights (dotted, see `config.science_settings`)."""

    method: str
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 over the method and the settings."""
        text = json.dumps([self.method, _plain(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Checkpoint(NamedTuple):
    """The content of a checkpoint folder, on the CPU."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainState
    identity: Identity


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_dir / FOLDER / f"step-{step:08d}"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, whether whole or damaged."""
    return sorted(path for path in (run_dir / FOLDER).glob("step-*") if path.is_dir())


def save_checkpoint(
    run_dir: Path,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: TrainState,
    identity: Identity,
    keep: int,
) -> Path:
    """Write the checkpoint of `state.step` and delete all but the `keep` newest up to that step.

    Returns:
        the checkpoint's folder.
    Raises:
        CheckpointError: if the disk is full or can't be written; older checkpoints are as they were.
    """
    target = checkpoint_path(run_dir, state.step)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    try:
        _clean(target.parent)
        partial.mkdir(parents=True)
        unique, aliases = _without_aliases(model)
        save_file(unique, partial / MODEL)
        save_file({name: tensor.detach().contiguous() for name, tensor in optimizer.items()}, partial / OPTIMIZER)
        content = {
            "format": FORMAT,
            "state": state.to_json(),
            "method": identity.method,
            "digest": identity.digest,
            "settings": _plain(identity.settings),
            "aliases": aliases,
        }
        _write_text(partial / STATE, json.dumps(content, indent=1))
        sums = {name: _sha256(partial / name) for name in (MODEL, OPTIMIZER, STATE)}
        _write_text(partial / CHECKSUMS, json.dumps(sums, indent=1))
        for name in (MODEL, OPTIMIZER, STATE, CHECKSUMS):
            _flush(partial / name)
        _flush(partial)
        _put_in_place(partial, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = [path for path in list_checkpoints(run_dir) if path != target]
        kept = f"The previous one, {before[-1]}, is untouched" if before else "There is no earlier one"
        raise CheckpointError(
            f"The checkpoint of step {state.step} could not be written to '{target.parent}': {_reason(error)}. {kept}. "
            "Free some space or mend the folder, then resume the run."
        ) from error
    older = [path for path in list_checkpoints(run_dir) if path.name <= target.name]
    for path in older[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def load_checkpoint(path: Path, identity: Identity | None = None) -> Checkpoint:
    """Read a checkpoint folder and verify its checksums, and that it belongs to this run if `identity` is given.

    Raises:
        CheckpointError: if it is missing, damaged (naming the file and the newest whole checkpoint before it), of
            another method, or of other settings (listing them).
    """
    damage = find_damage(path)
    if damage is not None:
        whole = next(
            (str(other) for other in _newest_first(path.parent.parent, before=path) if not find_damage(other)), ""
        )
        way_out = f"Resume from the previous one, '{whole}'" if whole else "There is no earlier one: start the run anew"
        raise CheckpointError(f"The checkpoint '{path}' is damaged: {damage}. {way_out}.")
    content = json.loads((path / STATE).read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint '{path}' has format {content['format']}, this version reads format {FORMAT}. "
            "Use the version of halfseen that wrote it."
        )
    found = Identity(content["method"], content["settings"])
    if identity is not None:
        _compare(path, found, identity)
    model = load_file(path / MODEL)
    model |= {alias: model[name] for alias, name in content["aliases"].items()}
    return Checkpoint(path, model, load_file(path / OPTIMIZER), TrainState.from_json(content["state"]), found)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None if it has none; a damaged newer one is named in a warning.

    Raises:
        CheckpointError: if there are checkpoints but all are damaged.
    """
    _bring_back_replaced(run_dir / FOLDER)
    damaged: list[str] = []
    for path in _newest_first(run_dir):
        damage = find_damage(path)
        if damage is None:
            if damaged:
                logger.warning("Damaged: %s. Using the newest whole checkpoint, '%s'.", "; ".join(damaged), path)
            return path
        damaged.append(f"'{path}' ({damage})")
    if damaged:
        raise CheckpointError(
            f"No checkpoint in '{run_dir / FOLDER}' is whole: {'; '.join(damaged)}. "
            "Start the run anew in another run_dir."
        )
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words; None if every file is there and has its checksum."""
    if not path.is_dir():
        return "there is no such folder"
    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        expected = {name: str(sums[name]) for name in (MODEL, OPTIMIZER, STATE)}
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{CHECKSUMS} can't be read"
    for name, checksum in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != checksum:
            return f"{name} is truncated or changed (its checksum differs)"
    return None


def restore_model(method: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights and buffers of a checkpoint into a method of the same form.

    Raises:
        CheckpointError: naming missing, unexpected and re-shaped tensors.
    """
    own = method.state_dict()
    faults = [f"missing {name}" for name in own.keys() - checkpoint.model.keys()]
    faults += [f"unexpected {name}" for name in checkpoint.model.keys() - own.keys()]
    faults += [
        f"{name} has shape {tuple(checkpoint.model[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in checkpoint.model and checkpoint.model[name].shape != tensor.shape
    ]
    if faults:
        raise CheckpointError(f"The checkpoint '{checkpoint.path}' doesn't fit the model: {'; '.join(sorted(faults))}.")
    method.load_state_dict(checkpoint.model)


def _compare(path: Path, found: Identity, wanted: Identity) -> None:
    if found.method != wanted.method:
        raise CheckpointError(
            f"The checkpoint '{path}' is of the method '{found.method}', this run is '{wanted.method}'. "
            f"Set method.name={found.method} or choose another run_dir."
        )
    if found.digest == wanted.digest:
        return
    before, now = _plain(found.settings), _plain(wanted.settings)
    differing = [
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) or (key in before) != (key in now)
    ]
    raise CheckpointError(
        f"The checkpoint '{path}' was trained with other settings: {'; '.join(differing)}. "
        "Give the old values to resume, or choose another run_dir to start anew."
    )


def _newest_first(run_dir: Path, before: Path | None = None) -> Iterator[Path]:
    for path in reversed(list_checkpoints(run_dir)):
        if before is None or path.name < before.name:
            yield path


def _without_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the further names of tied ones: safetensors holds no tensor under two names."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        unique[name] = tensor.detach() if whole else tensor.detach().clone().contiguous()
    return unique, aliases


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename; a folder that already has the name (written before an older checkpoint was resumed) makes room first."""
    if target.exists():
        replaced = target.with_name(f"{REPLACED}{target.name}")
        target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        partial.rename(target)
    _flush(target.parent)


def _clean(folder: Path) -> None:
    """Remove what a kill left half written."""
    _bring_back_replaced(folder)
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path)


def _bring_back_replaced(folder: Path) -> None:
    """Give a checkpoint its name back whose successor was killed before it got it."""
    for path in folder.glob(f"{REPLACED}*"):
        original = path.with_name(path.name.removeprefix(REPLACED))
        if original.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(original)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    return text.split("message: ")[-1].strip(' "{}') if "message: " in text else text


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as json would give them back, so that tuples and lists compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return plain

"""Weights in and out: official checkpoints, runs, plain timm files in; a folder that timm loads strictly out."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, get_args

import timm
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.beit import BeitEncoder
from halfseen.backbones.build import build_encoder, timm_call
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.weights_names import (
    KINDS,
    MERGE_ORDERS,
    Kind,
    State,
    detect_kind,
    infer_model,
    own_roles,
    take_apart,
)
from halfseen.backbones.weights_read import ROLES, Role, read_tensors
from halfseen.errors import ConfigError, ShapeError, WeightsError
from halfseen.ops.bias_tables import resize_bias_table, table_side
from halfseen.ops.positions import PositionRule, resize_positions

FORMAT_VERSION = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
TABLE = "relative_position_bias_table"

Json = Mapping[str, object]


class KeyReport(NamedTuple):
    """What became of the tensors of a file, by name.

    Attributes:
        missing: of the model, but not in the file: left at their random start.
        unexpected: in the file, but of no use to the model.
        reshaped: positions or bias tables that were resized to the model's image size.
        ignored: in the file, without content of their own (index tables, aliases).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {word}" + (f": {_few(names)}" if names else "") for word, names in self._asdict().items()
        ]
        return "; ".join(parts) + "."


@dataclass(frozen=True)
class Imported:
    """A checkpoint taken apart.

    Attributes:
        kind: which code wrote it.
        encoder_state: timm's names, shapes as in the file.
        mask_token: the encoder's, where there is one (MAE's belongs to its decoder, iBOT's to the student).
        decoder_state: names of the decoder in `backbones.decoders`.
        head_state: a classifier's head, timm's names.
        projection_state: the head of iBOT, DINO or MSN, names of `backbones.heads`; MSN's prototypes too.
        branch_state: LocalMIM's tap norms but the last and its HOG constants, see `weights_names.Parts`.
        scales: of LocalMIM's branches, by number: cells per token along one axis.
        role: which of a student and a teacher it is; None where the file doesn't tell them apart.
        roles: all that the file holds.
        config, image_size: the model that fits it.
        report: what became of its tensors when fitted to that model.
        origin: the file.
    """

    kind: Kind
    encoder_state: State
    mask_token: Tensor | None
    decoder_state: State
    head_state: State
    config: ModelConfig
    image_size: int
    report: KeyReport
    origin: str
    projection_state: State = field(default_factory=dict)
    branch_state: State = field(default_factory=dict)
    scales: Mapping[int, float] = field(default_factory=dict)
    role: Role | None = None
    roles: tuple[Role, ...] = ()

    def build(self, image_size: int | None = None) -> Encoder:
        """The encoder with these weights, positions resized to `image_size` if given."""
        encoder = build_encoder(self.config, image_size or self.image_size)
        self.load_into(encoder)
        return encoder

    def load_into(self, model: nn.Module, partial: bool = False) -> KeyReport:
        """Load the encoder's weights into an `Encoder`, or a bare timm model (also with a classifier).

        Positions and bias tables are resized to the model's image size. The mask token has its place beside an
        `Encoder`; a bare model has none, so there it counts as unexpected.

        Raises:
            WeightsError: shapes that can't be mended; missing or unexpected names unless `partial`.
        """
        state = dict(self.encoder_state)
        trunk, rule = model, self.config.position_rule
        if isinstance(model, Encoder):
            trunk, rule = model.trunk, model.config.position_rule
        else:
            state |= self.head_state
            if self.mask_token is not None:
                state["mask_token"] = self.mask_token
        fitted, report = fit_state(state, trunk, rule)
        if not partial and (report.missing or report.unexpected):
            raise WeightsError(
                f"weights: {self.origin!r} ({self.kind}) doesn't fit this model. {report._replace(ignored=())} "
                "Load it partially on purpose, or build the model it was made for."
            )
        trunk.load_state_dict(fitted, strict=False)
        return report._replace(ignored=self.report.ignored)


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder ready for use, with the normalisation of its images.

    Attributes:
        mean, std: of the pixels in [0, 1], per colour.
        image_size: side in pixels for which it was built.
        role: "student" or "teacher"; "imported" where a foreign file doesn't tell, "random" without weights.
        origin: where it came from, for results and messages.
        report: what became of the tensors of a foreign file; None for our own.
        taught_on: fingerprints of the data whose labels or masks these weights have learned from.
    """

    encoder: Encoder
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    role: str
    origin: str
    report: KeyReport | None = None
    taught_on: tuple[str, ...] = ()


def fit_state(state: State, trunk: nn.Module, rule: PositionRule = "size") -> tuple[State, KeyReport]:
    """Bring tensors under timm's names to the shapes of a timm model.

    Learned positions are resized by `rule`; bias tables by SimMIM's remapping, compared table by table (in a Swin, a
    stage smaller than the window has a smaller table); a shared table is copied into every block of a model with
    per-block tables.

    Returns:
        the tensors that the model takes, and the report.
    Raises:
        WeightsError: another width, depth or number of heads.
    """
    wanted = {name: tensor.shape for name, tensor in trunk.state_dict().items()}
    state = _spread_shared_table(state, wanted)
    fitted: State = {}
    reshaped: list[str] = []
    faults: list[str] = []
    for name, shape in wanted.items():
        if name not in state:
            continue
        tensor = state[name]
        if tensor.shape != shape:
            try:
                tensor = _resized(name, tensor, shape, trunk, rule)
            except ShapeError as error:
                faults.append(f"{name} ({error})")
                continue
            if tensor.shape != shape:
                faults.append(f"{name} {tuple(tensor.shape)}, the model has {tuple(shape)}")
                continue
            reshaped.append(name)
        fitted[name] = tensor
    if faults:
        raise WeightsError(
            f"weights: {len(faults)} tensors have other shapes than the model: {_few(faults, 3)}. Only positions and "
            "bias tables can be resized; set the model's sizes to the file's."
        )
    missing = tuple(name for name in wanted if name not in state)
    unexpected = tuple(sorted(name for name in state if name not in wanted))
    return fitted, KeyReport(missing, unexpected, tuple(reshaped))


def _spread_shared_table(state: State, wanted: Mapping[str, torch.Size]) -> State:
    """A shared table as one copy per block, where the model has its tables in the blocks."""
    places = [name for name in wanted if name.startswith("blocks.") and name.endswith(TABLE)]
    if SHARED_TABLE in state and SHARED_TABLE not in wanted and places:
        rest = {name: tensor for name, tensor in state.items() if name != SHARED_TABLE}
        return rest | {place: state[SHARED_TABLE].clone() for place in places}
    if SHARED_TABLE in wanted and SHARED_TABLE not in state and any(name.endswith(TABLE) for name in state):
        raise WeightsError(
            "weights: the file has a bias table in every block, the model one for all; set "
            "model.relative_positions=per_block."
        )
    return state


def _resized(name: str, tensor: Tensor, shape: torch.Size, trunk: nn.Module, rule: PositionRule) -> Tensor:
    if name == "pos_embed" and tensor.ndim == 3 and tensor.shape[2] == shape[2]:
        prefix = 0 if getattr(trunk, "no_embed_class", False) else int(trunk.num_prefix_tokens)  # type: ignore[arg-type]
        rows, columns = trunk.patch_embed.grid_size  # type: ignore[union-attr, misc]
        return resize_positions(tensor, int(rows), int(columns), prefix, rule)
    if name.endswith(TABLE) and tensor.ndim == 2:
        if tensor.shape[1] != shape[1]:
            raise ShapeError(f"{tensor.shape[1]} heads, the model has {shape[1]}")
        class_rows = 0 if name.startswith("layers.") else 3
        return resize_bias_table(tensor, table_side(shape[0], class_rows), class_rows)
    return tensor


def import_checkpoint(
    path: str | Path,
    kind: str | None = None,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    model: ModelConfig | None = None,
    role: str | None = None,
    patch_merge_order: str | None = None,
) -> Imported:
    """Read a checkpoint of SimMIM, ViNy, MAE, KAMIM, LocalMIM, iBOT, AttMask, DINO, MSN, timm or our own.

    Nothing of it is executed. The model's sizes are read off the shapes.

    Args:
        kind: one of `weights_names.KINDS`; None = told by the tensors' names.
        image_size: side in pixels to fit it to; None = the one it was made for, as far as it shows.
        num_heads: attention heads of a plain ViT or ViNy, which weights don't show; None = the usual number.
        model: the whole configuration, instead of what the shapes tell.
        role: "student" or "teacher" of a file that holds both; None = the teacher.
        patch_merge_order: of LocalMIM's Swin, see `weights_names.PatchMergeOrder`; None = "pretrain".
    Raises:
        WeightsError: an unreadable or unsafe file, no known layout, shapes that don't fit, a role that isn't there.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise WeightsError(f"kind: unknown {kind!r}. Known: {', '.join(get_args(Kind))}.")
    if role is not None and role not in ROLES:
        raise WeightsError(f"role: unknown {role!r}. Known: {', '.join(ROLES)}.")
    if patch_merge_order is not None and patch_merge_order not in MERGE_ORDERS:
        raise WeightsError(f"patch_merge_order: unknown {patch_merge_order!r}. Known: {', '.join(MERGE_ORDERS)}.")
    wanted = next((known for known in ROLES if known == role), None)
    content = read_tensors(path, wanted)
    state = content.tensors
    found = detect_kind(state, content.family) if kind is None else next(known for known in KINDS if known == kind)
    roles = own_roles(state) if found == "halfseen" else content.roles
    if wanted is not None and wanted not in roles:
        what = f"only a {roles[0]}" if roles else "one network only and no student beside a teacher: leave role out"
        raise WeightsError(f"role: {str(path)!r} has no {role}, {what}.")
    chosen = wanted or (roles[0] if roles else None)
    if patch_merge_order is not None and found != "localmim_swin":
        raise WeightsError(
            f"patch_merge_order: got {patch_merge_order!r}, but it has an effect on a Swin of LocalMIM only, and "
            f"{str(path)!r} is {found}. Leave it out."
        )
    order = next((known for known in MERGE_ORDERS if known == patch_merge_order), MERGE_ORDERS[0])
    parts = take_apart(state, found, chosen, order)
    config, native_size = infer_model(parts, found, num_heads) if model is None else (model, image_size or 224)
    imported = Imported(
        kind=found,
        encoder_state=parts.encoder,
        mask_token=parts.mask_token,
        decoder_state=parts.decoder,
        head_state=parts.head,
        config=config,
        image_size=image_size or native_size,
        report=KeyReport(ignored=tuple(sorted(parts.ignored))),
        origin=str(path),
        projection_state=parts.projection,
        branch_state=parts.branches,
        scales=parts.scales,
        role=chosen,
        roles=roles,
    )
    empty = build_encoder(config, imported.image_size, device="meta")
    _, report = fit_state(imported.encoder_state, empty.trunk, config.position_rule)
    return replace(imported, report=report._replace(ignored=imported.report.ignored))


def export_encoder(
    encoder: Encoder,
    folder: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    role: str = "student",
    extra: Json | None = None,
    stem: str = "encoder",
) -> Path:
    """Write `encoder.safetensors` (timm's names) and `encoder.json` into a folder.

    `timm.create_model(json["timm"]["model_name"], **json["timm"]["kwargs"])` builds a model that takes the file
    strictly (not for ViNy, which needs this library). Each file is replaced in one step.

    Args:
        mean, std: normalisation of the pixels in [0, 1], three numbers each.
        role: "student" or "teacher".
        extra: more entries for the json, e.g. the run and its step.
        stem: file name without suffix, to keep several roles in one folder.
    Returns:
        the path of the safetensors file.
    """
    about = {**(extra or {}), "timm": _timm_entry(encoder), "role": role, "notes": _notes(encoder)}
    return _write_export(encoder, dict(encoder.trunk.state_dict()), Path(folder), stem, mean, std, about)


def export_classifier(
    encoder: Encoder,
    head: nn.Linear,
    feature: str,
    folder: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    extra: Json | None = None,
    stem: str = "classifier",
) -> Path:
    """Write an encoder with a linear head as `export_encoder` writes an encoder: timm's names, and a json beside.

    `timm.create_model(json["timm"]["model_name"], **json["timm"]["kwargs"])` builds a classifier that takes the file
    strictly; where timm pools in another way, "timm" is null and the notes say why.

    Args:
        head: its names become `head.*`, or `head.fc.*` in a Swin.
        feature: what the head sees: cls, mean or mean-then-norm, see `evaluation.finetuning.classifier`.
        mean, std, extra, stem: as for `export_encoder`.
    Returns:
        the path of the safetensors file.
    """
    place = "head.fc." if isinstance(encoder, SwinEncoder) else "head."
    tensors = {**encoder.trunk.state_dict(), **{place + name: tensor for name, tensor in head.state_dict().items()}}
    call = _timm_entry(encoder)
    pool = _timm_pool(encoder, feature)
    notes = _notes(encoder)
    if call is not None and pool is None:
        notes.append("timm pools this network in another way; load the file with halfseen.")
    timm_entry = None
    if call is not None and pool is not None:
        kwargs: dict[str, object] = {**call["kwargs"], **pool, "num_classes": head.out_features}  # type: ignore[dict-item]
        timm_entry = {"model_name": call["model_name"], "kwargs": kwargs}
    about = {**(extra or {}), "timm": timm_entry, "feature": feature, "notes": notes}
    return _write_export(encoder, tensors, Path(folder), stem, mean, std, about)


def _timm_pool(encoder: Encoder, feature: str) -> dict[str, object] | None:
    """The arguments with which timm pools as asked; None where it can't."""
    pooled = encoder.config.final_norm == "pooled"
    if isinstance(encoder, SwinEncoder):
        return {} if feature == "mean" else None
    if feature == "mean-then-norm":
        return {} if pooled else None
    if feature == "cls":
        return {"global_pool": "token"} if encoder.has_class_token else None
    return None if isinstance(encoder, BeitEncoder) else {"global_pool": "avg", "fc_norm": False}


def _write_export(
    encoder: Encoder,
    state: State,
    folder: Path,
    stem: str,
    mean: Sequence[float],
    std: Sequence[float],
    more: Json,
) -> Path:
    """The safetensors file and the json beside it, each replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    weights_path = folder / f"{stem}.safetensors"
    partial = weights_path.with_name(weights_path.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    _flush(partial)
    partial.replace(weights_path)
    about = {
        "format_version": FORMAT_VERSION,
        "model": encoder.config.model_dump(mode="json"),
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "num_prefix_tokens": encoder.num_prefix_tokens,
        "layer_norm_eps": _norm_eps(encoder),
        "normalisation": {"mean": list(mean), "std": list(std)},
        "sha256": _sha256(weights_path),
        **more,
    }
    json_path = folder / f"{stem}.json"
    partial = json_path.with_name(json_path.name + ".partial")
    partial.write_text(json.dumps(about, indent=2) + "\n")
    _flush(partial)
    partial.replace(json_path)
    return weights_path


def read_exported(json_path: Path) -> tuple[dict[str, object], State]:
    """What the json of an exported file says, and the tensors beside it.

    Raises:
        WeightsError: not written by this library, or tensors that it doesn't describe.
    """
    about = _read_json(json_path)
    weights_path = json_path.with_suffix(".safetensors")
    missing = [key for key in ("format_version", "sha256", "model", "image_size", "normalisation") if key not in about]
    if missing:
        raise WeightsError(f"encoder: {str(json_path)!r} was not written by `halfseen` ({missing[0]!r} is missing).")
    if about["format_version"] != FORMAT_VERSION:
        raise WeightsError(
            f"encoder: {str(json_path)!r} has format {about['format_version']}, this version reads {FORMAT_VERSION}."
        )
    state = read_tensors(weights_path).tensors
    if _sha256(weights_path) != about["sha256"]:
        raise WeightsError(
            f"encoder: {str(weights_path)!r} is not the file that {json_path.name} describes (sha256 differs); export "
            "the encoder again."
        )
    return about, state


def load_encoder(
    source: str | Path,
    role: str | None = None,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    pretrained: bool = False,
) -> LoadedEncoder:
    """An encoder from a run's folder, an exported file, an official checkpoint, or `timm:NAME`.

    Args:
        role: which encoder of a run; None = the one that the run exported as its main one.
        image_size: side in pixels to resize positions to; None = the one it was made for.
        num_heads: for official plain ViTs of unusual width, see `import_checkpoint`.
        pretrained: download timm's weights for `timm:NAME`; the only case in which the network is used. Without it
            such an encoder has random weights.
    Raises:
        WeightsError: nothing there, or nothing that can be read safely and fits.
    """
    text = str(source)
    if text.startswith("timm:"):
        return _load_timm(text, image_size, pretrained)
    path = Path(source)
    if path.is_dir():
        return _load_folder(path, role, image_size)
    if not path.exists():
        hint = f" For timm's model of that name write 'timm:{text}'." if text in timm.list_models() else ""
        raise WeightsError(
            f"encoder: there is no {text!r}. Give a run's folder, an encoder.safetensors, a checkpoint file or "
            f"'timm:NAME'.{hint}"
        )
    json_path = path.with_suffix(".json")
    if path.suffix == ".json" or (path.suffix == ".safetensors" and json_path.is_file()):
        return _load_exported(json_path, role, image_size)
    imported = import_checkpoint(path, image_size=image_size, num_heads=num_heads, role=role)
    encoder = imported.build()
    own_role = imported.role or "imported"
    return LoadedEncoder(encoder, IMAGENET_MEAN, IMAGENET_STD, encoder.image_size, own_role, text, imported.report)


def _load_timm(text: str, image_size: int | None, pretrained: bool) -> LoadedEncoder:
    name = text.removeprefix("timm:")
    try:
        config = ModelConfig(name=name)
    except ValidationError as error:
        raise WeightsError(f"encoder: {text!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    about = timm.get_pretrained_cfg(name.split(".")[0]) if name in timm.list_models() else None
    side = image_size or (about.input_size[-1] if about else 224)
    try:
        encoder = build_encoder(config, side)
    except (ConfigError, ShapeError) as error:
        raise WeightsError(f"encoder: {text!r}: {error}") from error
    report = None
    if pretrained:
        try:
            whole = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # Hubs and networks fail in their own ways.
            raise WeightsError(f"encoder: the weights of {text!r} could not be fetched ({error}).") from error
        fitted, report = fit_state(whole.state_dict(), encoder.trunk, config.position_rule)
        encoder.trunk.load_state_dict(fitted, strict=False)
    mean = tuple(about.mean) if about and pretrained else IMAGENET_MEAN
    std = tuple(about.std) if about and pretrained else IMAGENET_STD
    return LoadedEncoder(encoder, mean, std, side, "imported" if pretrained else "random", text, report)


def _load_folder(folder: Path, role: str | None, image_size: int | None) -> LoadedEncoder:
    """The exported encoder of a folder, by role; else the newest checkpoint of an unfinished run."""
    found: dict[str, Path] = {}
    for json_path in sorted(folder.glob("encoder*.json"), key=lambda path: (path.stem != "encoder", path.name)):
        found.setdefault(str(_read_json(json_path).get("role")), json_path)
    if found:
        if role is not None and role not in found:
            raise WeightsError(f"role: {str(folder)!r} has no {role!r} encoder. It has: {', '.join(found)}.")
        return _load_exported(found[role] if role else next(iter(found.values())), role, image_size)
    checkpoints = sorted((folder / "checkpoints").glob("step-*/model.safetensors"))
    if checkpoints and (folder / "config.yaml").is_file():
        return _load_unfinished(folder, checkpoints[-1], role, image_size)
    raise WeightsError(
        f"encoder: {str(folder)!r} holds neither an encoder.json nor a run's checkpoints. Give a run's folder, or a "
        "file of weights itself."
    )


def _load_unfinished(folder: Path, checkpoint: Path, role: str | None, image_size: int | None) -> LoadedEncoder:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    state = read_tensors(checkpoint).tensors
    if role is None:  # Where there is a teacher it is what the run will export as its main encoder.
        role = "teacher" if any(name.startswith("teacher.trunk.") for name in state) else "student"
    prefix = "teacher.trunk." if role == "teacher" else "encoder.trunk."
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not own:
        raise WeightsError(f"role: the checkpoint {str(checkpoint)!r} has no {role!r} encoder.")
    config, data = ModelConfig.model_validate(content["model"]), content["data"]
    encoder = build_encoder(config, int(image_size or data["image_size"]))
    fitted, report = fit_state(own, encoder.trunk, config.position_rule)
    _refuse_gaps(report, str(checkpoint))
    encoder.trunk.load_state_dict(fitted)
    mean, std = _three(data.get("mean") or IMAGENET_MEAN), _three(data.get("std") or IMAGENET_STD)
    return LoadedEncoder(encoder, mean, std, encoder.image_size, role, str(checkpoint.parent))


def _load_exported(json_path: Path, role: str | None, image_size: int | None) -> LoadedEncoder:
    about, state = read_exported(json_path)
    weights_path = json_path.with_suffix(".safetensors")
    try:
        own_role = str(about["role"])
        config = ModelConfig.model_validate(about["model"])
        side = int(str(about["image_size"]))
        normalisation = about["normalisation"]
        mean, std = _three(normalisation["mean"]), _three(normalisation["std"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"encoder: {str(json_path)!r} was not written by `halfseen` ({error}).") from error
    if role is not None and role != own_role:
        raise WeightsError(f"role: {str(json_path)!r} is the {own_role!r} encoder, not {role!r}.")
    encoder = build_encoder(config, image_size or side)
    fitted, report = fit_state(state, encoder.trunk, config.position_rule)
    _refuse_gaps(report, str(weights_path))
    encoder.trunk.load_state_dict(fitted)
    taught = about.get("taught_on", [])
    taught_on = tuple(map(str, taught)) if isinstance(taught, list) else ()
    return LoadedEncoder(encoder, mean, std, encoder.image_size, own_role, str(weights_path), taught_on=taught_on)


def _refuse_gaps(report: KeyReport, origin: str) -> None:
    if report.missing or report.unexpected:
        raise WeightsError(f"encoder: {origin!r} doesn't fit the model that it names. {report}")


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"encoder: {str(path)!r} can't be read ({error}).") from error
    if not isinstance(content, dict):
        raise WeightsError(f"encoder: {str(path)!r} was not written by `halfseen`.")
    return content


def _three(values: object) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)  # type: ignore[attr-defined]
    return red, green, blue


def _timm_entry(encoder: Encoder) -> Json | None:
    call = timm_call(encoder.config, encoder.image_size)
    if call is None:
        return None
    return {"model_name": call.model_name, "kwargs": call.kwargs}


def _norm_eps(encoder: Encoder) -> float:
    return next(part.eps for part in encoder.modules() if isinstance(part, nn.LayerNorm))


def _notes(encoder: Encoder) -> list[str]:
    notes = []
    call = timm_call(encoder.config, encoder.image_size)
    if call is None:
        notes.append("timm has no name for this network; load it with halfseen.load_encoder.")
    else:
        plain = timm.create_model(call.model_name, **call.kwargs, device="meta")
        eps = next(part.eps for part in plain.modules() if isinstance(part, nn.LayerNorm))
        if eps != _norm_eps(encoder):
            notes.append(
                f"timm builds this network with LayerNorm eps {eps:g}; the weights were trained with "
                f"{_norm_eps(encoder):g}: set it on every LayerNorm for equal features."
            )
    if isinstance(encoder, SwinEncoder) and encoder.pads_windows:
        notes.append("timm shifts windows before it pads them, this library after (as iBOT): other features in timm.")
    if isinstance(encoder, BeitEncoder):
        notes.append("Relative positions only: not loadable as a timm VisionTransformer.")
    return notes


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _few(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

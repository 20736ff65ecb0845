"""Starting a run from weights that exist already: a run's encoder, an exported one, or an official checkpoint."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import Imported, fit_state, import_checkpoint, load_encoder
from halfseen.errors import WeightsError
from halfseen.methods.base import Method

logger = logging.getLogger(__name__)


def load_initial_weights(method: Method, init: str) -> None:
    """Put the weights of `init` into a method: the encoder always; mask token, decoder, head where the file has them.

    Of a file with a student and a teacher it is the teacher's weights that go into the method's student, with the
    student's mask token, for a teacher has none. The method's teacher starts as its student does, as at the first step
    of a run.

    Positions and bias tables are resized to the method's image size; what became of each key is logged.

    Raises:
        WeightsError: nothing there, an encoder of other sizes, or one that lacks weights.
    """
    encoder = method.encoders()["student"]
    foreign = _read_foreign(init, encoder)
    state = load_encoder(init).encoder.trunk.state_dict() if foreign is None else foreign.encoder_state
    fitted, report = fit_state(state, encoder.trunk, encoder.config.position_rule)
    if report.missing:
        raise WeightsError(
            f"init: '{init}' lacks weights of this model: {', '.join(report.missing[:5])}"
            f"{' ...' if len(report.missing) > 5 else ''}. Set model.* to the sizes the file was made with."
        )
    encoder.trunk.load_state_dict(fitted, strict=False)
    logger.info("Started from '%s': encoder loaded (%s)", init, report)
    if foreign is not None:
        _load_rest(method, foreign, _mask_token(method, foreign))
    method.start_averages()


def _read_foreign(init: str, encoder: Encoder) -> Imported | None:
    """The checkpoint of another project's code, or None where `init` is one of our own folders or files."""
    path = Path(init)
    ours = init.startswith("timm:") or path.is_dir() or path.suffix == ".json" or path.with_suffix(".json").is_file()
    if ours or not path.exists():
        return None
    return import_checkpoint(path, image_size=encoder.image_size, model=encoder.config)


def _mask_token(method: Method, foreign: Imported) -> Tensor | None:
    """The file's mask token, if the method has a place for one: that of its student beside a teacher without one."""
    if foreign.mask_token is None and "student" in foreign.roles and "mask_token" in method.state_dict():
        return import_checkpoint(
            foreign.origin, foreign.kind, image_size=foreign.image_size, model=foreign.config, role="student"
        ).mask_token
    return foreign.mask_token


def _load_rest(method: Method, foreign: Imported, mask_token: Tensor | None) -> None:
    """Mask token, decoders and heads, as far as names and shapes are the method's own; the others start fresh."""
    offered = {f"decoder.{name}": tensor for name, tensor in foreign.decoder_state.items()}
    offered |= foreign.branch_state
    offered |= {
        name if name == "prototypes" else f"head.{name}": tensor for name, tensor in foreign.projection_state.items()
    }
    if mask_token is not None:
        offered["mask_token"] = mask_token
    own = method.state_dict()
    if "mask_token" in offered and "mask_token" in own and offered["mask_token"].numel() == own["mask_token"].numel():
        offered["mask_token"] = offered["mask_token"].reshape(own["mask_token"].shape)  # ViNy keeps a bare vector.
    torn = _torn_branches(offered, own)
    taken = {
        name: tensor
        for name, tensor in offered.items()
        if name in own and own[name].shape == tensor.shape and _branch(name) not in torn
    }
    left = sorted(set(offered) - set(taken))
    if "hog.bias" in own:
        rows = {name: number for name in left if (number := _branch(name, "hog_bias")) is not None}
        rows = {name: number for name, number in rows.items() if number < len(own["hog.bias"]) and number not in torn}
        taken["hog.bias"] = own["hog.bias"].clone()
        for name, number in rows.items():
            taken["hog.bias"][number] = offered[name]
        left = [name for name in left if name not in rows]
    method.load_state_dict(taken, strict=False)
    logger.info(
        "Started from '%s': %d tensors beside the encoder loaded%s.",
        foreign.origin, len(offered) - len(left), f", {len(left)} did not fit: {', '.join(left[:5])}" if left else "",
    )  # fmt: skip


def _torn_branches(offered: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[int]:
    """Numbers of the decoders that fit in part only: half a decoder of another scale or width is worth nothing.

    Fixed tables of positions don't count: the method has its own, for its image size.
    """
    torn = set()
    for name in {*offered, *own}:
        number = _branch(name)
        if number is None or name.endswith(".pos_embed"):
            continue
        if name not in offered or name not in own or offered[name].shape != own[name].shape:
            torn.add(number)
    return torn


def _branch(name: str, parts: str = "decoder|norm") -> int | None:
    """The number of the branch that a tensor belongs to, where there are several decoders."""
    found = re.match(rf"(?:{parts})\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None

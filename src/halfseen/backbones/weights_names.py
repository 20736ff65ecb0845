"""The names of other people's checkpoints, and what each is called here.

Every layout becomes `Parts`: the encoder under timm's names, the mask token, the decoder under the names of
`backbones.decoders`, a classifier's head, and what was left aside. Also the sizes that can be read off the shapes.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from halfseen.backbones.config import PRESETS, VINY_HEAD_DIM, Family, ModelConfig
from halfseen.backbones.weights_read import PROTOTYPES, Role
from halfseen.errors import WeightsError

Kind = Literal[
    "simmim_vit", "simmim_swin", "viny", "mae", "kamim_vit", "kamim_swin", "localmim_vit", "localmim_swin", "ibot",
    "msn", "halfseen", "timm",
]  # fmt: skip
KINDS: tuple[Kind, ...] = (
    "simmim_vit",
    "simmim_swin",
    "viny",
    "mae",
    "kamim_vit",
    "kamim_swin",
    "localmim_vit",
    "localmim_swin",
    "ibot",
    "msn",
    "halfseen",
    "timm",
)
"""`ibot` is the layout of iBOT, AttMask and DINO; `localmim_vit` also that of LocalMIM with progressive freezing."""

PatchMergeOrder = Literal["pretrain", "as_published"]
"""What becomes of the weights with which LocalMIM's Swin joins 2 x 2 tokens: by rows in pre-training, while timm and
the published fine-tuning go by columns. "pretrain" reorders them, so that features stay what they were; "as_published"
leaves them as they are, as the published fine-tuning does, which starts from other features."""
MERGE_ORDERS: tuple[PatchMergeOrder, ...] = ("pretrain", "as_published")

# Scales of LocalMIM's branches, shallow to deep: as published, and one at each block of a ViT of 12.
_SCALES = ((4.0, 2.0, 1.0, 0.5), (8.0, 4.0, 4.0, *[2.0] * 6, 1.0, 1.0, 0.5))
# Places of the layers with weights in a branch's head, by its scale.
_HEADS = {(0, 1, 3, 4, 6, 7): 8.0, (0, 1, 3, 4): 4.0, (0, 1): 2.0, (0,): 1.0, (1,): 0.5}

State = dict[str, Tensor]


@dataclass
class Parts:
    """A checkpoint taken apart.

    `projection` is the head of a teacher-student method under the names of `backbones.heads`, with MSN's prototypes;
    `branches` are LocalMIM's tap norms (`norm.0.weight`) and HOG constants (`hog_bias.0`), numbered like its decoders
    (`decoder["0.embed.weight"]`), and `scales` the cells per token of each numbered branch; `ignored` are tensors that
    carry nothing (index tables, aliases, fixed filters).
    """

    encoder: State = field(default_factory=dict)
    mask_token: Tensor | None = None
    decoder: State = field(default_factory=dict)
    head: State = field(default_factory=dict)
    projection: State = field(default_factory=dict)
    branches: State = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def detect_kind(names: Iterable[str], family: Kind | None = None) -> Kind:
    """Which code wrote a checkpoint, by the names of its tensors.

    Args:
        family: whose layout the file around them has, where it holds a student and a teacher.
    Raises:
        WeightsError: none that is known.
    """
    known = set(names)
    bare = {name.removeprefix("encoder.") for name in known}
    if any(name.startswith(("encoder.trunk.", "trunk.")) for name in known):
        return "halfseen"
    if "norm.0.weight" in bare:  # no other has a list of norms
        return "localmim_swin" if "layers.0.blocks.0.attn.qkv.weight" in bare else "localmim_vit"
    plain = {_without_wrappers(name) for name in known}
    if "fc.fc1.weight" in plain and "fc.fc3.weight" in plain:
        return "msn"
    if any(name == "masked_embed" or name.startswith(("head.mlp.", "head.last_layer")) for name in plain):
        return "ibot"
    embedding = {name for name in plain if name.startswith("patch_embed.")}
    if (embedding and family) or embedding - known:  # the latter stood in the file as `backbone.patch_embed...`
        return family or "ibot"
    if "to_patch_embedding.1.weight" in bare:
        return "viny"
    if any(".embeddings.patch_embeddings." in name for name in known):
        swin = any("relative_position_bias_table" in name for name in known)
        return "kamim_swin" if swin else "kamim_vit"
    if "patch_embed.proj.weight" not in bare:
        some = ", ".join(sorted(known)[:3])
        raise WeightsError(
            f"weights: no known layout (the tensors are called {some} ...). Known: {', '.join(KINDS)}. Give a file "
            "of one of these, or an encoder.safetensors with its encoder.json beside it."
        )
    if "layers.0.blocks.0.attn.qkv.weight" in bare:
        official = any(name.startswith("layers.0.downsample.") for name in bare) or bare != known
        if official and bare == known and _stores_no_shift_mask(known):
            return "ibot"
        return "simmim_swin" if official else "timm"
    if "blocks.0.attn.q_bias" in bare or "rel_pos_bias.relative_position_bias_table" in bare:
        return "simmim_vit"
    return "mae" if "decoder_embed.weight" in bare else "timm"


def _stores_no_shift_mask(known: set[str]) -> bool:
    """Of official Swins, iBOT's encoder alone keeps index tables and has no masks beside them."""
    shifted = any(re.fullmatch(r"layers\.\d+\.blocks\.1\.attn\.relative_position_index", name) for name in known)
    return shifted and not any(name.endswith(".attn_mask") or name.startswith("head.") for name in known)


def take_apart(
    state: State, kind: Kind, role: Role | None = None, patch_merge_order: PatchMergeOrder = "pretrain"
) -> Parts:
    """Sort a checkpoint's tensors into `Parts`, under our names.

    Args:
        role: which network of a run's own checkpoint; elsewhere `state` is that of one network.
        patch_merge_order: of LocalMIM's Swin only.
    """
    if kind == "halfseen":
        return _take_own(state, role)
    if kind in ("localmim_vit", "localmim_swin"):
        return _take_localmim(state, patch_merge_order)
    return {
        "simmim_vit": _take_simmim,
        "simmim_swin": _take_simmim,
        "viny": _take_viny,
        "mae": _take_mae,
        "kamim_vit": _take_kamim,
        "kamim_swin": _take_kamim,
        "ibot": _take_ibot,
        "msn": _take_msn,
        "timm": _take_timm,
    }[kind](state)


def _take_simmim(state: State) -> Parts:
    parts = Parts()
    official_merging = any("layers.0.downsample." in name for name in state)
    for full, tensor in state.items():
        name = full.removeprefix("encoder.")
        if _is_buffer(name):
            parts.ignored.append(full)
        elif full.startswith("decoder."):
            parts.decoder[full.removeprefix("decoder.")] = tensor
        elif name == "mask_token":
            parts.mask_token = tensor
        elif name.startswith("head."):
            parts.head[_swin_head(name) if "layers.0.blocks.0.attn.qkv.weight" in _bare(state) else name] = tensor
        else:
            parts.encoder[_later_merging(name) if official_merging else name] = tensor
    return parts


def _bare(state: State) -> set[str]:
    return {name.removeprefix("encoder.") for name in state}


def _swin_head(name: str) -> str:
    return name if name.startswith("head.fc.") else "head.fc." + name.removeprefix("head.")


def _is_buffer(name: str) -> bool:
    return name.endswith(("relative_position_index", "attn_mask"))


def _later_merging(name: str) -> str:
    """Patch merging ends a stage in the original, and begins the next one in timm."""
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name)


_VINY_NAMES = (
    (r"^pos_embedding$", "pos_embed"),
    (r"^to_patch_embedding\.1\.", "patch_embed.pre_norm."),
    (r"^to_patch_embedding\.2\.", "patch_embed.proj."),
    (r"^to_patch_embedding\.3\.", "patch_embed.norm."),
    (r"^transformer\.norm\.", "norm."),
    (r"^transformer\.layers\.(\d+)\.0\.layernorm\.", r"blocks.\1.norm1."),
    (r"^transformer\.layers\.(\d+)\.0\.to_qkv\.", r"blocks.\1.attn.qkv."),
    (r"^transformer\.layers\.(\d+)\.0\.fc_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer\.layers\.(\d+)\.1\.network\.0\.", r"blocks.\1.norm2."),
    (r"^transformer\.layers\.(\d+)\.1\.network\.1\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer\.layers\.(\d+)\.1\.network\.4\.", r"blocks.\1.mlp.fc2."),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        new, hits = re.subn(pattern, replacement, name)
        if hits:
            return new
    return name


def _take_viny(state: State) -> Parts:
    parts = Parts()
    for full, tensor in state.items():
        name = full.removeprefix("encoder.")
        if full.startswith("get_patch_embedding."):  # a second name of the encoder's own patch embedding
            parts.ignored.append(full)
        elif full.startswith("decoder."):
            parts.decoder[full.removeprefix("decoder.")] = tensor
        elif full == "mask_token":
            parts.mask_token = tensor
        elif name.startswith(("head.", "mlp.")):
            parts.head[name] = tensor
        else:
            parts.encoder[_renamed(name, _VINY_NAMES)] = tensor
    return parts


def _take_mae(state: State) -> Parts:
    parts = Parts()
    full_model = "decoder_embed.weight" in state
    for name, tensor in state.items():
        if name.startswith("decoder_") or (full_model and name == "mask_token"):
            parts.decoder[name] = tensor
        elif name.startswith("head."):
            parts.head[name] = tensor
        else:
            parts.encoder[name] = tensor
    return parts


_KAMIM_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^encoder\.layers\.(\d+)\.", r"layers.\1."),
    (r"^layernorm\.", "norm."),
)
_KAMIM_BLOCK = (
    (r"attention\.(?:attention|self)\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.self\.relative_position_bias_table$", "attn.relative_position_bias_table"),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)


def _take_kamim(state: State) -> Parts:
    parts = Parts()
    separate: dict[str, State] = {}
    for full, tensor in state.items():
        name = re.sub(r"^(vit|swin|vit_backbone|backbone)\.", "", full)
        if _is_buffer(name):
            parts.ignored.append(full)
        elif full.startswith("decoder."):
            parts.decoder[full.removeprefix("decoder.")] = tensor
        elif full.startswith("cls."):
            parts.head["head." + full.rpartition(".")[2]] = tensor
        elif name == "embeddings.mask_token":
            parts.mask_token = tensor
        else:
            name = _later_merging(_renamed(_renamed(name, _KAMIM_NAMES), _KAMIM_BLOCK))
            stem = re.sub(r"\.attn\.(query|key|value)\.", ".attn.qkv.", name)
            if stem == name:
                parts.encoder[name] = tensor
            else:
                separate.setdefault(stem, {})[name.split(".")[-2]] = tensor
    for stem, three in separate.items():
        if three.keys() != {"query", "key", "value"}:
            raise WeightsError(f"weights: {stem} has only {', '.join(three)}; query, key and value belong together.")
        parts.encoder[stem] = torch.cat([three["query"], three["key"], three["value"]])
    return parts


def _take_localmim(state: State, patch_merge_order: PatchMergeOrder) -> Parts:
    """LocalMIM's ViT and Swin; the norm of the last tap becomes the final one.

    Progressive freezing deletes the shallowest branches and numbers the others from 0 again. The layout of a head shows
    its scale, which tells how many are gone.
    """
    parts = Parts()
    swin = "layers.0.blocks.0.attn.qkv.weight" in _bare(state)
    scales = _scales_of_heads(state)
    first = _number_of_first(scales)
    parts.scales = {number + first: scale for number, scale in scales.items()}
    branches = {full: re.fullmatch(r"(norm|decoder|hog_enc)\.(\d+)\.(.+)", _inside(full)) for full in state}
    last = max((int(found[2]) for found in branches.values() if found and found[1] == "norm"), default=-1)
    for full, tensor in state.items():
        name, branch = _inside(full), branches[full]
        if branch:
            part, number, rest = branch[1], int(branch[2]) + first, branch[3]
            if part == "decoder":
                parts.decoder[f"{number}.{rest}"] = tensor
            elif part == "hog_enc" and rest == "conv.bias":
                parts.branches[f"hog_bias.{number}"] = tensor
            elif part == "hog_enc":
                parts.ignored.append(full)
            elif number == last + first:
                parts.encoder[f"norm.{rest}"] = tensor
            else:
                parts.branches[f"norm.{number}.{rest}"] = tensor
        elif _is_buffer(name):
            parts.ignored.append(full)
        elif swin and ".downsample." in name and patch_merge_order == "pretrain":
            parts.encoder[_later_merging(name)] = by_columns(tensor)
        else:
            parts.encoder[_later_merging(name) if swin else name] = tensor
    return parts


def _inside(name: str) -> str:
    return name.removeprefix("encoder.")


def by_columns(tensor: Tensor) -> Tensor:
    """A tensor of a patch merging whose last axis [4 C] joins 2 x 2 tokens by rows, now by columns; or back again."""
    return tensor.reshape(*tensor.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :].reshape(tensor.shape)


def _scales_of_heads(state: State) -> dict[int, float]:
    """Cells per token along one axis, by the number of the branch in the file; Swins have a linear head, one cell."""
    places: dict[int, set[int]] = {}
    for name in state:
        if found := re.match(r"decoder\.(\d+)\.pred\.(?:(\d+)\.)?weight$", name):
            places.setdefault(int(found[1]), set()).add(int(found[2] or 0))
    layouts = {number: tuple(sorted(layers)) for number, layers in sorted(places.items())}
    unknown = {number: layers for number, layers in layouts.items() if layers not in _HEADS}
    if unknown:
        number, layers = next(iter(unknown.items()))
        raise WeightsError(
            f"weights: the head decoder.{number}.pred has layers {', '.join(map(str, layers))}, which is none of "
            "LocalMIM's. Is the file complete?"
        )
    return {number: _HEADS[layers] for number, layers in layouts.items()}


def _number_of_first(scales: dict[int, float]) -> int:
    """How many shallower branches once stood before a file's; 0 where their scales don't end like published ones."""
    there = tuple(scales.values())
    for published in _SCALES:
        if there and there == published[-len(there) :]:
            return len(published) - len(there)
    return 0


def _without_wrappers(name: str) -> str:
    """A name without the wrappers of data-parallel training and of multi-crop models, wherever they stand."""
    return name.replace("module.", "").replace("backbone.", "")


def _take_ibot(state: State) -> Parts:
    """iBOT, AttMask and DINO; a Swin's merging ends its stage there."""
    parts = Parts()
    named = {_without_wrappers(full): (full, tensor) for full, tensor in state.items()}
    official_merging = any(name.startswith("layers.0.downsample.") for name in named)
    for name, (full, tensor) in named.items():
        if _is_buffer(name):
            parts.ignored.append(full)
        elif name == "masked_embed":
            parts.mask_token = tensor
        elif name.startswith("head."):
            parts.projection[_older_weight_norm(name.removeprefix("head."))] = tensor
        else:
            name = name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma")
            parts.encoder[_later_merging(name) if official_merging else name] = tensor
    _drop_alias(parts, named)
    return parts


def _older_weight_norm(name: str) -> str:
    """PyTorch's newer weight norm stores g and v under other names."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    return name.replace(".parametrizations.weight.original1", ".weight_v")


def _drop_alias(parts: Parts, named: dict[str, tuple[str, Tensor]]) -> None:
    """A shared last layer stands in the file under two names."""
    second = [name for name in parts.projection if name.startswith("last_layer2.")]
    first = [name.replace("last_layer2.", "last_layer.") for name in second]
    pairs = list(zip(first, second, strict=True))
    same = all(
        one in parts.projection
        and parts.projection[one].shape == parts.projection[two].shape
        and bool((parts.projection[one] == parts.projection[two]).all())
        for one, two in pairs
    )
    if same:
        for name in second:
            del parts.projection[name]
        parts.ignored += [full for name, (full, _) in named.items() if name.startswith("head.last_layer2.")]


def _take_msn(state: State) -> Parts:
    parts = Parts()
    for full, tensor in state.items():
        name = _without_wrappers(full)
        if name == PROTOTYPES:
            parts.projection[name] = tensor
        elif name.startswith("fc."):
            parts.projection[name.removeprefix("fc.")] = tensor
        else:
            parts.encoder[name] = tensor
    return parts


def own_roles(names: Iterable[str]) -> tuple[Role, ...]:
    """The networks in a run's own checkpoint, the main one first."""
    return ("teacher", "student") if any(name.startswith("teacher.trunk.") for name in names) else ("student",)


def _take_own(state: State, role: Role | None) -> Parts:
    parts = Parts()
    teacher = (role or own_roles(state)[0]) == "teacher"
    trunk = r"^teacher\.trunk\." if teacher else r"^(encoder\.)?trunk\."
    head = "teacher_head." if teacher else "head."
    for full, tensor in state.items():
        name = re.sub(trunk, "", full)
        if name != full:
            parts.encoder[name] = tensor
        elif full == "mask_token":
            parts.mask_token = tensor
        elif full.startswith("decoder."):
            parts.decoder[full.removeprefix("decoder.")] = tensor
        elif full.startswith(head) or full == PROTOTYPES:
            parts.projection[full.removeprefix(head)] = tensor
        elif re.match(r"norm\.\d+\.", full):
            parts.branches[full] = tensor
        elif full == "hog.bias":
            parts.branches |= {f"hog_bias.{number}": row for number, row in enumerate(tensor)}
        else:
            parts.ignored.append(full)
    return parts


def _take_timm(state: State) -> Parts:
    parts = Parts()
    for name, tensor in state.items():
        if _is_buffer(name):
            parts.ignored.append(name)
        elif name.startswith("head."):
            parts.head[name] = tensor
        elif name == "mask_token":
            parts.mask_token = tensor
        else:
            parts.encoder[name] = tensor
    return parts


def infer_model(parts: Parts, kind: Kind, num_heads: int | None = None) -> tuple[ModelConfig, int]:
    """The model's sizes and the image side for which it was built, read off the shapes.

    Args:
        num_heads: for plain ViTs and ViNy, whose weights don't show it; None = by the usual width of a head.
    Raises:
        WeightsError: shapes of no known model, or a number of heads that must be said.
    """
    state = parts.encoder
    if "layers.0.blocks.0.attn.qkv.weight" in state:
        config, image_size = _infer_swin(state)
        own = {"ibot": {"norm_eps": 1e-6, "pad_windows": True}, "localmim_swin": {"norm_eps": 1e-6}}
        return config.model_copy(update=own.get(kind, {})), image_size
    if kind in ("ibot", "msn"):
        config, image_size = _infer_vit(state, None, num_heads)
        rule = {"position_rule": "scale_offset" if kind == "ibot" else "scale"}
        return config.model_copy(update=rule | ({"crop_to_patches": True} if kind == "msn" else {})), image_size
    if "patch_embed.pre_norm.weight" in state:
        return _infer_viny(state, num_heads)
    if "blocks.0.attn.qkv.weight" not in state:
        raise WeightsError("weights: no transformer blocks in the file; is it a decoder or a head alone?")
    if "blocks.0.attn.q_bias" in state:
        return _infer_beit(state)
    return _infer_vit(state, 1e-12 if kind == "kamim_vit" else None, num_heads)


def _depth(state: State, pattern: str) -> int:
    numbers = [int(found[1]) for name in state if (found := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _preset(family: Family, width: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> str:
    """The preset with these sizes, else the family's first one."""
    same = [name for name, preset in PRESETS.items() if preset.family == family]
    exact = [
        n for n in same if (PRESETS[n].embed_dim, PRESETS[n].depths, PRESETS[n].num_heads) == (width, depths, heads)
    ]
    return (exact or same)[0]


def _mlp_ratio(weight: Tensor) -> float:
    """Hidden width over token width, such that the builder's truncated product gives the hidden width back."""
    hidden, width = weight.shape
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _departures(name: str, sizes: dict[str, object]) -> dict[str, object]:
    """Only the sizes in which a model differs from its preset."""
    preset = PRESETS[name]
    own: dict[str, object] = {
        "patch_size": preset.patch_size,
        "embed_dim": preset.embed_dim,
        "depth": preset.depths[0],
        "depths": preset.depths,
        "num_heads": preset.num_heads if preset.family == "swin" else preset.num_heads[0],
        "mlp_ratio": preset.mlp_ratio,
    }
    return {key: value for key, value in sizes.items() if value != own.get(key)}


def _infer_vit(state: State, norm_eps: float | None, num_heads: int | None) -> tuple[ModelConfig, int]:
    family, width, patch_size = _vit_embedding(state)
    depth = _depth(state, r"blocks\.(\d+)\.")
    class_token = "cls_token" in state
    positions = state.get("pos_embed")
    image_size = 224
    if positions is not None:
        patches = positions.shape[1] - int(class_token)
        image_size = math.isqrt(patches) * patch_size
        if math.isqrt(patches) ** 2 != patches:
            raise WeightsError(
                f"weights: pos_embed has {positions.shape[1]} rows, which fit no square grid with "
                f"{int(class_token)} class token; register tokens need the model's timm name."
            )
    heads = num_heads or _usual_heads(width)
    name = _preset(family, width, (depth,), (heads,))
    sizes: dict[str, object] = {
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": _mlp_ratio(state["blocks.0.mlp.fc1.weight"]),
    }
    scale = state.get("blocks.0.ls1.gamma")
    config = ModelConfig.model_validate(
        {
            "name": name,
            **_departures(name, sizes),
            "norm_eps": norm_eps,
            "class_token": None if class_token else False,
            "absolute_positions": None if positions is not None else False,
            "layer_scale": None if scale is None else 1e-5,
            "final_norm": _final_norm(state),
        }
    )
    return config, image_size


def _vit_embedding(state: State) -> tuple[Family, int, int]:
    """(family, width, patch size) of a ViT by its patch embedding: a projection, or a stem of halving convolutions."""
    projection = state.get("patch_embed.proj.weight")
    if projection is not None:
        return "vit", projection.shape[0], projection.shape[-1]
    stem = [tensor for name, tensor in state.items() if re.fullmatch(r"patch_embed\.conv\.\d+\.weight", name)]
    halving = [tensor for tensor in stem if tensor.ndim == 4 and tensor.shape[-1] == 3]
    if not halving:
        raise WeightsError("weights: no patch embedding in the file; is it a part of an encoder only?")
    return "vit_conv", halving[-1].shape[0], 2 ** len(halving)


def _usual_heads(width: int) -> int:
    usual = {preset.embed_dim: preset.num_heads[0] for preset in PRESETS.values() if preset.family == "vit"}
    if width in usual:
        return usual[width]
    raise WeightsError(
        f"weights: the width {width} doesn't tell the number of attention heads; say num_heads, or give the run's "
        "folder if the file is one of ours."
    )


def _final_norm(state: State) -> str:
    return "pooled" if "fc_norm.weight" in state and "norm.weight" not in state else "tokens"


def _infer_beit(state: State) -> tuple[ModelConfig, int]:
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    shared = state.get("rel_pos_bias.relative_position_bias_table")
    table = shared if shared is not None else state.get("blocks.0.attn.relative_position_bias_table")
    if table is None:
        raise WeightsError("weights: a BEiT layout without any table of relative positions is not a SimMIM checkpoint.")
    depth, heads = _depth(state, r"blocks\.(\d+)\."), table.shape[1]
    name = _preset("beit", width, (depth,), (heads,))
    sizes: dict[str, object] = {
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": _mlp_ratio(state["blocks.0.mlp.fc1.weight"]),
    }
    config = ModelConfig.model_validate(
        {
            "name": name,
            **_departures(name, sizes),
            "absolute_positions": True if "pos_embed" in state else None,
            "relative_positions": None if shared is not None else "per_block",
            "layer_scale": None if "blocks.0.gamma_1" in state else 0.0,
            "final_norm": _final_norm(state),
        }
    )
    return config, (math.isqrt(table.shape[0] - 3) + 1) // 2 * patch_size


def _infer_swin(state: State) -> tuple[ModelConfig, int]:
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    stages = _depth(state, r"layers\.(\d+)\.")
    depths = tuple(_depth(state, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages))
    tables = [state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)]
    heads = tuple(table.shape[1] for table in tables)
    windows = [(math.isqrt(table.shape[0]) + 1) // 2 for table in tables]
    # A later stage with a smaller table is one window wide; else the last stage is taken to be so.
    stage = next((s for s in range(stages) if windows[s] < windows[0]), stages - 1)
    image_size = windows[stage] * 2**stage * patch_size
    name = _preset("swin", width, depths, heads)
    sizes: dict[str, object] = {
        "patch_size": patch_size,
        "embed_dim": width,
        "depths": depths,
        "num_heads": heads,
        "mlp_ratio": _mlp_ratio(state["layers.0.blocks.0.mlp.fc1.weight"]),
    }
    config = ModelConfig.model_validate({"name": name, **_departures(name, sizes), "window_size": windows[0]})
    return config, image_size


def _infer_viny(state: State, num_heads: int | None) -> tuple[ModelConfig, int]:
    values, width = state["patch_embed.pre_norm.weight"].shape[0], state["patch_embed.proj.weight"].shape[0]
    patch_size = math.isqrt(values // 3)
    inner = state["blocks.0.attn.qkv.weight"].shape[0] // 3
    if num_heads is None and inner % VINY_HEAD_DIM:
        raise WeightsError(f"weights: an attention width of {inner} doesn't tell the number of heads; say num_heads.")
    heads = num_heads or inner // VINY_HEAD_DIM
    sizes: dict[str, object] = {
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": _depth(state, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "mlp_ratio": _mlp_ratio(state["blocks.0.mlp.fc1.weight"]),
    }
    head_dim = inner // heads
    config = ModelConfig.model_validate(
        {
            "name": "viny_4m",
            **_departures("viny_4m", sizes),
            "head_dim": None if head_dim == VINY_HEAD_DIM else head_dim,
        }
    )
    return config, math.isqrt(state["pos_embed"].shape[1] - 1) * patch_size

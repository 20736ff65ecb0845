"""From a model's configuration to an encoder with random weights."""

from typing import NamedTuple

import timm
import torch
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.beit import BeitEncoder
from halfseen.backbones.config import PRESETS, SWIN_WINDOW, VINY_HEAD_DIM, ModelConfig
from halfseen.backbones.conv_stem import ConvStem
from halfseen.backbones.masked import set_norm_eps
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.viny import ViNyEncoder, build_viny_trunk
from halfseen.backbones.vit import ViTEncoder
from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.patches import patch_grid

Plain = int | float | bool | str | tuple[int, ...]


class TimmModel(NamedTuple):
    """A call of `timm.create_model(model_name, **kwargs)` in plain data."""

    model_name: str
    kwargs: dict[str, Plain]


def build_encoder(config: ModelConfig, image_size: int, device: torch.device | str | None = None) -> Encoder:
    """An encoder for square images of `image_size` pixels, with timm's own random weights.

    A method initialises it again as its paper says (see `backbones.initialise`).

    Raises:
        ShapeError: image, patch and window sizes that don't go together.
        ConfigError: a timm model of another kind.
    """
    encoder = _build(config, image_size, device)
    encoder.config = config
    return encoder


def _build(config: ModelConfig, image_size: int, device: torch.device | str | None) -> Encoder:
    call = timm_call(config, image_size)
    if call is None:
        build = _build_viny if config.preset().family == "viny" else _build_conv
        return build(config, image_size, device)
    trunk = timm.create_model(call.model_name, **call.kwargs, drop_path_rate=config.drop_path, device=device)
    if config.norm_eps is not None:
        set_norm_eps(trunk, config.norm_eps)
    if isinstance(trunk, SwinTransformer):
        return SwinEncoder(trunk, image_size)
    if isinstance(trunk, Beit):
        return BeitEncoder(trunk, image_size, config.position_rule)
    if isinstance(trunk, VisionTransformer) and all(_is_plain(block) for block in trunk.blocks):
        _check_patch_embedding(trunk, config.name)
        return ViTEncoder(trunk, image_size, config.position_rule, config.crop_to_patches)
    raise ConfigError(
        f"model.name: timm's {config.name!r} is a {type(trunk).__name__} of another build; only its plain "
        "VisionTransformer and SwinTransformer models can look at half-seen images."
    )


def _is_plain(block: nn.Module) -> bool:
    return type(block) is Block and type(block.attn) is Attention


def timm_call(config: ModelConfig, image_size: int) -> TimmModel | None:
    """How timm alone builds the same network (None for ViNy and convolutional stems, which timm has no name for).

    Raises:
        ShapeError: image, patch and window sizes that don't go together.
    """
    if config.name not in PRESETS:
        return _foreign_call(config, image_size)
    preset = config.preset()
    width, depths, heads = config.sizes()
    patch_size = config.patch_size or preset.patch_size
    kwargs: dict[str, Plain] = {
        "img_size": image_size,
        "patch_size": patch_size,
        "num_classes": 0,
        "embed_dim": width,
        "mlp_ratio": config.mlp_ratio or preset.mlp_ratio,
    }
    if preset.family in ("viny", "vit_conv"):
        return None
    if preset.family == "swin":
        window = swin_window(image_size, patch_size, len(depths), config.window_size, pad=config.pad_windows)
        kwargs |= {"depths": depths, "num_heads": heads, "window_size": window}
        return TimmModel(preset.timm, kwargs)
    if not config.crop_to_patches:
        patch_grid(image_size, image_size, patch_size)
    kwargs |= {"depth": depths[0], "num_heads": heads[0]}
    pooled = config.final_norm == "pooled"
    if preset.family == "beit":
        kwargs |= {
            "global_pool": "avg" if pooled else "token",
            "use_abs_pos_emb": bool(config.absolute_positions),
            "use_rel_pos_bias": config.relative_positions == "per_block",
            "use_shared_rel_pos_bias": config.relative_positions != "per_block",
            "init_values": 0.1 if config.layer_scale is None else config.layer_scale,
        }
        return TimmModel(preset.timm, kwargs)
    return TimmModel(preset.timm, kwargs | _vit_kwargs(config))


def _vit_kwargs(config: ModelConfig) -> dict[str, Plain]:
    """What the settings of a plain ViT are called in timm, sizes apart."""
    class_token = config.class_token is not False
    kwargs: dict[str, Plain] = {
        "class_token": class_token,
        "global_pool": _vit_pool(config.final_norm == "pooled", class_token),
    }
    if config.absolute_positions is False:
        kwargs["pos_embed"] = "none"
    if config.layer_scale:
        kwargs["init_values"] = config.layer_scale
    return kwargs


def _vit_pool(pooled: bool, class_token: bool) -> str:
    if pooled:
        return "avg"
    return "token" if class_token else ""


def _foreign_call(config: ModelConfig, image_size: int) -> TimmModel:
    """The call for a name that only timm knows: its own sizes, at this image size."""
    kwargs: dict[str, Plain] = {"img_size": image_size, "num_classes": 0}
    if config.patch_size is not None:
        kwargs["patch_size"] = config.patch_size
    if config.window_size is not None:
        kwargs["window_size"] = config.window_size
    if config.name.startswith("swin"):
        defaults = timm.create_model(config.name, num_classes=0, device="meta")
        if not isinstance(defaults, SwinTransformer):
            return TimmModel(config.name, kwargs)
        patch_size = config.patch_size or defaults.patch_embed.patch_size[0]
        wanted = config.window_size or max(block.window_size[0] for block in defaults.layers[0].blocks)
        kwargs["window_size"] = swin_window(image_size, patch_size, len(defaults.layers), config.window_size, wanted)
        return TimmModel(config.name, kwargs)
    defaults = timm.create_model(config.name, num_classes=0, device="meta")
    if isinstance(defaults, VisionTransformer):
        patch_grid(image_size, image_size, config.patch_size or defaults.patch_embed.patch_size[0])
        pooled = config.final_norm == "pooled"
        kwargs |= {"global_pool": _vit_pool(pooled, defaults.has_class_token), "fc_norm": pooled}
    return TimmModel(config.name, kwargs)


def swin_window(
    image_size: int,
    patch_size: int,
    num_stages: int,
    window_size: int | None,
    largest: int = SWIN_WINDOW,
    pad: bool = False,
) -> int:
    """The window's side in tokens: the one given, else the largest up to `largest` that tiles every stage.

    A stage whose side is at most the window is one window. With `pad`, a given window may stick out of the stages.

    Raises:
        ShapeError: an image side that the stages can't halve, or a window that doesn't tile them.
    """
    unit = patch_size * 2 ** (num_stages - 1)
    if image_size % unit:
        below = image_size // unit * unit
        near = [str(side) for side in (below, below + unit) if side > 0]
        raise ShapeError(
            f"image_size {image_size}: a Swin with patch size {patch_size} and {num_stages} stages needs a multiple of "
            f"{unit}. Nearest: {' or '.join(near)}."
        )
    sides = [image_size // patch_size // 2**stage for stage in range(num_stages)]
    fitting = [w for w in range(1, sides[0] + 1) if all(side <= w or side % w == 0 for side in sides)]
    if window_size is None:
        return max(w for w in fitting if w <= max(largest, 1))
    if window_size not in fitting and window_size < sides[0] and not pad:
        raise ShapeError(
            f"window_size {window_size}: doesn't tile the stages of {', '.join(map(str, sides))} tokens a side "
            f"({image_size} px, patch {patch_size}). Windows that do: {', '.join(map(str, fitting))}; others need "
            "model.pad_windows=true."
        )
    return window_size


def _check_patch_embedding(trunk: VisionTransformer, name: str) -> None:
    embedding = trunk.patch_embed
    if type(embedding) is not PatchEmbed or embedding.patch_size[0] != embedding.patch_size[1]:
        raise ConfigError(
            f"model.name: {name!r} has a convolutional stem; hiding needs a plain square patch projection."
        )


def _build_conv(config: ModelConfig, image_size: int, device: torch.device | str | None) -> Encoder:
    preset = config.preset()
    width, depths, heads = config.sizes()
    patch_size = config.patch_size or preset.patch_size
    if not config.crop_to_patches:
        patch_grid(image_size, image_size, patch_size)
    trunk = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        num_classes=0,
        embed_dim=width,
        depth=depths[0],
        num_heads=heads[0],
        mlp_ratio=config.mlp_ratio or preset.mlp_ratio,
        drop_path_rate=config.drop_path,
        embed_layer=ConvStem,
        device=device,
        **_vit_kwargs(config),
    )
    set_norm_eps(trunk, config.norm_eps or preset.norm_eps)
    return ViTEncoder(trunk, image_size, config.position_rule, config.crop_to_patches)


def _build_viny(config: ModelConfig, image_size: int, device: torch.device | str | None) -> Encoder:
    preset = config.preset()
    width, depths, heads = config.sizes()
    patch_size = config.patch_size or preset.patch_size
    patch_grid(image_size, image_size, patch_size)
    trunk = build_viny_trunk(
        image_size,
        patch_size,
        embed_dim=width,
        depth=depths[0],
        num_heads=heads[0],
        head_dim=config.head_dim or VINY_HEAD_DIM,
        mlp_ratio=config.mlp_ratio or preset.mlp_ratio,
        norm_eps=config.norm_eps or preset.norm_eps,
        drop_path=config.drop_path,
        device=device,
    )
    return ViNyEncoder(trunk, image_size, bool(config.class_token), config.position_rule)

"""The recorded weights of LocalMIM's encoders under timm's names."""

import re

import numpy as np
import torch
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.swin import SwinEncoder
from halfseen.methods.localmim import LocalMIM


def in_timm_order(tensor: Tensor) -> Tensor:
    """A tensor of the patch merging, whose last axis joins four tokens: the middle two change places."""
    return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2)


def swin_trunk(weights: dict[str, Tensor], as_published: bool = False) -> dict[str, Tensor]:
    """The Swin encoder's tensors, without tap norms.

    Args:
        as_published: leave the patch merging's inputs in their order, as the original's fine-tuning does.
    """
    trunk = {}
    for full, tensor in weights.items():
        name = full.removeprefix("encoder.")
        if name == full or name.startswith("norm."):
            continue
        merging = re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name)
        if merging:
            name = f"layers.{int(merging[1]) + 1}.downsample.{merging[2]}"
            tensor = tensor if as_published else in_timm_order(tensor)
        trunk[name] = tensor
    return trunk


def swin_encoder(arrays: dict[str, np.ndarray], weights: dict[str, Tensor], as_published: bool = False) -> SwinEncoder:
    """The recorded Swin encoder at the size of the recorded images; its final norm is new."""
    sizes = setting(arrays)
    config = ModelConfig(
        name="swin_tiny",
        patch_size=weights["encoder.patch_embed.proj.weight"].shape[-1],
        embed_dim=sizes["embed"],
        depths=tuple(arrays["depths"].tolist()),
        num_heads=tuple(arrays["num_heads"].tolist()),
        window_size=sizes["window"],
        norm_eps=1e-6,
    )
    encoder = build_encoder(config, arrays["images_u8_nhwc"].shape[1])
    assert isinstance(encoder, SwinEncoder)
    missing, unexpected = encoder.trunk.load_state_dict(swin_trunk(weights, as_published), strict=False)
    assert missing == ["norm.weight", "norm.bias"] and not unexpected
    return encoder.eval()


def setting(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """The integers of the one `cfg_...` array by the words of its name."""
    (name,) = (name for name in arrays if name.startswith("cfg_"))
    return dict(zip(name.removeprefix("cfg_").split("_"), arrays[name].tolist(), strict=True))


def mask_ratio(arrays: dict[str, np.ndarray]) -> float:
    """The ratio as it was written, before it was stored in single precision."""
    return float(str(arrays["mask_ratio"]))


def our_name(name: str, taps: int) -> str | None:
    """What a tensor of the original is called in `methods.localmim`; None where it has no tensor of its own there.

    Args:
        taps: how many; the last tap's norm is the encoder's final norm.
    """
    norm = re.fullmatch(r"(?:encoder\.)?norm\.(\d+)\.(.*)", name)
    if norm:
        return f"encoder.trunk.norm.{norm[2]}" if int(norm[1]) == taps - 1 else f"norm.{norm[1]}.{norm[2]}"
    if name.startswith("hog_enc."):
        return None
    if name.startswith("decoder."):
        return name
    merging = re.fullmatch(r"encoder\.layers\.(\d+)\.downsample\.(.*)", name)
    if merging:
        return f"encoder.trunk.layers.{int(merging[1]) + 1}.downsample.{merging[2]}"
    return f"encoder.trunk.{name.removeprefix('encoder.')}"


def in_our_order(name: str, tensor: Tensor) -> Tensor:
    """A tensor of the original, or its gradient, with its entries where ours has them."""
    return in_timm_order(tensor) if ".downsample." in name else tensor


def load_localmim(method: LocalMIM, weights: dict[str, Tensor]) -> None:
    """Put recorded weights into a method; every one of its tensors has to be among them."""
    taps = len(method.taps)
    state = {our_name(name, taps): in_our_order(name, tensor) for name, tensor in weights.items()}
    state.pop(None, None)
    biases = [weights[name] for name in (f"hog_enc.{tap}.conv.bias" for tap in range(taps)) if name in weights]
    if biases:
        state["hog.bias"] = torch.stack(biases)
    missing, unexpected = method.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing), missing

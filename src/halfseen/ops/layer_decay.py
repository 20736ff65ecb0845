"""Layer-wise learning rates and decay exclusions of the fine-tuning protocols, by timm parameter names.

With L blocks, ids run from 0 (embedding) over the blocks (1 .. L) to L + 1 (final norm and head); a layer's lr is
scaled by decay ** (L + 1 - id).

Source: BEiT-style fine-tuning as used by MAE (arXiv 2111.06377), SimMIM (arXiv 2111.09886) and LocalMIM (arXiv
2303.05251), which agree but for the bias tables of a Swin.
"""

from collections.abc import Sequence

from halfseen.types import GroupKey

_VIT_EMBEDDING = ("cls_token", "mask_token", "pos_embed")
_NOT_DECAYED = ("cls_token", "pos_embed", "absolute_pos_embed")


def vit_layer_id(name: str, depth: int) -> int:
    """Layer id of a ViT parameter; anything that is neither embedding nor block belongs to the last layer."""
    if name in _VIT_EMBEDDING or name.startswith("patch_embed."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def vit_freezing_unit(name: str, depth: int) -> int:
    """Unit of progressive freezing of a ViT parameter: 0 before block 1, i for block i, `depth` for what is above."""
    if name == "reg_token" or name.startswith("norm_pre."):
        return 0
    return min(vit_layer_id(name, depth), depth)


def swin_layer_id(name: str, depths: Sequence[int]) -> int:
    """Layer id of a Swin parameter in timm's naming, where `layers.s.downsample` is the merge *before* stage s.

    A merge has the id of the last block before it. `absolute_pos_embed` gets the last id: an official quirk.
    """
    if name == "mask_token" or name.startswith("patch_embed."):
        return 0
    if name.startswith("layers."):
        parts = name.split(".")
        stage = int(parts[1])
        if parts[2] == "blocks":
            return sum(depths[:stage]) + int(parts[3]) + 1
        return sum(depths[:stage])
    return sum(depths) + 1


def layer_decay_scales(num_layers: int, decay: float) -> tuple[float, ...]:
    """lr factor of the layer ids 0 .. num_layers + 1; the last is 1."""
    return tuple(decay ** (num_layers + 1 - layer) for layer in range(num_layers + 2))


def finetune_decays(name: str, ndim: int, *, decay_bias_tables: bool = True) -> bool:
    """Whether fine-tuning decays a parameter: not 1-D ones, biases, class token and positions.

    Args:
        name: timm's parameter name.
        ndim: number of its axes.
        decay_bias_tables: False for a Swin as SimMIM fine-tunes it, where relative position bias tables are not
            decayed; a ViT's are, and so are a Swin's in LocalMIM.
    """
    if ndim <= 1 or name.endswith(".bias") or name in _NOT_DECAYED:
        return False
    return decay_bias_tables or "relative_position_bias_table" not in name


def vit_finetune_group(name: str, ndim: int, *, depth: int, layer_decay: float) -> GroupKey:
    """Decay and lr scale of a ViT parameter in MAE's, SimMIM's and LocalMIM's fine-tuning."""
    scale = layer_decay ** (depth + 1 - vit_layer_id(name, depth))
    return GroupKey(finetune_decays(name, ndim), scale)


def swin_finetune_group(
    name: str, ndim: int, *, depths: Sequence[int], layer_decay: float, decay_bias_tables: bool = False
) -> GroupKey:
    """Decay and lr scale of a Swin parameter in SimMIM's fine-tuning; in LocalMIM's with `decay_bias_tables`."""
    scale = layer_decay ** (sum(depths) + 1 - swin_layer_id(name, depths))
    return GroupKey(finetune_decays(name, ndim, decay_bias_tables=decay_bias_tables), scale)

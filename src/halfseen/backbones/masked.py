"""What all backbones share of a masked forward before the blocks: cut patches, project them, hide some.

Hiding is either *replace* (a mask token stands in for the patch's embedding, before positions) or *drop* (only the
visible patches are projected at all and enter the blocks).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.patches import patch_grid


def check_hiding(mask: Tensor | None, mask_token: Tensor | None, visible_ids: Tensor | None) -> None:
    """See that the arguments that hide patches go together.

    Raises:
        ShapeError: both ways of hiding at once, or a mask without its token.
    """
    if mask is not None and visible_ids is not None:
        raise ShapeError("mask and visible_ids: give one of them; patches are either replaced or dropped.")
    if mask is not None and mask_token is None:
        raise ShapeError("mask: needs a mask_token to stand in for the hidden patches.")


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """See that the wanted block numbers exist.

    Raises:
        ConfigError: a number outside 0 .. num_layers.
    """
    wrong = [layer for layer in layers if not 0 <= layer <= num_layers]
    if wrong:
        raise ConfigError(
            f"layers: got {wrong}, this encoder has blocks 1 to {num_layers} (0 = after the patch embedding)."
        )


def check_selected(selected: Tensor) -> None:
    """See that a selection of output patches is a list of places; whether they exist is not looked at, see below.

    A look at the values would make the host wait for the device in each step.

    Raises:
        ShapeError: another shape or dtype, e.g. a mask.
    """
    if selected.ndim != 1 or selected.dtype != torch.int64:
        raise ShapeError(
            f"selected: got {selected.dtype} of shape {tuple(selected.shape)}, expected int64 of shape (M,): places "
            "image * N + patch."
        )


def cut_patches(
    images: Float[Tensor, "B C H W"], patch_size: int, visible_ids: Int64[Tensor, "B n"] | None = None
) -> Float[Tensor, "B n C p p"]:
    """The pixels of all patches (row-major), or of the visible ones only, in the order of `visible_ids`."""
    B, C, H, W = images.shape
    rows, columns = patch_grid(H, W, patch_size)
    cut = images.reshape(B, C, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    if visible_ids is None:
        return cut.reshape(B, rows * columns, C, patch_size, patch_size)
    batch = torch.arange(B, device=images.device)[:, None]
    return cut[batch, visible_ids // columns, visible_ids % columns]


def project_patches(
    images: Float[Tensor, "B C H W"], projection: nn.Conv2d, visible_ids: Int64[Tensor, "B n"] | None = None
) -> Float[Tensor, "B n D"]:
    """Patch embedding as one matrix product over the patches that are needed.

    Equal to the strided convolution, and cheaper where patches are dropped: hidden pixels are never touched.
    """
    patches = cut_patches(images, projection.kernel_size[0], visible_ids)
    return F.linear(patches.flatten(2), projection.weight.flatten(1), projection.bias)


def replace_hidden(
    tokens: Float[Tensor, "B N D"], mask: Bool[Tensor, "B M"], mask_token: Float[Tensor, "..."]
) -> Float[Tensor, "B N D"]:
    """`tokens` with the mask token where `mask` is True.

    Raises:
        ShapeError: a mask of another grid, or a mask token of another width.
    """
    if mask.shape != tokens.shape[:2]:
        raise ShapeError(
            f"mask: got shape {tuple(mask.shape)}, the patch grid needs {tuple(tokens.shape[:2])} (batch, patches)."
        )
    if mask_token.numel() != tokens.shape[-1]:
        raise ShapeError(f"mask_token: got {mask_token.numel()} values, patch embeddings have {tokens.shape[-1]}.")
    return torch.where(mask.unsqueeze(-1), mask_token.reshape(-1), tokens)


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Give every LayerNorm of a module this epsilon (timm's constructors can't take it as plain data)."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps

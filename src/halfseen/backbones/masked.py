"""The one masked forward that all backbones share: cut patches, hide some, run the blocks.

Hiding is either *replace* (a mask token stands in for the patch's embedding, before positions) or *drop* (only the
visible patches are projected at all and enter the blocks). Also the choice of the attention kernel.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers.attention import Attention
from timm.models import beit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from halfseen.backbones.base import Tokens
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


def run_blocks(
    tokens: Tensor, blocks: Iterable[nn.Module], call: Callable[[nn.Module, Tensor], Tensor], wanted: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Pass tokens through the blocks; also the outputs of the wanted ones, by 1-based number (0 = the input)."""
    kept: dict[int, Tensor] = {0: tokens} if 0 in wanted else {}
    for number, block in enumerate(blocks, start=1):
        tokens = call(block, tokens)
        if number in wanted:
            kept[number] = tokens
    return tokens, kept


def split_tokens(tokens: Float[Tensor, "B T D"], num_prefix_tokens: int, grid: tuple[int, int]) -> Tokens:
    """A sequence split into prefix and patch tokens."""
    return Tokens(tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:], grid)


def fused_attention_pays(tensor: Tensor) -> bool:
    """Whether the fused attention kernel is the faster one for matrix products on this tensor's device.

    Everywhere but on the CPU in half precision: there the fused kernel took 2.4-10 times as long as batched matrix
    products (forward and backward, AVX-512 with bfloat16), while in float32 it was the faster one.
    """
    if tensor.device.type != "cpu":
        return True
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") not in (torch.bfloat16, torch.float16)
    return tensor.dtype not in (torch.bfloat16, torch.float16)


def choose_attention(blocks: Iterable[Block | beit.Block], tensor: Tensor) -> None:
    """Set the kernel of timm's attention modules for the coming forward pass."""
    fused = fused_attention_pays(tensor)
    for block in blocks:
        block.attn.fused_attn = fused


def attention_weights(
    attention: Attention | beit.Attention, tokens: Float[Tensor, "B T D"], bias: Tensor | None = None
) -> Float[Tensor, "B heads T T"]:
    """Softmax weights of a timm attention module for its (already normalised) input, float32, rows sum to 1."""
    B, T, _ = tokens.shape
    qkv_bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        qkv_bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    qkv = F.linear(tokens, attention.qkv.weight, qkv_bias)
    query, key, _ = qkv.reshape(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    logits = (query.float() * attention.scale) @ key.float().transpose(-2, -1)
    if bias is not None:
        logits = logits + bias.float()
    weights: Tensor = logits.softmax(dim=-1)
    return weights


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Give every LayerNorm of a module this epsilon (timm's constructors can't take it as plain data)."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps

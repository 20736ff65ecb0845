"""timm's transformer blocks, run by hand: their weights and names stay timm's, the order of work is ours.

So attention can be looked at on the way without a matrix of all pairs, a last block is computed for the tokens that
are wanted and no others, each device gets the attention kernel that is fast there, and autograd keeps no activation of
an MLP that an elementwise function gives back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models import beit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from halfseen.backbones.base import AttentionRows, BlockView, Features, Tokens, WantedRows
from halfseen.errors import ConfigError
from halfseen.ops.recompute import checkpointed, recomputed

AnyBlock: TypeAlias = Block | beit.Block
AnyAttention: TypeAlias = Attention | beit.Attention
Biases = Callable[[AnyBlock], Tensor | None]
"""From a block to what is added to its logits: float [heads, T, T] or [B, heads, T, T], or nothing."""


class Heads(NamedTuple):
    """Projected tokens; queries may be fewer than keys.

    Attributes:
        query: float [B, heads, n, d].
        key, value: float [B, heads, T, d].
    """

    query: Tensor
    key: Tensor
    value: Tensor


Gradient = Callable[[int], AbstractContextManager[object]]
"""From a block's number (1-based) to the autograd mode it runs in."""


def no_bias(block: AnyBlock) -> None:
    """The bias of a plain ViT's block: none."""


def as_around(number: int) -> AbstractContextManager[object]:
    """The autograd mode of a block: that of its surroundings."""
    return nullcontext()


def run_transformer(
    tokens: Float[Tensor, "B T D"],
    blocks: Iterable[AnyBlock],
    norm: nn.Module,
    num_prefix_tokens: int,
    grid: tuple[int, int],
    *,
    layers: Sequence[int] = (),
    attention_layers: Sequence[int] = (),
    attention_rows: WantedRows = "class",
    bias: Biases = no_bias,
    gradient: Gradient = as_around,
) -> Features:
    """Embedded tokens through blocks and final norm; also what was asked for of single blocks (1-based)."""
    kept = {0: tokens} if 0 in layers else {}
    asked = tuple(zip(attention_layers, _each(attention_rows, attention_layers), strict=True))
    seen: dict[tuple[int, AttentionRows], Tensor] = {}
    for number, block in enumerate(blocks, start=1):
        with gradient(number):
            if number in attention_layers:
                heads, own = _normed_heads(block, tokens), bias(block)
                for rows in {rows for layer, rows in asked if layer == number}:
                    seen[number, rows] = look(heads, block.attn.scale, rows, own)
                tokens = _finish(block, tokens, heads, own)
            else:
                tokens = run_block(block, tokens, bias)
        if number in layers:
            kept[number] = tokens
    final = split_tokens(norm(tokens), num_prefix_tokens, grid)
    raw = tuple(split_tokens(kept[layer], num_prefix_tokens, grid) for layer in layers)
    return Features(final.prefix, final.patches, grid, raw, tuple(seen[each] for each in asked))


def view_blocks(
    tokens: Float[Tensor, "B T D"],
    blocks: Iterable[AnyBlock],
    num_prefix_tokens: int,
    grid: tuple[int, int],
    bias: Biases = no_bias,
) -> Iterator[BlockView]:
    """Embedded tokens through the blocks, with all that happens on the way, see `Encoder.block_views`."""

    def split(sequence: Tensor) -> Tokens:
        return split_tokens(sequence, num_prefix_tokens, grid)

    yield BlockView(0, split(tokens))
    for number, block in enumerate(blocks, start=1):
        first = block.norm1(tokens)
        heads = project_heads(block.attn, first)
        weights = attention_weights(heads, block.attn.scale, bias(block))
        out = _out(block.attn, _join(weights.to(heads.value.dtype) @ heads.value))
        attended = tokens + block.drop_path1(_scale_attention(block, out))
        tokens = _add_mlp(block, attended)
        yield BlockView(number, split(tokens), split(attended), split(first), split(out), weights)


def attention_matrix(
    tokens: Float[Tensor, "B T D"], blocks: Sequence[AnyBlock], layer: int, bias: Biases = no_bias
) -> Float[Tensor, "B heads T T"]:
    """Every head's attention weights in block number `layer` (1-based), float32; the blocks after it don't run."""
    for block in blocks[: layer - 1]:
        tokens = run_block(block, tokens, bias)
    block = blocks[layer - 1]
    return attention_weights(project_heads(block.attn, block.norm1(tokens)), block.attn.scale, bias(block))


def run_block(block: AnyBlock, tokens: Float[Tensor, "B T D"], bias: Biases = no_bias) -> Float[Tensor, "B T D"]:
    """A whole block."""
    return checkpointed(partial(_run_block, block, bias), tokens)


def _run_block(block: AnyBlock, bias: Biases, tokens: Tensor) -> Tensor:
    return _finish(block, tokens, _normed_heads(block, tokens), bias(block))


def run_block_for(block: Block, tokens: Float[Tensor, "B T D"], wanted: slice) -> Float[Tensor, "B n D"]:
    """A block's output for a slice of its tokens: all give keys and values, only these get queries and an MLP."""
    normed = block.norm1(tokens)
    heads = Heads(*_project(block.attn, normed[:, wanted], 0, 1), *_project(block.attn, normed, 1, 3))
    return _finish(block, tokens[:, wanted], heads, None)


def run_block_selected(
    block: Block, tokens: Float[Tensor, "B T D"], num_prefix_tokens: int, selected: Int64[Tensor, "M"]
) -> Float[Tensor, "BM D"]:
    """A block's output for each image's class token, and below these for patches at the places image * N + patch.

    Attention runs over whole images; its output projection and the MLP over these tokens only. Stochastic depth drops
    the samples that it drops in `run_block`, given the same random state.
    """
    B, T, _ = tokens.shape
    image = selected // (T - num_prefix_tokens)
    patch = selected % (T - num_prefix_tokens)
    every = torch.arange(B, device=tokens.device)
    owner = torch.cat([every, image])  # the image that each wanted token belongs to: [B + M]
    place = torch.cat([every * T, image * T + patch + num_prefix_tokens])
    with normed(block.norm1, tokens) as first:
        heads = project_heads(block.attn, first)
    attended = _join(attend(heads, block.attn.scale))
    x = tokens.flatten(0, 1).index_select(0, place)
    branch = block.ls1(_out(block.attn, attended.flatten(0, 1).index_select(0, place)))
    x = x + _drop_images(block.drop_path1, branch, owner, B)
    with normed(block.norm2, x) as second:
        branch = block.ls2(run_mlp(block.mlp, second))
    return x + _drop_images(block.drop_path2, branch, owner, B)


def project_heads(attention: AnyAttention, tokens: Float[Tensor, "B T D"]) -> Heads:
    """Query, key and value of normalised tokens."""
    return Heads(*_project(attention, tokens, 0, 3))


def _project(attention: AnyAttention, tokens: Tensor, first: int, last: int) -> list[Tensor]:
    """The parts `first` to `last` of query (0), key (1), value (2): [B, heads, T, d] each."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if isinstance(attention, beit.Attention) and attention.q_bias is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    if (first, last) != (0, 3):
        width = len(weight) // 3
        rows = slice(first * width, last * width)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    B, T, _ = tokens.shape
    joined = F.linear(tokens, weight, bias).reshape(B, T, last - first, attention.num_heads, -1)
    parts = list(joined.permute(2, 0, 3, 1, 4).unbind(0))
    if isinstance(attention, Attention):
        norms = (attention.q_norm, attention.k_norm, nn.Identity())
        parts = [norm(part) for norm, part in zip(norms[first:last], parts, strict=True)]
    return parts


def attend(heads: Heads, scale: float, bias: Tensor | None = None) -> Float[Tensor, "B heads n d"]:
    """softmax(query key^T * scale + bias) value, by the kernel that is fast on this device and precision."""
    # The fused CPU kernel has no gradient for a bias and would fall back to plain products.
    plain = bias is not None and bias.requires_grad and heads.query.device.type == "cpu"
    if fused_attention_pays(heads.query) and not plain:
        mask = None if bias is None else bias.to(heads.query.dtype)
        return F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale)
    logits = (heads.query * scale) @ heads.key.transpose(-2, -1)
    if bias is not None:
        logits += bias.to(logits.dtype)
    # Half-precision probabilities are all that stays for the backward pass; inside, the softmax sums in float32.
    attended: Tensor = logits.softmax(dim=-1) @ heads.value
    return attended


def look(
    heads: Heads, scale: float, rows: AttentionRows, bias: Tensor | None = None
) -> Float[Tensor, "B heads T"] | Float[Tensor, "B T T"]:
    """Softmaxed attention weights in float32: the class token's row of each head, or the mean over the heads.

    Never more than one head's matrix of all pairs at a time, and none for the class token's row.
    """
    if rows == "class":
        own = None if bias is None else bias[..., :1, :]
        return attention_weights(heads._replace(query=heads.query[:, :, :1]), scale, own).squeeze(2)
    count = heads.query.shape[1]
    mean = heads.query.new_zeros((), dtype=torch.float32)
    for head in range(count):
        one = Heads(*(part[:, head : head + 1] for part in heads))
        own = None if bias is None else bias[..., head : head + 1, :, :]
        mean = mean + attention_weights(one, scale, own).squeeze(1) / count
    return mean


def attention_weights(heads: Heads, scale: float, bias: Tensor | None = None) -> Float[Tensor, "B heads n T"]:
    """Softmaxed attention weights, in float32 also under autocast; rows sum to 1."""
    with torch.autocast(heads.query.device.type, enabled=False):
        logits = (heads.query.float() * scale) @ heads.key.float().transpose(-2, -1)
        if bias is not None:
            logits += bias.float()
        weights: Tensor = logits.softmax(dim=-1)
    return weights


def run_mlp(mlp: Mlp, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """A block's MLP; its activation is computed again in the backward pass instead of kept.

    That takes a fifth of a block's memory away, for one elementwise function (1 % of a block's time).
    """
    if type(mlp) is not Mlp:
        other: Tensor = mlp(x)
        return other
    hidden = mlp.fc1(x)
    active = mlp.act(hidden)
    with recomputed(active, lambda: mlp.act(hidden.detach())):
        out: Tensor = mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(active))))
    return out


@contextmanager
def normed(norm: nn.Module, tokens: Float[Tensor, "*B D"]) -> Iterator[Float[Tensor, "*B D"]]:
    """Normalised tokens for one linear layer, which is to be called within on all of them.

    Autograd doesn't keep them for that layer but computes them again from the tokens, which it keeps anyway: a sixth
    of a block's memory for half a percent of its time.
    """
    if not isinstance(norm, nn.LayerNorm):
        yield norm(tokens)
        return
    device = tokens.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def compute(source: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            out: Tensor = norm(source if dtype is None else source.float())
        return out if dtype is None else out.to(dtype)

    result = compute(tokens)
    with recomputed(result, lambda: compute(tokens.detach())):
        yield result


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


def split_tokens(tokens: Float[Tensor, "B T D"], num_prefix_tokens: int, grid: tuple[int, int]) -> Tokens:
    """A sequence split into prefix and patch tokens."""
    return Tokens(tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:], grid)


def check_attention(
    attention_layers: Sequence[int], attention_rows: WantedRows, num_layers: int, has_class_token: bool
) -> None:
    """See that the attention that is asked for exists.

    Raises:
        ConfigError: a block number outside 1 .. num_layers, a class token's row where there is no class token, or kinds
            of rows that aren't one for each block.
    """
    kinds = _each(attention_rows, attention_layers)
    if len(kinds) != len(attention_layers):
        raise ConfigError(
            f"attention_rows: got {len(kinds)} for {len(attention_layers)} blocks. Give one for all, or one for each."
        )
    wrong = [layer for layer in attention_layers if not 1 <= layer <= num_layers]
    if wrong:
        raise ConfigError(f"attention_layers: got {wrong}, this encoder has blocks 1 to {num_layers}.")
    if "class" in kinds and not has_class_token:
        raise ConfigError(
            "attention_rows: got 'class', but this encoder has no class token. Ask for 'head_mean', or for a model "
            "with model.class_token=true."
        )


def _each(rows: WantedRows, layers: Sequence[int]) -> tuple[AttentionRows, ...]:
    """The rows wanted of each block."""
    return (rows,) * len(layers) if isinstance(rows, str) else tuple(rows)


def _normed_heads(block: AnyBlock, tokens: Tensor) -> Heads:
    with normed(block.norm1, tokens) as first:
        return project_heads(block.attn, first)


def _finish(block: AnyBlock, tokens: Tensor, heads: Heads, bias: Tensor | None) -> Tensor:
    """All of a block that comes after query, key and value."""
    return _add_mlp(block, tokens + block.drop_path1(_attention_branch(block, heads, bias)))


def _attention_branch(block: AnyBlock, heads: Heads, bias: Tensor | None) -> Tensor:
    return _scale_attention(block, _out(block.attn, _join(attend(heads, block.attn.scale, bias))))


def _scale_attention(block: AnyBlock, branch: Tensor) -> Tensor:
    """The attention branch after the block's layer scale."""
    scaled: Tensor = block.ls1(branch) if isinstance(block, Block) else _scaled(branch, block.gamma_1)
    return scaled


def _add_mlp(block: AnyBlock, tokens: Tensor) -> Tensor:
    with normed(block.norm2, tokens) as second:
        branch = run_mlp(block.mlp, second)
    branch = block.ls2(branch) if isinstance(block, Block) else _scaled(branch, block.gamma_2)
    out: Tensor = tokens + block.drop_path2(branch)
    return out


def _join(attended: Tensor) -> Tensor:
    """Heads side by side: [B, heads, n, d] to [B, n, heads * d]."""
    return attended.transpose(1, 2).flatten(2)


def _out(attention: AnyAttention, joined: Tensor) -> Tensor:
    """The output projection of joined heads."""
    if isinstance(attention, Attention):
        joined = attention.norm(joined)
    out: Tensor = attention.proj_drop(attention.proj(joined))
    return out


def _scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else gamma * branch


def _drop_images(drop_path: nn.Module, branch: Tensor, owner: Tensor, count: int) -> Tensor:
    """Stochastic depth over rows of `count` images, by the numbers that `drop_path` would draw for whole images."""
    if isinstance(drop_path, nn.Identity):
        return branch
    factors = drop_path(branch.new_ones(count, 1))
    dropped: Tensor = branch * factors[owner]
    return dropped

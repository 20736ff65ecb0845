"""The encoder contract: all that methods, evaluations and analyses may know of a backbone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfseen.backbones.config import ModelConfig
from halfseen.backbones.masked import check_selected

E = TypeVar("E", bound="Encoder")

AttentionRows = Literal["class", "head_mean"]
"""Attention of the class token to all tokens, head by head; or of all tokens to all tokens, averaged over the heads."""
WantedRows: TypeAlias = AttentionRows | tuple[AttentionRows, ...]
"""Of all blocks whose attention is wanted, or one for each; a block may then be named once for either kind."""


class Tokens(NamedTuple):
    """A token sequence split by kind.

    Attributes:
        prefix: float [B, P, D], class token and registers; P may be 0.
        patches: float [B, N, D], row-major; with dropped patches only the visible ones, in the order of `visible_ids`.
        grid: (rows, cols) of the full patch grid at this depth.
    """

    prefix: Tensor
    patches: Tensor
    grid: tuple[int, int]


class Features(NamedTuple):
    """An encoder's output after its final norm, and what was asked for of single blocks.

    Attributes:
        prefix, patches, grid: as in `Tokens`.
        layers: raw outputs of the requested blocks, before any final norm, in the order of the request.
        attention: softmaxed attention weights of the requested blocks in float32, T counting prefix and patch tokens:
            [B, heads, T] of the class token (its own column included), or [B, T, T] averaged over the heads.
    """

    prefix: Tensor
    patches: Tensor
    grid: tuple[int, int]
    layers: tuple[Tokens, ...] = ()
    attention: tuple[Tensor, ...] = ()


class BlockView(NamedTuple):
    """What happens within one block, for analyses.

    Attributes:
        number: of the block, from 1; 0 = patch embedding and positions, where only `tokens` is there.
        tokens: the residual stream after the block, before any final norm.
        attended: the residual stream after the block's attention, before its MLP.
        attention_input: what enters the attention: the normalised residual stream.
        attention_output: what the attention gives after its projection, before layer scale and the residual sum.
        attention: softmaxed weights float32 [B, heads, T, T], T counting prefix and patch tokens, rows (queries) sum
            to 1; None where tokens attend within windows only.
    """

    number: int
    tokens: Tokens
    attended: Tokens | None = None
    attention_input: Tokens | None = None
    attention_output: Tokens | None = None
    attention: Tensor | None = None


class Selected(NamedTuple):
    """The tokens of an encoder's output that a loss looks at, after the final norm.

    Attributes:
        summary: float [B, D], one vector per image, see `Encoder.summary`.
        patches: float [M, D], the patch tokens at the selected places, in the order of the request.
    """

    summary: Tensor
    patches: Tensor


class Encoder(nn.Module, ABC):
    """A vision transformer that can look at half-seen images.

    Attributes:
        embed_dim: width of the output tokens.
        mask_dim: width at which hidden patches are replaced by a mask token (the first stage's for Swin).
        patch_size: side of an input patch in pixels: the grid on which masks are given.
        stride: pixels per output token along one axis (patch_size for ViT, more for Swin).
        image_size: side in pixels for which positions were built.
        num_prefix_tokens: tokens before the patch tokens.
        has_class_token: whether the first of them is a class token.
        num_layers: number of blocks (over all stages).
        num_heads: attention heads of the last block.
        config: how it was built; with `image_size` all that `backbones.build` needs to build it again.
        trunk: the timm model that holds all weights.
    """

    embed_dim: int
    mask_dim: int
    patch_size: int
    stride: int
    image_size: int
    num_prefix_tokens: int
    has_class_token: bool
    num_layers: int
    num_heads: int
    config: ModelConfig
    trunk: nn.Module

    _resting: tuple[nn.Module, ...] = ()
    _units_without_gradient: int = 0

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order, over all stages."""

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; it fits the raw tokens of every block that has the output's width."""
        return self.trunk.get_submodule("norm")

    def first_use(self, name: str) -> int:
        """The first unit in which a parameter acts: its own, but for a table that earlier blocks share."""
        return self.freezing_unit(name)

    @abstractmethod
    def freezing_unit(self, name: str) -> int:
        """The unit of progressive freezing that a parameter of this encoder belongs to, by its name in it.

        0: patch embedding, class token and trained positions; i: block i over all stages, with the patch merging that
        follows it; `num_layers` also for the final norm and for tables that blocks share.
        """

    def freeze(self, units: int, *, embedding: bool = True, cut: bool = True) -> None:
        """Let the first units rest (see `freezing_unit`): they stay in evaluation mode from now on.

        Args:
            units: how many, the embedding counted.
            embedding: False if the embedding goes on learning.
            cut: whether nothing before the first living unit learns, so that these units run without autograd: no
                backward pass through them, and no activation kept for it.
        """
        blocks = self.blocks[: max(0, units - 1)]
        first = [module for name, module in self.trunk.named_children() if name == "patch_embed"]
        self._resting = (*(first if embedding and units else ()), *blocks)
        self._units_without_gradient = units if cut else 0
        self.train(self.training)

    def train(self: E, mode: bool = True) -> E:
        """As everywhere in torch, but units that rest stay in evaluation mode."""
        nn.Module.train(self, mode)
        for module in self._resting:
            module.eval()
        return self

    def gradient(self, unit: int) -> AbstractContextManager[object]:
        """Within, autograd records unless the unit rests and nothing before it learns."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and unit >= self._units_without_gradient)

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        visible_ids: Tensor | None = None,
        layers: Sequence[int] = (),
        attention_layers: Sequence[int] = (),
        attention_rows: WantedRows = "class",
    ) -> Features:
        """Encode images with hidden patches: replaced by a token, dropped, or none hidden.

        Args:
            images: float [B, 3, H, W], normalised.
            mask: bool [B, N] on the input-patch grid, True = hidden; needs `mask_token`.
            mask_token: float [mask_dim]-sized tensor (any leading ones), put where `mask` is True, before positions.
            visible_ids: int64 [B, N_vis]; only these patches enter the blocks, in this order. Excludes `mask`.
            layers: 1-based block numbers whose raw outputs are wanted (0 = after patch embedding and positions).
            attention_layers: 1-based block numbers whose attention is wanted.
            attention_rows: of which tokens, see `Features.attention`; one word for all, or one for each of
                `attention_layers`, where a block may stand twice.
        Raises:
            ShapeError: image sides that the backbone can't cut into patches.
            ConfigError: a block that isn't there, attention that this backbone doesn't have, or kinds of rows that are
                neither one nor one for each block.
        """

    @abstractmethod
    def block_views(self, images: Tensor) -> Iterator[BlockView]:
        """Block after block of a forward pass with nothing hidden, each computed when it is asked for.

        So only one block's attention of all pairs exists at a time. `final_norm` of the last view's tokens is what
        `encode` gives. Meant for evaluation mode, without autograd.

        Args:
            images: float [B, 3, H, W], normalised.
        Raises:
            ShapeError: as `forward`.
        """

    def forward_selected(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        visible_ids: Tensor | None = None,
        selected: Tensor | None = None,
    ) -> Selected:
        """`forward` for the summary and the selected patch tokens only; a backbone may leave out the rest's work.

        Args:
            images, mask, mask_token, visible_ids: as in `forward`.
            selected: int64 [M], places image * N + patch among the output's N patch tokens (the final grid's; with
                `visible_ids`, those of the visible patches in their order), in any order, repeats allowed; None =
                no patch token is wanted.
        Raises:
            ShapeError: as `forward`, or a selection that is no list of places.
        """
        features: Features = self(images, mask=mask, mask_token=mask_token, visible_ids=visible_ids)
        patches = features.patches
        if selected is None:
            return Selected(self.summary(features), patches.new_zeros(0, patches.shape[-1]))
        check_selected(selected)
        return Selected(self.summary(features), patches.flatten(0, 1).index_select(0, selected))

    def summary(self, features: Tokens | Features) -> Float[Tensor, "B D"]:
        """One vector per image: the class token, or the mean of the patch tokens where there is none."""
        return features.prefix[:, 0] if self.has_class_token else features.patches.mean(dim=1)

    def encode(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """`forward` with nothing hidden."""
        features: Features = self.forward(images, layers=layers)
        return features

    def encode_layers(self, images: Tensor, layers: Sequence[int]) -> tuple[Tokens, ...]:
        """Raw outputs of some blocks as in `Features.layers`; a backbone may leave out the blocks after the last."""
        return self.encode(images, layers).layers

"""The encoder contract: all that methods, evaluations and analyses may know of a backbone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from halfseen.backbones.config import ModelConfig


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
    """An encoder's output after its final norm, and the raw outputs of the blocks that were asked for.

    `layers[i]` is the output of the i-th requested block, before any final norm.
    """

    prefix: Tensor
    patches: Tensor
    grid: tuple[int, int]
    layers: tuple[Tokens, ...] = ()


class Encoder(nn.Module, ABC):
    """A vision transformer that can look at half-seen images.

    Attributes:
        embed_dim: width of the output tokens.
        mask_dim: width at which hidden patches are replaced by a mask token (the first stage's for Swin).
        patch_size: side of an input patch in pixels: the grid on which masks are given.
        stride: pixels per output token along one axis (patch_size for ViT, more for Swin).
        image_size: side in pixels for which positions were built.
        num_prefix_tokens: tokens before the patch tokens.
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
    num_layers: int
    num_heads: int
    config: ModelConfig
    trunk: nn.Module

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        visible_ids: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Encode images with hidden patches: replaced by a token, dropped, or none hidden.

        Args:
            images: float [B, 3, H, W], normalised.
            mask: bool [B, N] on the input-patch grid, True = hidden; needs `mask_token`.
            mask_token: float [mask_dim]-sized tensor (any leading ones), put where `mask` is True, before positions.
            visible_ids: int64 [B, N_vis]; only these patches enter the blocks, in this order. Excludes `mask`.
            layers: 1-based block numbers whose raw outputs are wanted (0 = after patch embedding and positions).
        Raises:
            ShapeError: image sides that the backbone can't cut into patches.
        """

    def encode(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """`forward` with nothing hidden."""
        features: Features = self.forward(images, layers=layers)
        return features

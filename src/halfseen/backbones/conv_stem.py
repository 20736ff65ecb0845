"""A convolutional stem in place of a ViT's patch projection: overlapping windows, batch-normalised on the way.

Source: Early Convolutions Help Transformers See Better, arXiv 2106.14881, as used by Masked Siamese Networks,
arXiv 2204.07141 (official code).
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from halfseen.backbones.batch_norm import CrossProcessBatchNorm
from halfseen.errors import ShapeError
from halfseen.ops.patches import gather_tokens


class ConvStem(nn.Module):
    """3x3 convolutions that halve the picture until a patch is one pixel, each with BatchNorm and ReLU; then a 1x1 one.

    Channels double with each halving and end at `embed_dim`: 48, 96, 192, 384 for patches of 16 and width 384. Built by
    timm's VisionTransformer in place of its own patch embedding.

    Args:
        img_size: side of the pictures for which positions are built, in pixels.
        patch_size: pixels per token along one axis, a power of two.
        in_chans: colours.
        embed_dim: width D, a multiple of patch_size / 2.
    Raises:
        ShapeError: another patch size or width.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **unused: object,
    ) -> None:
        super().__init__()
        halvings = round(math.log2(patch_size))
        if patch_size < 2 or 2**halvings != patch_size or embed_dim % (patch_size // 2):
            raise ShapeError(
                f"a convolutional stem with patch_size {patch_size} and embed_dim {embed_dim}: the patch size must be "
                "2, 4, 8, 16 or another power of two, and the width a multiple of half of it."
            )
        side = img_size // patch_size
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (side, side)
        self.num_patches = side * side
        widths = [in_chans, *(embed_dim >> step for step in reversed(range(halvings)))]
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype),
                CrossProcessBatchNorm(after, device=device, dtype=dtype),
                nn.ReLU(),
            ]
        parts.append(nn.Conv2d(embed_dim, embed_dim, 1, device=device, dtype=dtype))
        self.conv = nn.Sequential(*parts)

    def forward(
        self, images: Float[Tensor, "B C H W"], visible_ids: Int64[Tensor, "B n"] | None = None
    ) -> Float[Tensor, "B n D"]:
        """Embeddings of all patches, or of those in `visible_ids`; the windows overlap, so all pixels are read."""
        tokens: Tensor = self.conv(images).flatten(2).transpose(1, 2)
        return tokens if visible_ids is None else gather_tokens(tokens, visible_ids)

"""LocalMIM's ViT written plainly, with timm's blocks and torch, at the cost of the original's code of 2023.

A step does the original's work in the original's way:

    all patches are projected, three quarters of them dropped afterwards
    attention written out: the softmaxed weights exist as a tensor
    four taps, each with a decoder over all 1 + N tokens, put back in raster order, in training all through the block
    heads as transposed convolutions, norms over channels and 1x1 convolutions on whole maps
    HOG of each scale and colour by itself: Sobel, atan2, scattered into a map of all bins, pooled, normalised
    the squared error of all cells, masked afterwards; loss and each of its terms fetched to the host
    gradient norm computed and thrown away; AdamW as torch builds it

Left out, in its favour: writing logs, normalising the pixels (the loader's part there; ours does it in the step).

Source: arXiv 2303.05251 and its public code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks.cases import Case, Contestant
from benchmarks.plain import attend, plain_hog_targets, plain_optimizer
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.ops.pixels import normalise
from halfseen.ops.positions import sincos_positions

SCALES = (4.0, 2.0, 1.0, 0.5)
NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of [B, C, H, W]."""

    def forward(self, maps: Tensor) -> Tensor:
        """The same shape."""
        mean = maps.mean(1, keepdim=True)
        variance = (maps - mean).pow(2).mean(1, keepdim=True)
        normed = (maps - mean) / torch.sqrt(variance + self.eps)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def rescale_head(width: int, scale: float, out_dim: int) -> nn.Sequential:
    """From a map of tokens to a map of cells."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)] if scale < 1 else []
    for doubling in range(int(math.log2(scale)) if scale > 1 else 0):
        if doubling:
            layers += [ChannelNorm(width, eps=NORM_EPS), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    return nn.Sequential(*layers, nn.Conv2d(width, out_dim, 1))


def run(block: Block, tokens: Tensor) -> Tensor:
    """A block, its attention written out."""
    tokens = tokens + attend(block.attn, block.norm1(tokens))[0]
    return tokens + block.mlp(block.norm2(tokens))


def plain_block(dim: int, heads: int) -> Block:
    """A block with LocalMIM's epsilon."""
    block = Block(dim, heads, qkv_bias=True)
    block.norm1.eps = block.norm2.eps = NORM_EPS
    return block


class PlainDecoder(nn.Module):
    """A tap's decoder over all tokens."""

    def __init__(self, dim: int, side: int, scale: float, out_dim: int, width: int = 256, heads: int = 8) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, side, side, 1).float()[None], requires_grad=False)
        self.blocks = nn.ModuleList([plain_block(width, heads)])
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.pred = rescale_head(width, scale, out_dim)

    def forward(self, latent: Tensor, restore: Tensor) -> Tensor:
        """All cells [B, cells, out_dim], row-major."""
        x = self.embed(latent)
        B, _, d = x.shape
        waiting = self.mask_token.expand(B, restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], waiting], dim=1).gather(1, restore[:, :, None].expand(-1, -1, d))
        x = torch.cat([x[:, :1], patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = run(block, x)
        maps = self.norm(x)[:, 1:].transpose(1, 2).reshape(B, d, self.side, self.side)
        out: Tensor = self.pred(maps).flatten(2).transpose(1, 2)
        return out


class PlainLocalMIM(nn.Module):
    """LocalMIM around a ViT; names of parameters are the original's.

    Args:
        image_size, patch_size, dim, depth, heads: of the ViT.
        bins: orientations of the HOG.
        width, decoder_heads: of the decoders.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        bins: int = 9,
        width: int = 256,
        decoder_heads: int = 8,
    ) -> None:
        super().__init__()
        self.side, self.bins = image_size // patch_size, bins
        self.pools = [int(patch_size / scale) for scale in SCALES]
        self.taps = [2, 4, depth - 2, depth]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(dim, self.side, self.side, 1).float()[None], requires_grad=False)
        self.blocks = nn.ModuleList(plain_block(dim, heads) for _ in range(depth))
        self.norm = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for _ in SCALES)
        self.decoder = nn.ModuleList(
            PlainDecoder(dim, self.side, scale, 3 * bins, width, decoder_heads) for scale in SCALES
        )

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, list[float]]:
        """Loss, and its terms as numbers, of normalised images with the patches of largest noise hidden."""
        B, N = noise.shape
        kept = int(N * (1 - 0.75))
        shuffled = noise.argsort(dim=1)
        restore = shuffled.argsort(dim=1)
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = x.gather(1, shuffled[:, :kept, None].expand(-1, -1, x.shape[-1]))
        mask = torch.ones(B, N).scatter_(1, shuffled[:, :kept], 0.0)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1), x], dim=1)
        latents = []
        for number, block in enumerate(self.blocks, start=1):
            x = run(block, x)
            if number in self.taps:
                latents.append(self.norm[len(latents)](x))
        targets = plain_hog_targets(images, self.bins, self.pools)
        losses = []
        for latent, decoder, target, scale in zip(latents, self.decoder, targets, SCALES, strict=True):
            error = (decoder(latent, restore) - target).pow(2).mean(dim=-1)
            weights = self.weights(mask, scale)
            losses.append((error * weights).sum() / weights.sum())
        return torch.stack(losses).sum(), [loss.item() for loss in losses]

    def weights(self, mask: Tensor, scale: float) -> Tensor:
        """Weight of each cell [B, cells]: 1 where a patch is hidden, its share for cells of four patches."""
        maps = mask.reshape(len(mask), 1, self.side, self.side)
        if scale < 1:
            return F.avg_pool2d(maps, 2).flatten(1)
        return maps.repeat_interleave(int(scale), 2).repeat_interleave(int(scale), 3).flatten(1)


def random_images(batch_size: int, side: int) -> Tensor:
    """Noise, normalised."""
    return normalise(torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8), IMAGENET_MEAN, IMAGENET_STD)


def build_localmim(case: Case) -> Contestant:
    """LocalMIM ViT-S/16, ready to take steps."""
    torch.manual_seed(0)
    method = PlainLocalMIM(case.image_size).train()
    optimizer = plain_optimizer(method)
    trained: Sequence[nn.Parameter] = [each for each in method.parameters() if each.requires_grad]
    images = random_images(case.batch_size, case.image_size)

    def forward() -> Tensor:
        loss, _ = method(images, torch.rand(case.batch_size, method.side**2))
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}")
        return loss

    def update() -> None:
        torch.stack([each.grad.norm() for each in trained if each.grad is not None]).norm().item()
        optimizer.step()
        optimizer.zero_grad()

    return Contestant(forward, lambda loss: loss.backward(), update, sum(each.numel() for each in trained))

"""Frozen features: images through an encoder in evaluation mode, or the raw pixels they compete with.

Several extractors share one pass over the data, so an encoder, its random initialisation and the pixel baseline see
the same views and each image is decoded once. Nothing but the `Encoder` and `Source` contracts is used.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Real, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from halfseen.backbones.base import Encoder, Tokens
from halfseen.data.loader import evaluation_batches
from halfseen.data.sources import Source
from halfseen.data.transforms import Interpolation
from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.evaluation.results import FeatureKind
from halfseen.ops.precision import Precision, autocast
from halfseen.ops.randomness import numpy_generator, torch_generator
from halfseen.types import SkippedFile

FEATURE_SENTENCES: dict[FeatureKind, str] = {
    "cls": "class token of the last block after the final norm",
    "mean": "mean of the last block's patch tokens after the final norm",
    "cls+mean": "class token and mean of the patch tokens after the final norm, concatenated",
    "cls-before-norm": "class token of the last block before the final norm",
    "mean-before-norm": "mean of the last block's patch tokens before the final norm",
    "mean-plain-norm": "mean of the last block's patch tokens before the final norm, layer-normed without weights",
}

PLAIN_NORM_EPS = 1e-6
RAW_PIXEL_SIDE = 32


def feature_sentence(feature: FeatureKind, last_blocks: int = 1, layer: int | None = None) -> str:
    """What the feature vectors are, in words."""
    sentence = FEATURE_SENTENCES[feature]
    if layer is not None:
        sentence = sentence.replace("the last block", f"block {layer}")
        if feature == "cls+mean":
            sentence += f", of block {layer}"
    if last_blocks > 1:
        sentence += f"; {'the class token' if feature == 'cls+mean' else 'this'} of the last {last_blocks} blocks"
    return sentence


class FeatureSet(NamedTuple):
    """Features of the images of a source that could be read.

    Attributes:
        features: float32 [n, D], on the CPU.
        labels: int64 [n], -1 = none.
        indices: int64 [n], position of each row's image in the source.
        skipped: images that could not be read; they have no row.
    """

    features: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"]
    indices: Int[Tensor, " n"]
    skipped: tuple[SkippedFile, ...]


class Extractor(Protocol):
    """Turns views uint8 [B, 3, S, S] into features float32 [B, D] on the CPU."""

    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]: ...

    def on_device(self, views: Real[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """The same, left where it was computed; the views may be blends: any numbers in [0, 255]."""


class _Drop:
    """Which patches each batch keeps: a function of seed, batch and number of patches."""

    def __init__(self, ratio: float, seed: int) -> None:
        self.ratio, self.seed, self.batch = ratio, seed, 0

    def next_visible(self, num_patches: int) -> Int[Tensor, " n"]:
        order = torch.randperm(num_patches, generator=torch_generator(self.seed, "dropped patches", self.batch))
        self.batch += 1
        return order[: max(1, int(num_patches * (1 - self.ratio)))]


class EncoderFeatures:
    """Features of a frozen encoder.

    Args:
        mean, std: what the encoder expects images to be normalised with, per colour, on the scale 0 to 1.
        feature: which tokens make the vector, see `FEATURE_SENTENCES`.
        last_blocks: of how many blocks they are concatenated, the earliest first (iBOT's n); of "cls+mean" only the
            class token is taken from earlier ones. A block narrower than the output (Swin) stays without the norm.
        layer: the block, counted from 1, that stands for the last one; None = the last one.
        precision: of the forward pass; the result is float32 in any case.
    Raises:
        ShapeError: a class token asked for that the encoder has not.
        ConfigError: blocks that aren't there.
    """

    def __init__(
        self,
        encoder: Encoder,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        feature: FeatureKind = "mean",
        last_blocks: int = 1,
        layer: int | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        if feature.startswith("cls") and encoder.num_prefix_tokens == 0:
            raise ShapeError(f"feature: got '{feature}', but this encoder has no class token. Use 'mean'.")
        last = encoder.num_layers if layer is None else layer
        if not 1 <= last <= encoder.num_layers:
            raise ConfigError(f"layer: got {layer}, but this encoder has the blocks 1 to {encoder.num_layers}.")
        if not 1 <= last_blocks <= last:
            raise ConfigError(
                f"last_blocks: got {last_blocks}, but there are {last} blocks to take. Write at most {last}."
            )
        self.encoder = encoder.to(device).eval()
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.feature, self.device, self.precision = feature, device, precision
        self.blocks = tuple(range(last - last_blocks + 1, last + 1))
        self._drop: _Drop | None = None

    def dropping(self, ratio: float, seed: int) -> "EncoderFeatures":
        """The same that sees a part of the patches only, others in every call, which is one batch.

        Args:
            ratio: share of the patches that is dropped, in (0, 1); at least one is kept.
            seed: draws which, the same for all images of a batch.
        """
        twin = copy.copy(self)
        twin._drop = _Drop(ratio, seed)
        return twin

    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return self.on_device(views).cpu()

    def on_device(self, views: Real[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """The same, left where it was computed; the views may be blends: any numbers in [0, 255]."""
        return self.of_images((views.to(self.device).float() / 255 - self.mean) / self.std)

    @torch.no_grad()
    def of_images(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Features of images that are normalised already; they carry no gradient."""
        with autocast(torch.device(self.device), self.precision):
            return pool_blocks(self._tokens(images), self.feature)

    def _tokens(self, images: Tensor) -> list[Tokens]:
        """What is pooled of each block: normed where the kind of feature says so."""
        if self._drop is not None:
            side = self.encoder.patch_size
            num_patches = (images.shape[-2] // side) * (images.shape[-1] // side)
            visible = self._drop.next_visible(num_patches).to(images.device).expand(len(images), -1)
            layers = self.encoder(images, visible_ids=visible, layers=self.blocks).layers
            return list(layers) if self.feature.endswith("norm") else [self._normed(tokens) for tokens in layers]
        if self.feature.endswith("norm"):
            return list(self.encoder.encode_layers(images, self.blocks))
        if self.blocks == (self.encoder.num_layers,):
            final = self.encoder.encode(images)
            return [Tokens(final.prefix, final.patches, final.grid)]
        return [self._normed(tokens) for tokens in self.encoder.encode_layers(images, self.blocks)]

    def _normed(self, tokens: Tokens) -> Tokens:
        if tokens.patches.shape[-1] != self.encoder.embed_dim:
            return tokens
        norm = self.encoder.final_norm
        return Tokens(norm(tokens.prefix), norm(tokens.patches), tokens.grid)


def pool_blocks(blocks: Sequence[Tokens], feature: FeatureKind) -> Float[Tensor, "B D"]:
    """One float32 vector per image from the tokens of some blocks, the earliest first, see `EncoderFeatures`."""
    if feature.startswith("cls"):
        parts = [tokens.prefix[:, 0].float() for tokens in blocks]
        if feature == "cls+mean":
            parts.append(blocks[-1].patches.float().mean(dim=1))
    else:
        parts = [tokens.patches.float().mean(dim=1) for tokens in blocks]
        if feature == "mean-plain-norm":
            parts = [F.layer_norm(part, part.shape[1:], eps=PLAIN_NORM_EPS) for part in parts]
    return torch.cat(parts, dim=1)


class RawPixels:
    """The baseline that any encoder should beat: the picture itself, seen at most at `size` pixels a side."""

    def __init__(self, size: int = RAW_PIXEL_SIDE) -> None:
        self.size = size

    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return self.on_device(views).cpu()

    def on_device(self, views: Real[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """The same, left where the views are."""
        pixels = views.float() / 255
        if pixels.shape[-1] > self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="area")
        return pixels.flatten(1)


def extract_features(
    extractors: Mapping[str, Extractor],
    source: Source,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    image_size: int,
    resize: Literal["crop", "squash"] = "crop",
    crop_ratio: float = 0.875,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
    batch_size: int = 128,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, FeatureSet]:
    """Run every extractor over the same evaluation views (resize, centre crop; no augmentation), in one pass.

    Args:
        indices: rows of the source; None = all of them.
        image_size: side of the view in pixels.
        resize, crop_ratio, interpolation, antialias: how the view is cut, see `data.transforms.deterministic_view`.
        workers: loader processes.
        on_progress: called with (images done, all images).
    Returns:
        A feature set per extractor; rows, in the order of `indices`, are the same in all of them.
    Raises:
        DataError: if not one image could be read.
    """
    wanted = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
    found: dict[str, Tensor] = {}
    rows = torch.empty(len(wanted), dtype=torch.int64)
    skipped: list[SkippedFile] = []
    filled = 0
    batches = evaluation_batches(
        source,
        wanted,
        image_size,
        batch_size,
        resize=resize,
        crop_ratio=crop_ratio,
        interpolation=interpolation,
        antialias=antialias,
        workers=workers,
    )
    for batch in batches:
        skipped += batch.skipped
        stop = filled + len(batch.indices)
        if stop > filled:
            rows[filled:stop] = batch.indices
            for name, extract in extractors.items():
                part = extract(batch.images)
                if name not in found:
                    found[name] = torch.empty(len(wanted), part.shape[1])
                found[name][filled:stop] = part
        filled = stop
        if on_progress is not None:
            on_progress(filled + len(skipped), len(wanted))
    if filled == 0:
        reason = f" The first: {skipped[0].path}: {skipped[0].reason}." if skipped else ""
        raise DataError(f"'{source.name}': none of the {len(wanted)} images could be read.{reason}")
    rows = rows[:filled]
    labels = torch.from_numpy(np.asarray(source.labels, dtype=np.int64)[rows.numpy()])
    return {name: FeatureSet(features[:filled], labels, rows, tuple(skipped)) for name, features in found.items()}


def draw_subset(size: int, most: int | None, *key: int | str) -> NDArray[np.int64]:
    """At most `most` of `size` rows, int64, rising; a fixed function of the key."""
    if most is None or most >= size:
        return np.arange(size)
    return np.sort(numpy_generator(*key).choice(size, most, replace=False))

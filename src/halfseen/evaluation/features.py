"""Frozen features: images through an encoder in evaluation mode, or the raw pixels they compete with.

Several extractors share one pass over the data, so an encoder, its random initialisation and the pixel baseline see
the same views and each image is decoded once. Nothing but the `Encoder` and `Source` contracts is used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from halfseen.backbones.base import Encoder
from halfseen.data.loader import evaluation_batches
from halfseen.data.sources import Source
from halfseen.errors import DataError, ShapeError
from halfseen.evaluation.results import FeatureKind
from halfseen.ops.randomness import numpy_generator
from halfseen.types import SkippedFile

Precision = Literal["fp32", "bf16", "fp16"]

FEATURE_SENTENCES: dict[str, str] = {
    "cls": "class token of the last block after the final norm",
    "mean": "mean of the last block's patch tokens after the final norm",
    "cls+mean": "class token and mean of the patch tokens after the final norm, concatenated",
    "mean-before-norm": "mean of the last block's patch tokens before the final norm",
}


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


class EncoderFeatures:
    """Features of a frozen encoder.

    Args:
        mean, std: what the encoder expects images to be normalised with, per colour, on the scale 0 to 1.
        feature: which tokens make the vector, see `FEATURE_SENTENCES`.
        precision: of the forward pass; the result is float32 in any case.
    Raises:
        ShapeError: a class token asked for that the encoder has not.
    """

    def __init__(
        self,
        encoder: Encoder,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        feature: FeatureKind = "mean",
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        if feature in ("cls", "cls+mean") and encoder.num_prefix_tokens == 0:
            raise ShapeError(f"feature: got '{feature}', but this encoder has no class token. Use 'mean'.")
        self.encoder = encoder.to(device).eval()
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.feature, self.device, self.precision = feature, device, precision

    @torch.inference_mode()
    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        images = (views.to(self.device).float() / 255 - self.mean) / self.std
        half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(torch.device(self.device).type, dtype=half, enabled=half is not None):
            if self.feature == "mean-before-norm":
                tokens = self.encoder.encode(images, layers=(self.encoder.num_layers,)).layers[0]
                return tokens.patches.float().mean(dim=1).cpu()
            found = self.encoder.encode(images)
        parts = []
        if "cls" in self.feature:
            parts.append(found.prefix[:, 0].float())
        if "mean" in self.feature:
            parts.append(found.patches.float().mean(dim=1))
        return torch.cat(parts, dim=1).cpu()


class RawPixels:
    """The baseline that any encoder should beat: the picture itself, seen at most at `size` pixels a side."""

    def __init__(self, size: int = 32) -> None:
        self.size = size

    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
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
    batch_size: int = 128,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, FeatureSet]:
    """Run every extractor over the same evaluation views (resize, centre crop; no augmentation), in one pass.

    Args:
        indices: rows of the source; None = all of them.
        image_size: side of the view in pixels.
        resize, crop_ratio: how the view is cut, see `data.transforms.deterministic_view`.
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
        source, wanted, image_size, batch_size, resize=resize, crop_ratio=crop_ratio, workers=workers
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

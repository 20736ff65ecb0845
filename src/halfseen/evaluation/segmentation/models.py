"""What gives each pixel a class: ViNy's model, a linear layer on frozen patch tokens, and votes of frozen patch tokens.

They share one small contract, `Segmenter`: uint8 images in, a class per pixel out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import import_checkpoint
from halfseen.data.sampler import StepSampler
from halfseen.errors import ShapeError, WeightsError
from halfseen.evaluation.knn.votes import weighted_knn
from halfseen.evaluation.resident_training import OneGroup
from halfseen.evaluation.subject import RAW_MEAN, RAW_STD
from halfseen.ops.patches import patchify
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.precision import Precision, autocast
from halfseen.ops.randomness import stream_seed
from halfseen.ops.segmentation import ClassSoftmax, class_map, pixel_labels, pixel_scores, segmentation_loss
from halfseen.types import Batch, Progress, StepOutput


class Segmenter(Protocol):
    """Gives pixels their classes."""

    def predict(self, views: UInt8[Tensor, "B 3 H W"]) -> Int64[Tensor, "B H W"]:
        """The class of each pixel, on the views' device."""


class ConstantSegmenter(NamedTuple):
    """Gives all pixels the same class.

    Attributes:
        answer: that class.
    """

    answer: int

    def predict(self, views: UInt8[Tensor, "B 3 H W"]) -> Int64[Tensor, "B H W"]:
        return torch.full_like(views[:, 0], self.answer, dtype=torch.int64)


class SegmentationModel(OneGroup):
    """ViNy's segmentation: one linear layer from each patch token to the class scores of the patch's pixels.

    Attributes:
        encoder: learns in place; its class token, where it has one, is not looked at.
        head: Linear(D, K * p * p), class by class, p the pixels that a token covers along one axis.

    Args:
        encoder: any.
        num_classes: K.
        mean, std: of the pixels in [0, 1], per colour, removed from what the encoder sees.
        seed: of the head's first weights.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        mean: Channels = RAW_MEAN,
        std: Channels = RAW_STD,
        class_softmax: ClassSoftmax = "over_pixels",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.num_classes, self.mean, self.std = encoder, num_classes, mean, std
        self.class_softmax: ClassSoftmax = class_softmax
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "segmentation head"))
            self.head = nn.Linear(encoder.embed_dim, num_classes * encoder.stride**2)

    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K N p p"]:
        """Class scores of the pixels of each patch, of images as the encoder sees them."""
        return pixel_scores(self.head(self.encoder(images).patches), self.num_classes, self.class_softmax)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of a batch with masks in `extras["mask"]`: uint8 [B, H, W]."""
        scores = self.scores(normalise(batch.views[0], self.mean, self.std))
        labels = pixel_labels(batch.extras["mask"].long()[:, None], self.encoder.stride)
        return StepOutput(segmentation_loss(scores, labels), {})

    def predict(self, views: UInt8[Tensor, "B 3 H W"]) -> Int64[Tensor, "B H W"]:
        size = views.shape[-1] // self.encoder.stride
        return class_map(self.scores(normalise(views, self.mean, self.std)), (size, size))


class PatchTokens(Protocol):
    """Turns views into one vector per patch."""

    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        """float32, row-major over the patches, on the views' device."""


class EncoderTokens:
    """Patch tokens of a frozen encoder, after the final norm.

    Args:
        mean, std: of the pixels in [0, 1], per colour, removed from what the encoder sees.
        precision: of the forward pass.
    """

    def __init__(
        self, encoder: Encoder, mean: Channels, std: Channels, device: str = "cpu", precision: Precision = "fp32"
    ) -> None:
        self.encoder = encoder.to(device).eval()
        self.mean, self.std, self.precision = mean, std, precision

    @torch.no_grad()
    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        with autocast(views.device, self.precision):
            return self.encoder.encode(normalise(views, self.mean, self.std)).patches.float()


class RawPatches(NamedTuple):
    """The baseline that any encoder should beat: a patch's own pixels in [0, 1].

    Attributes:
        patch_size: side of a patch, the pixels that a token of the encoder covers.
    """

    patch_size: int

    def __call__(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        return patchify(views.float() / 255, self.patch_size)


class LinearSegmenter(OneGroup):
    """A linear layer on frozen patch tokens; the scores of the patches are enlarged bilinearly to those of the pixels.

    Args:
        tokens: where predictions get their tokens from; training gets them from `CachedTokens`.
        width: of a token.
        patch_size: pixels of a patch along one axis.
    """

    def __init__(self, tokens: PatchTokens, width: int, num_classes: int, patch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.tokens, self.patch_size = tokens, patch_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "segmentation head"))
            self.head = nn.Linear(width, num_classes)

    def scores(self, tokens: Float[Tensor, "B N D"], size: int) -> Float[Tensor, "B K S S"]:
        """Class scores of the pixels of square images of `size`."""
        side = size // self.patch_size
        patches = self.head(tokens).float().transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(patches, size=(size, size), mode="bilinear", align_corners=False)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of a batch of cached tokens and masks."""
        masks = batch.extras["mask"].long()
        return StepOutput(segmentation_loss(self.scores(batch.extras["tokens"], masks.shape[-1]), masks), {})

    def predict(self, views: UInt8[Tensor, "B 3 S S"]) -> Int64[Tensor, "B S S"]:
        return self.scores(self.tokens(views), views.shape[-1]).argmax(dim=1)


class CachedTokens:
    """A loader of tokens that were computed once, with their masks; a `StepLoader` of the engine.

    Args:
        tokens: float [n, N, D].
        masks: uint8 [n, S, S].
        sampler: over n images.
    """

    wait_seconds = 0.0

    def __init__(self, tokens: Float[Tensor, "n N D"], masks: UInt8[Tensor, "n S S"], sampler: StepSampler) -> None:
        self.tokens, self.masks = tokens, masks
        self.sampler, self.steps_per_epoch = sampler, sampler.steps_per_epoch

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """For each step of the run from `start_step` to `stop_step` - 1: its micro-batches."""
        for step in range(start_step, stop_step):
            yield [
                self._batch(torch.from_numpy(rows).to(self.tokens.device)) for rows in self.sampler.micro_batches(step)
            ]

    def _batch(self, rows: Tensor) -> Batch:
        extras = {"tokens": self.tokens[rows], "mask": self.masks[rows]}
        return Batch((), rows, torch.full_like(rows, -1), extras)


class KnnSegmenter(NamedTuple):
    """Patches that vote with their majority class for the class of a whole patch, see `evaluation.knn.votes`.

    Attributes:
        tokens: where predictions get their tokens from.
        voters: float [m, D], tokens of training patches.
        labels: int64 [m], their majority classes.
        num_classes, k, temperature: of the vote.
    """

    tokens: PatchTokens
    voters: Float[Tensor, "m D"]
    labels: Int64[Tensor, " m"]
    num_classes: int
    k: int
    temperature: float

    def predict(self, views: UInt8[Tensor, "B 3 S S"]) -> Int64[Tensor, "B S S"]:
        tokens = self.tokens(views)
        B, N, _ = tokens.shape
        side = round(N**0.5)
        queries = tokens.flatten(0, 1)
        (score,) = weighted_knn(
            self.voters,
            self.labels,
            queries,
            torch.zeros(len(queries), dtype=torch.int64, device=queries.device),  # No label is looked at.
            k=(self.k,),
            temperature=(self.temperature,),
            num_classes=self.num_classes,
        )
        pixels = views.shape[-1] // side
        patches = score.predictions.to(views.device).reshape(B, side, side)
        return patches.repeat_interleave(pixels, dim=1).repeat_interleave(pixels, dim=2)


def import_segmentation_model(path: str | Path, num_heads: int | None = None) -> SegmentationModel:
    """The segmentation model in a checkpoint of ViNy's own code; a head that an intermediate stage left is ignored.

    Args:
        num_heads: attention heads, where the sizes don't tell.
    Raises:
        WeightsError: no such head in the file, or one that doesn't fit the encoder.
    """
    imported = import_checkpoint(path, num_heads=num_heads)
    head = {name.removeprefix("mlp."): value for name, value in imported.head_state.items() if name.startswith("mlp.")}
    if set(head) != {"weight", "bias"}:
        raise WeightsError(
            f"encoder: {str(path)!r} holds no segmentation model of ViNy: it has no mlp.weight and mlp.bias. Give a "
            "file that its fine-tuning wrote, or a folder that `halfseen segment` wrote."
        )
    encoder = imported.build()
    outputs = len(head["bias"])
    if outputs % encoder.stride**2:
        raise WeightsError(
            f"encoder: the head in {str(path)!r} has {outputs} outputs, which is no multiple of the "
            f"{encoder.stride**2} pixels of a patch."
        )
    model = SegmentationModel(encoder, outputs // encoder.stride**2)
    model.head.load_state_dict(head)
    return model


def check_size(encoder: Encoder, size: int) -> None:
    """See that tokens cover the whole picture.

    Raises:
        ShapeError: a side that they don't divide.
    """
    if size % encoder.stride:
        below = size // encoder.stride * encoder.stride
        sides = [side for side in (below, below + encoder.stride) if side]
        raise ShapeError(
            f"image_size: got {size}, which is no multiple of the {encoder.stride} pixels that a token of this encoder "
            f"covers, so some pixels would get no class. Write {' or '.join(map(str, sides))}."
        )

"""What an intermediate stage trains: an encoder with a head for the class of the image, or of each patch."""

import copy
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from halfseen.backbones.base import Encoder
from halfseen.backbones.viny import ViNyEncoder
from halfseen.evaluation.intermediate.config import IntermediateConfig
from halfseen.evaluation.resident_training import OneGroup
from halfseen.evaluation.subject import Subject
from halfseen.ops.mixing import mix_up, mixup_share
from halfseen.ops.patch_labels import majority_labels, patch_histogram
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import stream_seed
from halfseen.types import Batch, Progress, StepOutput


class Stage(OneGroup, ABC):
    """An encoder with a fresh head, as the loop trains it: every weight learns, all in one group.

    Attributes:
        encoder: learns in place.
        head: one linear layer, with torch's own start.
    """

    def __init__(self, encoder: Encoder, num_classes: int, mean: Channels, std: Channels, seed: int) -> None:
        """
        Args:
            mean, std: of the pixels in [0, 1], per colour, removed from what the encoder sees.
            seed: of the head's first weights.
        """
        super().__init__()
        self.encoder, self.mean, self.std, self.num_classes = encoder, mean, std, num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "intermediate head"))
            self.head = nn.Linear(encoder.embed_dim, num_classes)

    @abstractmethod
    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Tensor:
        """Scores of the classes, [B, K] of images or [B, N, K] of patches."""

    @abstractmethod
    def labels_of(self, batch: Batch) -> Tensor:
        """The labels that `scores` are compared with, int64 [B] or [B, N], -1 = none."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of a batch, and the share of what is classified rightly before the update."""

    def prepared(self, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        """The images of a batch as the encoder sees them."""
        return normalise(batch.views[0], self.mean, self.std)


class ClassificationStage(Stage):
    """Learns the class of the whole image from `Encoder.summary`: the class token, or the mean where there is none.

    Args:
        mixup_alpha: of MixUp; None mixes nothing.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        mean: Channels,
        std: Channels,
        seed: int,
        mixup_alpha: float | None = None,
    ) -> None:
        super().__init__(encoder, num_classes, mean, std, seed)
        self.mixup_alpha = mixup_alpha

    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        scores: Tensor = self.head(self.encoder.summary(self.encoder(images)))
        return scores

    def labels_of(self, batch: Batch) -> Int64[Tensor, " B"]:
        return batch.labels

    def loss(self, images: Float[Tensor, "B 3 H W"], shares: Float[Tensor, "B K"]) -> tuple[Tensor, Tensor]:
        """Cross-entropy with the shares of the classes, float32 [], and the scores."""
        scores = self.scores(images)
        return F.cross_entropy(scores.float(), shares), scores

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = self.prepared(batch)
        shares = F.one_hot(batch.labels, self.num_classes).float()
        if self.mixup_alpha is not None:
            kept = mixup_share(self.mixup_alpha, progress.seed, "mixup", progress.step)
            images, shares = mix_up(images, shares, kept)
        loss, scores = self.loss(images, shares)
        return StepOutput(loss, {"accuracy": (scores.argmax(1) == shares.argmax(1)).float().mean().detach()})


class PatchwiseStage(Stage):
    """Learns the class that most pixels of a patch have from its token; one linear layer for all patches.

    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (spatially aligned objective).
    """

    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N K"]:
        scores: Tensor = self.head(self.encoder(images).patches)
        return scores

    def labels_of(self, batch: Batch) -> Int64[Tensor, "B N"]:
        return self.patch_labels(batch.extras["mask"])

    def patch_labels(self, masks: Integer[Tensor, "B H W"]) -> Int64[Tensor, "B N"]:
        """The class that prevails in the pixels under each token, -1 where all of them are to be ignored."""
        return majority_labels(patch_histogram(masks, self.encoder.stride, self.num_classes))

    def loss(self, images: Float[Tensor, "B 3 H W"], labels: Int64[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, the mean over all patches with a label, float32 [], and the scores."""
        scores = self.scores(images)
        total = F.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1), scores

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        labels = self.labels_of(batch)
        loss, scores = self.loss(self.prepared(batch), labels)
        known = (labels >= 0).sum().clamp(min=1)
        return StepOutput(loss, {"accuracy": ((scores.argmax(-1) == labels).sum() / known).detach()})


def build_stage(subject: Subject, config: IntermediateConfig, num_classes: int, seed: int) -> Stage:
    """A copy of the encoder, with a fresh head for what the stage learns."""
    mean, std = subject.normalisation(config.normalise)
    if config.objective == "patchwise":
        return PatchwiseStage(copy.deepcopy(subject.encoder), num_classes, mean, std, seed)
    return ClassificationStage(with_class_token(subject.encoder), num_classes, mean, std, seed, config.mixup_alpha)


def with_class_token(encoder: Encoder) -> Encoder:
    """A copy that puts its class token before the patches, where it has one that pre-training didn't use (ViNy)."""
    if not isinstance(encoder, ViNyEncoder) or encoder.has_class_token:
        return copy.deepcopy(encoder)
    return _viny(encoder, class_token=True)


def _viny(encoder: ViNyEncoder, class_token: bool) -> ViNyEncoder:
    """A copy with the class token in use or not; it is among the weights in any case."""
    made = ViNyEncoder(copy.deepcopy(encoder.trunk), encoder.image_size, class_token, encoder.position_rule)
    made.config = encoder.config.model_copy(update={"class_token": class_token})
    return made


def as_before(trained: Encoder, before: Encoder) -> Encoder:
    """The trained encoder, its class token out of use again where it was."""
    if isinstance(trained, ViNyEncoder) and not before.has_class_token:
        trained = _viny(trained, class_token=False)
        trained.config = before.config
    return trained.eval()


def summary_words(encoder: Encoder) -> str:
    """What `Encoder.summary` reads, in words."""
    has_token = encoder.has_class_token or isinstance(encoder, ViNyEncoder)
    return "class token" if has_token else "mean of the patch tokens"

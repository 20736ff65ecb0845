"""The encoder and its baselines, each trained in the same way on the same images."""

import copy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from halfseen.backbones.base import Encoder
from halfseen.data.resident import Resident, ResidentLoader
from halfseen.data.sampler import StepSampler
from halfseen.engine.checkpoint import Identity
from halfseen.evaluation.features import draw_subset
from halfseen.evaluation.resident_training import logged_curves, train_resident, weights_fingerprint
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.models import (
    CachedTokens,
    EncoderTokens,
    KnnSegmenter,
    LinearSegmenter,
    PatchTokens,
    RawPatches,
    SegmentationModel,
    Segmenter,
)
from halfseen.evaluation.segmentation.task import FORWARD_IMAGES, Task, augmentation_of
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.patch_labels import majority_labels, patch_histogram
from halfseen.ops.randomness import stream_seed

TRAINING = "training"
"""Sub-folder of a segmentation's checkpoints, one folder for each contestant."""


class Rivals:
    """The encoder and its baselines, trained in the same way; `data` carries frozen augmentation already."""

    def __init__(
        self,
        subject: Subject,
        task: Task,
        config: SegmentationConfig,
        data: Resident,
        folder: Path,
        seed: int,
        resume: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self.subject, self.task, self.config, self.data = subject, task, config, data
        self.folder, self.seed, self.resume, self.on_progress = folder, seed, resume, on_progress
        self.mean, self.std = subject.normalisation(config.normalise)

    def all(self) -> dict[str, Segmenter]:
        """By name, as results name them."""
        encoders = {"encoder": self.subject.encoder, **self.subject.others}
        if self.subject.random_encoder is not None:
            encoders["random_init"] = self.subject.random_encoder()
        if self.config.method == "fine-tune":
            return {name: self._fine_tuned(name, encoder) for name, encoder in encoders.items()}
        found: dict[str, PatchTokens] = {
            name: EncoderTokens(encoder, self.mean, self.std, self.subject.device, self.subject.precision)
            for name, encoder in encoders.items()
        }
        found["raw_pixels"] = RawPatches(self.subject.encoder.stride)
        learn = self._linear if self.config.method == "linear" else self._knn
        return {name: learn(name, tokens) for name, tokens in found.items()}

    def curves(self) -> dict[str, list[float]]:
        """Epochs and losses of the encoder's training."""
        return (
            {} if self.config.method == "knn" else logged_curves(self.folder / TRAINING / "encoder", ("epoch", "loss"))
        )

    @property
    def _sampler(self) -> StepSampler:
        count = len(self.data.labels)
        order = stream_seed(self.seed, "segmentation order")
        return StepSampler(count, min(self.config.batch_size, count), order, drop_last=False)

    def _fine_tuned(self, name: str, encoder: Encoder) -> SegmentationModel:
        model = SegmentationModel(
            copy.deepcopy(encoder),
            len(self.task.names),
            mean=self.mean,
            std=self.std,
            class_softmax=self.config.class_softmax,
            seed=self.seed,
        )
        fresh = None if self.config.freeze_augmentation else augmentation_of(self.config)
        loader = ResidentLoader(self.data, self._sampler, stream_seed(self.seed, "segmentation views"), fresh)
        self._train(name, model, loader, weights_fingerprint(encoder))
        return model

    def _linear(self, name: str, tokens: PatchTokens) -> LinearSegmenter:
        cached = self._tokens(name, tokens)
        assert self.data.masks is not None
        patch_size = self.subject.encoder.stride
        model = LinearSegmenter(tokens, cached.shape[-1], len(self.task.names), patch_size, self.seed)
        self._train(name, model, CachedTokens(cached, self.data.masks, self._sampler), _token_key(tokens))
        return model

    def _knn(self, name: str, tokens: PatchTokens) -> KnnSegmenter:
        config, K = self.config, len(self.task.names)
        assert self.data.masks is not None
        labels = majority_labels(patch_histogram(self.data.masks, self.subject.encoder.stride, K)).flatten()
        known = torch.nonzero(labels >= 0).flatten()
        voting = known[
            torch.from_numpy(draw_subset(len(known), config.max_patches, self.seed, "voting patches")).to(known.device)
        ]
        voters = self._tokens(name, tokens).flatten(0, 1)[voting]
        return KnnSegmenter(tokens, voters, labels[voting], K, config.k, config.temperature)

    def _tokens(self, name: str, tokens: PatchTokens) -> Float[Tensor, "n N D"]:
        """Tokens of all training images, computed once."""
        parts = []
        for at in range(0, len(self.data.labels), FORWARD_IMAGES):
            parts.append(tokens(self.data.images[at : at + FORWARD_IMAGES]))
            if self.on_progress is not None:
                done = min(at + FORWARD_IMAGES, len(self.data.labels))
                self.on_progress(f"tokens of training images: {name}", done, len(self.data.labels))
        return torch.cat(parts)

    def _train(
        self,
        name: str,
        model: SegmentationModel | LinearSegmenter,
        loader: ResidentLoader | CachedTokens,
        start: str,
    ) -> None:
        settings = self.config.model_dump(mode="json", exclude={"protocol"})
        settings |= {
            "seed": self.seed,
            "images": self.task.train.source.fingerprint(),
            "start": start,
            "image_size": self.subject.size,
        }
        train_resident(
            model,
            loader,
            self.config.training(loader.steps_per_epoch, len(self.data.labels)),
            self.subject,
            Identity(f"segmentation {self.config.method} {name}", settings),
            self.folder / TRAINING / name,
            seed=self.seed,
            resume=self.resume,
            words=f"training: {name}",
            on_progress=self.on_progress,
        )


def _token_key(tokens: PatchTokens) -> str:
    return weights_fingerprint(tokens.encoder) if isinstance(tokens, EncoderTokens) else "raw pixels"

"""One encoder on its images: what all passes over it share."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from halfseen.analysis.analyze_config import AnalysisName, AnalyzeConfig
from halfseen.analysis.findings import AnalyzedEncoder, EncoderAnalysis
from halfseen.analysis.watchers.base import ImageFeature
from halfseen.analysis.watchers.features import RankWatcher
from halfseen.analysis.watchers.layers import AlignmentWatcher
from halfseen.backbones.base import Features
from halfseen.data.sources import Source
from halfseen.ops.pixels import denormalise, normalise
from halfseen.ops.precision import Precision, autocast

OnProgress = Callable[[str, int, int], None]


class Look:
    """An encoder, the images it is looked at with, and what has been found so far.

    Args:
        wanted: rows of the source.
        tell: called with (what is being done, images done, all).
    """

    def __init__(
        self,
        subject: AnalyzedEncoder,
        source: Source,
        wanted: np.ndarray,
        config: AnalyzeConfig,
        only: Sequence[AnalysisName],
        seed: int,
        device: str,
        precision: Precision,
        workers: int,
        tell: OnProgress,
    ) -> None:
        self.subject, self.source, self.wanted, self.config = subject, source, wanted, config
        self.only, self.seed, self.device, self.precision = only, seed, device, precision
        self.workers, self.tell = workers, tell
        self.encoder = subject.encoder.to(device).eval()
        self._scale = subject.mean, subject.std
        self.found = EncoderAnalysis(subject)
        self.alignment: AlignmentWatcher | None = None
        self.labels = torch.empty(0, dtype=torch.int64)
        self.rank = RankWatcher(config.shown_images, config.neighbours, self.encoder.has_class_token)
        self.layer_means = AlignmentWatcher(config.token_rows, seed)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward passes."""
        return autocast(torch.device(self.device), self.precision)

    def normalised(self, views: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """Pixels as the encoder takes them, on its device."""
        return normalise(views.to(self.device), *self._scale)

    def pixels(self, normalised: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """The other way, in [0, 1] for what came from there."""
        return denormalise(normalised, *self._scale)

    def encode(self, images: Tensor, visible_ids: Tensor | None = None) -> Features:
        """Normalised images through the encoder, some patches dropped where `visible_ids` says so."""
        with self.autocast():
            features: Features = self.encoder(images, visible_ids=visible_ids)
        return features

    @property
    def feature(self) -> ImageFeature:
        """What stands for a whole image."""
        return "cls" if self.config.feature == "cls" and self.encoder.has_class_token else "mean"

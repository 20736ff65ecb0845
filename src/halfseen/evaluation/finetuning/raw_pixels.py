"""The cheap baseline of a fine-tuning: a linear classifier on raw pixels of the same images."""

import numpy as np
import torch

from halfseen.data.sources import Source
from halfseen.evaluation.features import FeatureSet, RawPixels, draw_subset, extract_features
from halfseen.evaluation.finetuning.config import FinetuneConfig
from halfseen.evaluation.finetuning.task import Task
from halfseen.evaluation.finetuning.training import Scored
from halfseen.evaluation.linear.config import LinearConfig
from halfseen.evaluation.linear.probes import linear_probe

MOST_FOR_PIXELS = 20_000
"""Training images whose raw pixels the cheap baseline looks at, at most."""


def pixel_scores(task: Task, config: FinetuneConfig) -> Scored:
    """A linear classifier on raw pixels, its learning rate chosen on held-out training images where there are any."""
    view = config.view
    few = draw_subset(len(task.chosen), MOST_FOR_PIXELS, config.seed, "pixels")

    def pixels(source: Source, rows: np.ndarray) -> FeatureSet:
        found = extract_features(
            {"raw_pixels": RawPixels()},
            source,
            rows,
            image_size=config.data.image_size,
            resize=view.resize,
            crop_ratio=view.crop_ratio,
            interpolation=view.interpolation,
            antialias=view.antialias,
            workers=config.runtime.workers,
        )
        return found["raw_pixels"]

    known, asked = pixels(task.chosen, few), pixels(task.test.source, task.test.rows)
    label_of = dict(zip(task.test.rows.tolist(), task.test.labels.tolist(), strict=True))
    labels = torch.tensor([label_of[row] for row in asked.indices.tolist()])
    single = int(torch.bincount(known.labels).max()) < 2
    settings = LinearConfig.model_validate({"lr": (0.1,)} if single else {})
    probe = linear_probe(
        known.features,
        known.labels,
        asked.features,
        labels,
        settings,
        num_classes=len(task.class_names),
        seed=config.seed,
    )
    order = asked.indices.argsort()
    nothing = torch.zeros(len(order), dtype=torch.float64)
    return Scored(
        asked.indices[order], labels[order], probe.rank[order], probe.predictions[order], nothing, asked.skipped
    )

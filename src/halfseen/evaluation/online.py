"""k-NN while a run is under way: a few labelled images, every encoder of the run, nothing of the training disturbed."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfseen.backbones.base import Encoder
from halfseen.data.sources import Source
from halfseen.evaluation.features import (
    EncoderFeatures,
    Extractor,
    FeatureSet,
    draw_subset,
    extract_features,
)
from halfseen.evaluation.knn.protocol import HEADLINE_K
from halfseen.evaluation.knn.votes import weighted_knn
from halfseen.evaluation.results import EvaluateConfig
from halfseen.ops.modes import keeping_modes
from halfseen.ops.precision import Precision


class OnlineSplits(NamedTuple):
    """Where the images come from; without `test` every image is classified by all the others."""

    train: Source
    test: Source | None


def online_knn(
    encoders: Mapping[str, Encoder],
    splits: OnlineSplits,
    config: EvaluateConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    seed: int,
    device: str,
    precision: Precision,
) -> Callable[[], dict[str, float]]:
    """A function that measures the encoders as they then are.

    It gives top-1 accuracy in percent by role, `{"knn_student": 61.2}`, of weighted k-NN with the k nearest to 20 and
    the first temperature of the settings. The images are a fixed, seeded choice of `online_max_train` and
    `online_max_test` labelled ones. No random number is drawn and each encoder is left in the mode it was in, so the
    run's weights are the same with and without it.

    Raises:
        DataError: (when called) fewer than two classes among the images.
    """
    rows = _labelled_rows(splits.train, config.online_max_train, seed, "train")
    test_rows = None if splits.test is None else _labelled_rows(splits.test, config.online_max_test, seed, "test")
    voters = len(rows) - (test_rows is None)
    usable = [k for k in config.k if k <= voters] or [max(1, voters)]
    k = min(usable, key=lambda size: abs(size - HEADLINE_K))

    def measure() -> dict[str, float]:
        def features(source: Source, chosen: np.ndarray) -> dict[str, FeatureSet]:
            extractors: dict[str, Extractor] = {
                role: EncoderFeatures(encoder, mean, std, feature=config.feature, device=device, precision=precision)
                for role, encoder in encoders.items()
            }
            return extract_features(
                extractors,
                source,
                chosen,
                image_size=image_size,
                resize=config.resize,
                crop_ratio=config.crop_ratio,
                batch_size=config.batch_size,
            )

        with keeping_modes(*encoders.values()):
            train = features(splits.train, rows)
            test = None if splits.test is None or test_rows is None else features(splits.test, test_rows)
        scores: dict[str, float] = {}
        for role, voting in train.items():
            queries = None if test is None else test[role]
            score = weighted_knn(
                voting.features,
                voting.labels,
                None if queries is None else queries.features,
                None if queries is None else queries.labels,
                k=(k,),
                temperature=config.temperature[:1],
            )[0]
            scores[f"knn_{role}"] = round(score.top(1), 4)
        return scores

    return measure


def _labelled_rows(source: Source, most: int, seed: int, split: str) -> np.ndarray:
    labelled = np.flatnonzero(np.asarray(source.labels) >= 0)
    chosen: np.ndarray = labelled[draw_subset(len(labelled), most, seed, "online", split)]
    return chosen

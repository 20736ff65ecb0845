"""Clustering as iBOT reports it: do groups that were found without labels agree with the classes?

Frozen features are grouped by k-means, several times with other starts; or, in iBOT's own form, an image's cluster is
the largest output of the head for class tokens. Labels are looked at only to compare, and to know how many classes
there are.
"""

import importlib.metadata
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from halfseen.errors import DataError
from halfseen.evaluation.features import RAW_PIXEL_SIDE, draw_subset, extract_features, feature_sentence
from halfseen.evaluation.metrics import ClusterScores, best_one_to_one, cluster_scores, wilson_interval
from halfseen.evaluation.results import FeatureKind, Result
from halfseen.evaluation.statements import Split, compare, confusion_of, per_class, what_was_seen
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.idle import Need, refuse_idle
from halfseen.ops.randomness import stream_seed

MINIBATCH_SIZE = 4096
"""Images of a step of scikit-learn's MiniBatchKMeans."""

Head = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B K"]]
"""A head for class tokens: an encoder's summaries of images (see `Encoder.summary`) to K outputs, on the CPU."""
HEAD_ROWS = 1024


class ClusterConfig(BaseModel):
    """How images are grouped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["features", "head"] = Field(
        "features",
        description="What makes the clusters: features (k-means on frozen features) or head (each image belongs to the "
        "largest output of the run's own head for class tokens, as iBOT does).",
    )
    clusters: int | None = Field(
        None, ge=2, description="Clusters of k-means; null = as many as there are classes, which an accuracy needs."
    )
    minibatch_above: int = Field(
        100_000,
        ge=1,
        description="More images than this are grouped by samples of 4096 at a time (scikit-learn's MiniBatchKMeans), "
        "fewer all at once.",
    )
    runs: int = Field(5, ge=1, description="How many times k-means starts anew; means and spread are over these.")
    restarts: int = Field(
        1, ge=1, description="Starts within a run, of which the tightest grouping is kept (scikit-learn's n_init)."
    )
    max_iterations: int = Field(300, ge=1, description="Most passes of one start over the images.")
    normalize: bool = Field(
        True, description="Scale each feature vector to length 1 first, so that angles count (true/false)."
    )
    feature: FeatureKind = Field(
        "mean", description="Which tokens make the feature vector; the words are those of evaluate.feature."
    )
    last_blocks: int = Field(1, ge=1, description="Blocks whose tokens are concatenated, the last ones.")
    max_images: int | None = Field(None, ge=2, description="Most images that are grouped, a seeded choice; null = all.")
    resize: Literal["crop", "squash"] = Field(
        "crop", description="How an image becomes square: crop (shorter side resized, centre cut out) or squash."
    )
    crop_ratio: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Side of the centre crop over the resized shorter side, no unit; 224/256 for iBOT.",
    )
    batch_size: int = Field(128, ge=1, description="Images per forward pass of the frozen encoder.")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "ClusterConfig":
        chosen = self.source == "features"
        refuse_idle(self, [Need(key, chosen, "source=head") for key in ("feature", "last_blocks")])
        return self


class _Grouping(NamedTuple):
    """One contestant's clusterings.

    Attributes:
        scores: of each run.
        mapped: of each run the class of every image under the best one-to-one map; None where clusters outnumber
            classes.
        used: clusters that hold an image, in the first run.
    """

    scores: list[ClusterScores]
    mapped: list[Int64[np.ndarray, " n"]] | None
    used: int


def cluster_protocol(
    subject: Subject,
    data: Split,
    config: ClusterConfig,
    *,
    heads: Mapping[str, Head] | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Result:
    """How well clusters agree with classes: of the encoder, of the same network untrained, of raw pixels.

    Args:
        subject: what is measured.
        data: the images that are grouped, those without a label left out; no other images play a part.
        heads: for `source="head"`: the head of "encoder", of each of the subject's other roles, and of "random_init"
            where the subject has one. Raw pixels have none and are grouped by k-means.
        seed: draws the starts of k-means and the images of `max_images`.
    Returns:
        A result whose metrics are percent: `nmi`, `ari`, `fmi`, and `acc` where there are no more clusters than
        classes; each with `_std` over the runs where there are several.
    Raises:
        DataError: fewer than two classes, fewer images than clusters, features that are not finite.
    Source: iBOT, arXiv 2111.07832 (unsupervised classification).
    """
    started = time.monotonic()
    labels = np.asarray(data.source.labels)
    known = np.flatnonzero(labels >= 0)
    present = np.unique(labels[known])
    if len(present) < 2:
        raise DataError(
            f"clustering: the images of '{data.source.name}' have {len(present)} classes; clusters are compared with "
            "at least 2. Sort the images into one folder per class, or give a manifest with a column 'label'."
        )
    clusters = len(present) if config.clusters is None else config.clusters
    rows = known[draw_subset(len(known), config.max_images, seed, "evaluate", data.name)]
    if len(rows) < clusters:
        raise DataError(
            f"clustering: {clusters} clusters of {len(rows)} labelled images can't be made. Choose fewer clusters or "
            "give more images."
        )
    by_head = config.source == "head"
    feature: FeatureKind = config.feature
    if by_head:
        feature = "cls" if subject.encoder.has_class_token else "mean"
    extractors = subject.extractors(feature, 1 if by_head else config.last_blocks)
    found = extract_features(
        extractors,
        data.source,
        rows,
        image_size=subject.size,
        resize=config.resize,
        crop_ratio=config.crop_ratio,
        batch_size=config.batch_size,
        workers=subject.workers,
        on_progress=None if on_progress is None else partial(on_progress, "features"),
    )
    true = found["encoder"].labels.numpy()
    groupings: dict[str, _Grouping] = {}
    for name, features in found.items():
        if not bool(torch.isfinite(features.features).all()):
            raise DataError(f"clustering: features of '{name}' are not finite numbers, so they can't be compared.")
        head = None if heads is None or not by_head else heads.get(name)
        if head is not None:
            groupings[name] = _judge([_largest(head, features.features)], true)
        else:
            groupings[name] = _judge(_k_means(features.features, clusters, config, seed), true)
        if on_progress is not None:
            on_progress("clusters", len(groupings), len(found))

    own = groupings["encoder"]
    right = {
        name: torch.from_numpy(np.mean([mapped == true for mapped in each.mapped], axis=0))
        for name, each in groupings.items()
        if each.mapped is not None
    }
    class_names = list(data.source.class_names) or [str(number) for number in range(int(labels.max()) + 1)]
    counted = torch.from_numpy(true)
    whole = set(right) == set(groupings)
    metrics = {name: _metrics(each) for name, each in groupings.items()}
    notes = [*subject.notes, *_about_clusters(groupings, config, clusters, len(present))]
    if len(known) < len(labels):
        notes.append(f"{len(labels) - len(known)} images without a label were left out.")
    notes += compare(right) if whole else []
    notes += what_was_seen(data, None, subject)
    return Result(
        protocol="ibot-cluster" if by_head else "cluster",
        protocol_text=_protocol_text(config, clusters, len(true) > config.minibatch_above),
        settings={
            "source": config.source,
            "clusters": clusters,
            "runs": config.runs,
            "restarts": config.restarts,
            "max_iterations": config.max_iterations,
            "minibatch": len(true) > config.minibatch_above,
            "normalize": config.normalize,
            "feature": feature,
            "last_blocks": config.last_blocks,
            "image_size": subject.size,
            "resize": config.resize,
            "crop_ratio": config.crop_ratio,
            "raw_pixels_side": min(subject.size, RAW_PIXEL_SIDE),
            "precision": subject.precision,
        },
        headline={"clusters": own.used, "runs": len(own.scores)},
        primary="nmi" if own.mapped is None else "acc",
        features=feature_sentence(feature, 1 if by_head else config.last_blocks),
        feature_dim=found["encoder"].features.shape[1],
        role=subject.role,
        encoder=subject.origin,
        data={"test": data.used(found["encoder"])},
        split=data.name,
        seed=seed,
        n=len(true),
        n_train=0,
        num_classes=len(class_names),
        metrics=metrics["encoder"],
        baselines={name: each for name, each in metrics.items() if name != "encoder"},
        confidence_interval={
            name: wilson_interval(round(float(share.sum())), len(share)) for name, share in right.items()
        }
        if own.mapped is not None
        else {},
        confidence_text=(
            "95 % Wilson interval of acc over the images, the clusters being given. It covers neither other starts of "
            "k-means (their standard deviation stands after ±) nor other seeds of training."
        )
        if own.mapped is not None
        else "",
        per_class=per_class(class_names, counted, right) if whole else [],
        confusion=None
        if own.mapped is None
        else confusion_of(counted, torch.from_numpy(own.mapped[0]), len(class_names)),
        notes=notes,
        seconds=round(time.monotonic() - started, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        curves={
            f"{metric}_{name}": [round(100 * getattr(score, metric), 4) for score in each.scores]
            for name, each in groupings.items()
            for metric in ("nmi", "ari", "fmi")
        },
    )


def _k_means(
    features: Float[Tensor, "n D"], clusters: int, config: ClusterConfig, seed: int
) -> list[Int64[np.ndarray, " n"]]:
    """The cluster of each row, once for every run."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = (F.normalize(features, dim=1) if config.normalize else features).numpy()
    found = []
    for run in range(config.runs):
        state = stream_seed(seed, "k-means", run) % 2**32
        few = KMeans(clusters, n_init=config.restarts, max_iter=config.max_iterations, random_state=state)
        many = MiniBatchKMeans(
            clusters,
            n_init=config.restarts,
            max_iter=config.max_iterations,
            batch_size=MINIBATCH_SIZE,
            random_state=state,
        )
        with warnings.catch_warnings():
            # Fewer different rows than clusters: the result counts the clusters that are used, and says so.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append((many if len(rows) > config.minibatch_above else few).fit_predict(rows).astype(np.int64))
    return found


@torch.no_grad()
def _largest(head: Head, features: Float[Tensor, "n D"]) -> Int64[np.ndarray, " n"]:
    chosen: np.ndarray = torch.cat([head(rows).argmax(dim=1) for rows in torch.split(features, HEAD_ROWS)]).numpy()
    return chosen


def _judge(clusterings: Sequence[Int64[np.ndarray, " n"]], labels: Int64[np.ndarray, " n"]) -> _Grouping:
    mapped = [best_one_to_one(labels, each) for each in clusterings]
    fitting = [each for each in mapped if each is not None]
    return _Grouping(
        [cluster_scores(labels, each) for each in clusterings],
        fitting if len(fitting) == len(mapped) else None,
        len(np.unique(clusterings[0])),
    )


def _metrics(grouping: _Grouping) -> dict[str, float]:
    found: dict[str, float] = {}

    def add(key: str, values: Sequence[float]) -> None:
        found[key] = round(100 * statistics.fmean(values), 4)
        if len(values) > 1:
            found[f"{key}_std"] = round(100 * statistics.stdev(values), 4)

    add("nmi", [score.nmi for score in grouping.scores])
    add("ari", [score.ari for score in grouping.scores])
    add("fmi", [score.fmi for score in grouping.scores])
    accuracies = [score.accuracy for score in grouping.scores if score.accuracy is not None]
    if grouping.mapped is not None:
        add("acc", accuracies)
    return found


def _about_clusters(
    groupings: Mapping[str, _Grouping], config: ClusterConfig, clusters: int, num_classes: int
) -> list[str]:
    """What to know about the number of clusters."""
    sentences = []
    if config.clusters is None and config.source == "features":
        sentences.append(f"There are as many clusters as classes, {clusters}: this much is taken from the labels.")
    own = groupings["encoder"]
    if config.source == "head":
        sentences.append(f"The head uses {own.used} of its outputs for these images.")
        sentences.append(f"Raw pixels have no head: they are grouped by k-means into {clusters} clusters.")
    if own.mapped is None:
        sentences.append(
            f"More clusters ({own.used}) than classes ({num_classes}): there is no one-to-one map, so no accuracy; and "
            "NMI grows with the number of clusters."
        )
    short = [name for name, each in groupings.items() if each.used < clusters and (config.source != "head")]
    if short:
        sentences.append(
            f"Careful: clusters stayed empty for {', '.join(short)}; there are too few different features."
        )
    return sentences


def _protocol_text(config: ClusterConfig, clusters: int, minibatch: bool) -> str:
    if config.source == "head":
        how = "Each image belongs to the largest output of the pre-trained head for class tokens"
    else:
        kind = "MiniBatchKMeans" if minibatch else "KMeans"
        prepared = "scaled to length 1, " if config.normalize else ""
        how = (
            f"K-means (scikit-learn's {kind}, {clusters} clusters, {config.runs} runs of {config.restarts} starts) on "
            f"frozen features, {prepared}of the images themselves"
        )
    return (
        f"{how}. Labels are used only to compare: NMI (arithmetic mean of the entropies), ARI, Fowlkes-Mallows, and "
        "accuracy under the best one-to-one map of clusters to classes."
    )

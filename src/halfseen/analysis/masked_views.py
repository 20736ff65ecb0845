"""What an encoder keeps of an image when most patches are dropped: agreement, neighbours of masked queries, LiDAR.

This is retrieval: it shows which whole images lie near a half-seen one. Nothing is generated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.randomness import torch_generator


def draw_visible(images: int, patches: int, mask_ratio: float, seed: int, draw: int) -> Int64[Tensor, "B n"]:
    """Patches that stay, floor(N (1 - ratio)) of each image, by a permutation of the image's own.

    Args:
        images: how many; the first ones get the same patches however many follow.
        mask_ratio: share that is dropped, in [0, 1).
        draw: tells several masks of one image apart; a higher ratio keeps part of what a lower one keeps.
    Raises:
        ConfigError: a ratio that leaves no patch.
    """
    keep = int(patches * (1.0 - mask_ratio))
    if keep < 1:
        raise ConfigError(f"mask_ratios: {mask_ratio:g} of {patches} patches leaves none to look at. Lower it.")
    generators = (torch_generator(seed, "masked views", image, draw) for image in range(images))
    return torch.stack([torch.randperm(patches, generator=generator)[:keep] for generator in generators])


def agreement(masked: Float[Tensor, "n D"], whole: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """Cosine similarity of each masked image's features to those of the whole image.

    Source: Masked Siamese Networks, arXiv 2204.07141, invariance to masking.
    """
    return F.cosine_similarity(masked.float(), whole.float(), dim=1)


class Neighbours(NamedTuple):
    """Whole images near masked ones.

    Attributes:
        nearest: int64 [m, k], places in the gallery, the query's own image left out.
        similarity: float32 [m, k].
        own_rank: int64 [m], how many other images are nearer to the masked query than its own whole version; 0 = none.
        precision: float32 [m], share of the k neighbours of the query's class; NaN where it has no label.
    """

    nearest: Tensor
    similarity: Tensor
    own_rank: Tensor
    precision: Tensor


def retrieve(
    queries: Float[Tensor, "m D"],
    gallery: Float[Tensor, "n D"],
    own: Int64[Tensor, " m"],
    labels: Int64[Tensor, " n"],
    k: int,
) -> Neighbours:
    """The nearest whole images of masked queries, by cosine similarity.

    Args:
        own: each query's own image in the gallery.
        labels: class of each image of the gallery, -1 = none.
        k: neighbours; fewer where the gallery is smaller.
    Raises:
        ShapeError: a gallery of one image.
    """
    if len(gallery) < 2:
        raise ShapeError("retrieval of masked queries needs at least two images.")
    near = F.normalize(queries.float(), dim=1) @ F.normalize(gallery.float(), dim=1).T
    of_own = near.gather(1, own[:, None])
    rank = (near > of_own).sum(dim=1)
    near = near.scatter(1, own[:, None], -torch.inf)
    similarity, nearest = near.topk(min(k, len(gallery) - 1), dim=1)
    wanted = labels[own]
    same = (labels[nearest] == wanted[:, None]).float().mean(dim=1)
    return Neighbours(nearest, similarity, rank, torch.where(wanted >= 0, same, torch.nan))


def shared_neighbours(nearest: Sequence[Int64[Tensor, "m k"]]) -> Float[Tensor, " m"]:
    """Share of each query's neighbours, over several masks, that all masks agree on; 1 = the mask doesn't matter."""
    common = nearest[0]
    kept = torch.ones_like(common, dtype=torch.bool)
    for other in nearest[1:]:
        kept &= (common[:, :, None] == other[:, None]).any(dim=2)
    return kept.float().mean(dim=1)


def learned_half_seen(
    queries: Sequence[Float[Tensor, "m D"]], gallery: Float[Tensor, "n D"], labels: Int64[Tensor, " n"]
) -> float:
    """Accuracy on whole images of a classifier that has learned half-seen ones only.

    Logistic regression on standardised features with scikit-learn's own penalty; the protocol that MSN's numbers come
    from is `halfseen logistic --mask`.

    Args:
        queries: features of the first m images of the gallery, half seen; one matrix for each mask.
        gallery: of the whole images; those behind the first m are classified.
        labels: class of each image of the gallery; those with -1 don't count.
    Returns:
        in [0, 1].
    Raises:
        ShapeError: fewer than two classes to learn, or no other image with a label.
    Source: Masked Siamese Networks, arXiv 2204.07141, invariance to masking.
    """
    count = len(queries[0])
    learned, tested = labels[:count], labels[count:]
    if len(torch.unique(learned[learned >= 0])) < 2 or not (tested >= 0).any():
        raise ShapeError(
            "learning from half-seen images needs labels of at least two classes among masked_images, and other images "
            f"with labels to classify: got {int((learned >= 0).sum())} and {int((tested >= 0).sum())} images with one."
        )
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    rows = torch.cat([query[learned >= 0] for query in queries]).double().numpy()
    classifier.fit(rows, learned[learned >= 0].repeat(len(queries)).numpy())
    found = classifier.predict(gallery[count:][tested >= 0].double().numpy())
    return float((found == tested[tested >= 0].numpy()).mean())

"""What the encoder gives in the end: the spread of its tokens, the rank of its features, the classes of its patches."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from halfseen.analysis.geometry import TokenGeometry, probe_accuracy, train_patch_probe
from halfseen.analysis.masked_views import retrieve
from halfseen.analysis.watchers.base import HELD_OUT, Arrays, Found, ImageFeature, Place, Rows, Watcher, image_feature
from halfseen.backbones.base import BlockView, Features
from halfseen.errors import ShapeError
from halfseen.ops.effective_rank import alpha_req, rankme
from halfseen.ops.randomness import torch_generator


class GeometryWatcher(Watcher):
    """Variance within and across images and cosine similarity against distance, after the final norm."""

    def __init__(self) -> None:
        self._geometry: TokenGeometry | None = None

    def block(self, view: BlockView, place: Place) -> None:
        pass

    def output(self, features: Features, place: Place) -> None:
        if self._geometry is None:
            self._geometry = TokenGeometry(features.grid)
        self._geometry.update(features.patches)

    def result(self) -> Found:
        if self._geometry is None:
            raise ShapeError("patch geometry: no images were given.")
        found = self._geometry.result()
        arrays: Arrays = {"distances": found.distances.numpy(), "cosines": found.cosines.numpy()}
        numbers = {
            "variance_total": found.total,
            "variance_within": found.within,
            "variance_across": found.across,
            "cosine_at_1": float(found.cosines[0]),
            "cosine_least": float(found.cosines.min()),
        }
        notes = () if found.num_images > 1 else ("One image has no variance across images.",)
        return Found(arrays, numbers, notes)


class RankWatcher(Watcher):
    """How many directions the images' features use: RankMe and alpha-ReQ of mean tokens and class tokens.

    With them the nearest other images of the first ones. The features themselves stay at hand: other analyses compare
    theirs with them.

    Args:
        shown: of how many images neighbours are kept.
        neighbours: how many of each, by cosine similarity of the mean tokens.
        class_token: whether the first prefix token is one, not a register.
    """

    def __init__(self, shown: int, neighbours: int, class_token: bool) -> None:
        self.shown, self.neighbours = shown, neighbours
        self.kinds: tuple[ImageFeature, ...] = ("mean", "cls") if class_token else ("mean",)
        self._features = Rows()

    def block(self, view: BlockView, place: Place) -> None:
        pass

    def output(self, features: Features, place: Place) -> None:
        for kind in self.kinds:
            self._features.put(kind, image_feature(features, kind), place)

    def features(self, kind: ImageFeature) -> Float[Tensor, "n D"]:
        """Every image's feature vector after the final norm."""
        return self._features[kind]

    def result(self) -> Found:
        arrays: Arrays = {}
        numbers: dict[str, float] = {}
        for kind in self.kinds:
            rows = self.features(kind)
            if len(rows) < 2:
                raise ShapeError("effective ranks need at least two images.")
            numbers |= {f"rankme_{kind}": rankme(rows), f"alpha_req_{kind}": alpha_req(rows)}
            arrays[f"eigenvalues_{kind}"] = _eigenvalues(rows)
        n, D = rows.shape
        means = self.features("mean")
        own = torch.arange(min(self.shown, n))
        near = retrieve(means[own], means, own, torch.full((n,), -1), self.neighbours)
        arrays |= {"nearest": near.nearest.numpy(), "nearest_similarity": near.similarity.numpy()}
        note = f"RankMe is at most {min(n, D)} here ({n} images, {D} features): compare equal numbers of images only."
        return Found(arrays, numbers, (note,))


def _eigenvalues(rows: Tensor) -> NDArray[np.generic]:
    """Of the rows' covariance, falling."""
    centred = rows.double() - rows.double().mean(dim=0)
    values = torch.linalg.svdvals(centred).square() / (len(centred) - 1)
    found: NDArray[np.generic] = values.numpy()
    return found


PROBE_BATCH = 64


class ProbeWatcher(Watcher):
    """A linear classifier of single patch tokens, trained on the classes that prevail in the patches' pixels.

    Args:
        labels: int64 [n, N], see `ops.patch_labels.majority_labels`; -1 = none.
        num_classes: classes of pixels.
        epochs, lr: of the training.
        seed: draws the first weights.
    """

    def __init__(self, labels: Int64[Tensor, "n N"], num_classes: int, epochs: int, lr: float, seed: int) -> None:
        self.labels, self.num_classes = labels, num_classes
        self.epochs, self.lr, self.seed = epochs, lr, seed
        self._tokens = Rows()

    def block(self, view: BlockView, place: Place) -> None:
        pass

    def output(self, features: Features, place: Place) -> None:
        self._tokens.put("patches", features.patches.float(), place)

    @torch.enable_grad()
    def result(self) -> Found:
        tokens = self._tokens["patches"]
        labels = self.labels[: len(tokens)]
        known = labels[labels >= 0]
        trace = train_patch_probe(self._probe(tokens), [_in_batches(tokens, labels)] * self.epochs, self.lr)
        arrays: Arrays = {"losses": np.asarray(trace.losses), "accuracies": np.asarray(trace.accuracies)}
        numbers = {
            "probe_train": trace.train_accuracy,
            "probe_most_frequent": float(torch.bincount(known).max() / len(known)),
        }
        held_out = len(tokens) // HELD_OUT
        if held_out == 0:
            return Found(arrays, numbers, (f"A held-out patch probe needs at least {HELD_OUT} images.",))
        probe = self._probe(tokens)
        train_patch_probe(probe, [_in_batches(tokens[:-held_out], labels[:-held_out])] * self.epochs, self.lr)
        numbers["probe_held_out"] = probe_accuracy(probe, _in_batches(tokens[-held_out:], labels[-held_out:]))
        note = (
            f"probe_train is the original's: accuracy on the very patches of {len(tokens)} images that are learned. "
            f"probe_held_out learns {len(tokens) - held_out} images and is measured on the other {held_out}."
        )
        return Found(arrays, numbers, (note,))

    def _probe(self, tokens: Tensor) -> nn.Linear:
        """The same first weights whatever has drawn before."""
        generator = torch_generator(self.seed, "patch probe")
        probe = nn.Linear(tokens.shape[-1], self.num_classes)
        bound = tokens.shape[-1] ** -0.5  # torch's own range of a linear layer.
        with torch.no_grad():
            for parameter in probe.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        return probe


def _in_batches(tokens: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(tokens, PROBE_BATCH), torch.split(labels, PROBE_BATCH), strict=True))

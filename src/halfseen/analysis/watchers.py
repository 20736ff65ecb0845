"""What the analyses keep of one shared forward pass.

Each watcher sees every block of every batch once, while the block's tensors exist, reduces them there and then, and at
the end gives plain arrays from which its figures can be drawn without the model. All states are patch tokens; prefix
tokens are left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from halfseen.analysis.attention import (
    attention_distance,
    attention_information,
    patch_distances,
    query_maps,
    uniform_distance,
)
from halfseen.analysis.embedding import component_colours, neighbour_embedding, principal_components
from halfseen.analysis.geometry import MAP_EPS, TokenGeometry, probe_accuracy, train_patch_probe
from halfseen.analysis.masked_views import retrieve
from halfseen.analysis.similarity import linear_cka
from halfseen.analysis.spectrum import (
    feature_variance,
    image_singular_values,
    log_amplitudes,
    relative_log_amplitude,
    spectrum_change,
    token_singular_values,
)
from halfseen.backbones.base import BlockView, Features
from halfseen.errors import ShapeError
from halfseen.ops.effective_rank import alpha_req, rankme
from halfseen.ops.randomness import numpy_generator, torch_generator

Arrays = dict[str, NDArray[np.generic]]
ImageFeature = Literal["mean", "cls"]

HELD_OUT = 5
"""One image of so many is kept from the patch probe, to measure it by."""
PROBE_BATCH = 64
PAIRS_PER_LAYER = 400
PAIRS_AT_LAST = 1024


class Place(NamedTuple):
    """Where a batch stands among the images that are analysed: its first image's number, and the count of all."""

    first: int
    total: int


class Found(NamedTuple):
    """What a watcher gives at the end.

    Attributes:
        arrays: what its figures are drawn from.
        numbers: the few that stand for all.
        notes: what couldn't be measured, in sentences.
    """

    arrays: Arrays
    numbers: Mapping[str, float]
    notes: tuple[str, ...] = ()


class Watcher(ABC):
    """Gathers one analysis over the shared pass."""

    @abstractmethod
    def block(self, view: BlockView, place: Place) -> None:
        """One block of one batch; blocks come in order, 0 first.

        Raises:
            ShapeError: what this analysis isn't defined for.
        """

    def output(self, features: Features, place: Place) -> None:  # noqa: B027 - most look at blocks only.
        """The batch's tokens after the final norm."""

    @abstractmethod
    def result(self) -> Found:
        """What all batches amount to.

        Raises:
            ShapeError: too few images for it.
        """


NO_ATTENTION = (
    "this encoder's tokens attend within windows, so there is no map over all patches. Analyse a vit_* model for this."
)


class AttentionWatcher(Watcher):
    """Attention distance and mutual information of each head, and maps of single queries on the first images.

    Args:
        patch_size: side of a patch in pixels.
        shown: of how many images maps are kept.
        queries: (row, column) of the patches whose maps are kept; None = three places of any grid.
    """

    def __init__(self, patch_size: int, shown: int, queries: Sequence[tuple[int, int]] | None = None) -> None:
        self.patch_size, self.shown, self.queries = patch_size, shown, queries
        self._grid = (0, 0)
        self._distances = torch.empty(0)
        self._measures: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._maps: dict[int, list[Tensor]] = {}

    def block(self, view: BlockView, place: Place) -> None:
        if view.number == 0:
            return
        if view.attention is None:
            raise ShapeError(NO_ATTENTION)
        prefix = view.tokens.prefix.shape[1]
        among = view.attention[..., prefix:, prefix:]
        if not self._measures:
            self._grid = view.tokens.grid
            self._distances = patch_distances(self._grid, self.patch_size)
        distance, information = self._measures.setdefault(view.number, ([], []))
        distance.append(attention_distance(among, self._distances))
        information.append(attention_information(among))
        wanted = self.shown - place.first
        if wanted > 0:
            queries = default_queries(self._grid) if self.queries is None else self.queries
            looked = [query_maps(among[:wanted], query, self._grid) for query in queries]
            if prefix:
                own = view.attention[:wanted, :, 0, prefix:]
                looked.append((own / own.sum(dim=-1, keepdim=True)).reshape(*own.shape[:2], *self._grid))
            self._maps.setdefault(view.number, []).append(torch.stack(looked, dim=2).half().cpu())

    def result(self) -> Found:
        distances = torch.stack([torch.cat(found[0]) for found in self._measures.values()])  # [L, n, heads]
        information = torch.stack([torch.cat(found[1]) for found in self._measures.values()])
        uniform = uniform_distance(self._grid, self.patch_size)
        queries = default_queries(self._grid) if self.queries is None else self.queries
        arrays: Arrays = {
            "distance": distances.numpy(),
            "information": information.numpy(),
            "uniform_distance": np.asarray(uniform),
            "queries": np.asarray(queries, dtype=np.int64),
        }
        if self._maps:
            maps = torch.stack([torch.cat(found) for found in self._maps.values()])
            arrays["maps"] = maps.numpy()  # [L, S, heads, queries (and class token), rows, columns]
        last = distances[-1].mean(), information[-1].double().mean()
        numbers = {
            "attention_distance_first": float(distances[0].mean()),
            "attention_distance_last": float(last[0]),
            "attention_distance_uniform": uniform,
            "attention_information_first": float(information[0].double().mean()),
            "attention_information_last": float(last[1]),
        }
        return Found(arrays, numbers)


def default_queries(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Three patches that look: the centre, upper left and lower right quarter."""
    rows, columns = grid
    return [(rows // 2, columns // 2), (rows // 4, columns // 4), (3 * rows // 4, 3 * columns // 4)]


class FourierWatcher(Watcher):
    """Fourier log amplitude and variance of the tokens before, within and after every block."""

    def __init__(self) -> None:
        self._amplitudes: dict[float, list[Tensor]] = {}
        self._variances: dict[float, list[Tensor]] = {}
        self._sides: dict[float, int] = {}

    def block(self, view: BlockView, place: Place) -> None:
        states = {float(view.number): view.tokens}
        if view.attended is not None:
            states = {view.number - 0.5: view.attended, **states}
        for depth, tokens in states.items():
            self._amplitudes.setdefault(depth, []).append(log_amplitudes(tokens.patches, tokens.grid).cpu())
            self._variances.setdefault(depth, []).append(feature_variance(tokens.patches).cpu())
            self._sides[depth] = tokens.grid[0]

    def result(self) -> Found:
        curves = [relative_log_amplitude(torch.cat(found).mean(dim=0)) for found in self._amplitudes.values()]
        variances = torch.stack([torch.cat(found).mean() for found in self._variances.values()])
        highest = torch.stack([curve[-1] for curve in curves])
        arrays: Arrays = {
            "depth": np.asarray(list(self._amplitudes), dtype=np.float64),
            "side": np.asarray(list(self._sides.values()), dtype=np.int64),
            "relative_log_amplitude": _padded(curves),
            "highest": highest.numpy(),
            "variance": variances.numpy(),
        }
        return Found(arrays, {"high_frequency_last": float(highest[-1]), "variance_last": float(variances[-1])})


class SpectrumWatcher(Watcher):
    """Singular values before and after every attention: of each image's tokens, and of the images' mean tokens.

    Args:
        images: of how many images the tokens' spectra are computed; mean tokens are taken of all.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._patches = 0
        self._tokens: dict[tuple[int, str], list[Tensor]] = {}
        self._means: dict[tuple[int, str], list[Tensor]] = {}
        self._counts: dict[int, int] = {}

    def block(self, view: BlockView, place: Place) -> None:
        if view.attention_input is None or view.attention_output is None:
            return
        wanted = max(0, self.images - place.first)
        for name, tokens in (("in", view.attention_input.patches), ("out", view.attention_output.patches)):
            key = (view.number, name)
            self._counts[view.number] = tokens.shape[1]
            self._means.setdefault(key, []).append(tokens.float().mean(dim=1).cpu())
            if wanted:
                self._tokens.setdefault(key, []).append(token_singular_values(tokens[:wanted]).cpu())

    def result(self) -> Found:
        layers = list(self._counts)
        before, after, changes, reliable, image_before, image_after = [], [], [], [], [], []
        for layer in layers:
            first, second = (torch.cat(self._tokens[layer, name]) for name in ("in", "out"))
            before.append(_mean_log_spectrum(first))
            after.append(_mean_log_spectrum(second))
            change = spectrum_change(first, second, self._counts[layer])
            changes.append(torch.where(change.reliable, change.delta, torch.nan))
            reliable.append(change.reliable.double())
            if sum(map(len, self._means[layer, "in"])) > 1:
                image_before.append(_image_log_spectrum(torch.cat(self._means[layer, "in"])))
                image_after.append(_image_log_spectrum(torch.cat(self._means[layer, "out"])))
        arrays: Arrays = {
            "layers": np.asarray(layers, dtype=np.int64),
            "token_before": _padded(before),
            "token_after": _padded(after),
            "token_change": _padded(changes),
            "num_images": np.asarray(len(first)),
        }
        notes = [f"Token-level spectra are means over the first images: {len(first)}."]
        if image_before:
            arrays |= {"image_before": _padded(image_before), "image_after": _padded(image_after)}
        else:
            notes.append("Image-level spectra need at least two images.")
        middle = changes[-1][torch.isfinite(changes[-1])]
        numbers = {} if not len(middle) else {"spectrum_change_last": float(middle.mean())}
        return Found(arrays, numbers, tuple(notes))


def _mean_log_spectrum(values: Float[Tensor, "n S"]) -> Tensor:
    """log s_k - log s_1, mean over images; NaN from where rounding noise begins."""
    shares = values / values[:, :1].clamp(min=1e-300)
    return torch.where((shares >= 1e-7).all(dim=0), shares.clamp(min=1e-300).log().mean(dim=0), torch.nan)


def _image_log_spectrum(means: Tensor) -> Tensor:
    return _mean_log_spectrum(image_singular_values(means)[None])


class AlignmentWatcher(Watcher):
    """Rows for CKA: mean tokens of all images, and some tokens of each image, the same ones for every layer.

    Args:
        token_rows: about how many tokens are kept of all images together.
        seed: draws them; encoders with the same grid get the same ones.
    """

    def __init__(self, token_rows: int, seed: int) -> None:
        self.token_rows, self.seed = token_rows, seed
        self.grid: tuple[int, int] | None = None
        self._whole_grid = True
        self._tokens: dict[int, list[Tensor]] = {}
        self._means: dict[int, list[Tensor]] = {}
        self._drawn = torch.empty(0, dtype=torch.int64)

    def block(self, view: BlockView, place: Place) -> None:
        patches = view.tokens.patches
        B, N, _ = patches.shape
        if view.number == 0:
            self.grid = view.tokens.grid
            count = min(N, -(-self.token_rows // place.total))
            drawn = [
                numpy_generator(self.seed, "analysis tokens", place.first + row).permutation(N)[:count]
                for row in range(B)
            ]
            self._drawn = torch.from_numpy(np.stack(drawn)).to(patches.device)
        self._means.setdefault(view.number, []).append(patches.float().mean(dim=1).cpu())
        self._whole_grid &= view.tokens.grid == self.grid
        if self._whole_grid:
            index = self._drawn[..., None].expand(-1, -1, patches.shape[-1])
            self._tokens.setdefault(view.number, []).append(patches.gather(1, index).flatten(0, 1).float().cpu())

    @property
    def tokens(self) -> list[Tensor] | None:
        """Some tokens of every layer, row by row the same patches; None where the layers' grids differ."""
        return [torch.cat(found) for found in self._tokens.values()] if self._whole_grid else None

    @property
    def means(self) -> list[Tensor]:
        """Every layer's mean tokens [n, D]."""
        return [torch.cat(found) for found in self._means.values()]

    def result(self) -> Found:
        means, tokens = self.means, self.tokens
        arrays: Arrays = {}
        notes = []
        if len(means[0]) > 1:
            arrays["images"] = linear_cka(means, means).numpy()
            arrays["num_images"] = np.asarray(len(means[0]))
        else:
            notes.append("CKA of images needs at least two of them.")
        if tokens is None:
            notes.append("CKA of tokens is left out: the layers' grids differ, so that no patch is in all of them.")
        else:
            arrays["tokens"] = linear_cka(tokens, tokens).numpy()
            arrays["num_tokens"] = np.asarray(len(tokens[0]))
        numbers = {"cka_first_last": float(arrays["tokens"][1, -1])} if "tokens" in arrays else {}
        return Found(arrays, numbers, tuple(notes))


def align(first: AlignmentWatcher, second: AlignmentWatcher) -> Found:
    """CKA between the layers of two encoders that have seen the same images.

    Raises:
        ShapeError: a single image, or different numbers of images.
    """
    if len(first.means[0]) < 2:
        raise ShapeError("CKA between encoders needs at least two images.")
    arrays: Arrays = {"images": linear_cka(first.means, second.means).numpy()}
    ours, theirs = first.tokens, second.tokens
    notes: tuple[str, ...] = ()
    if first.grid == second.grid and ours is not None and theirs is not None:
        arrays["tokens"] = linear_cka(ours, theirs).numpy()
    else:
        notes = (
            "CKA of tokens between these encoders is left out: their patch grids differ. CKA of images compares them.",
        )
    return Found(arrays, {}, notes)


def probe_layers(means: Sequence[Float[Tensor, "n _"]], labels: Int64[Tensor, " n"]) -> Found:
    """How well a linear classifier (ridge) of the images' mean tokens does, layer by layer, on held-out images.

    Args:
        means: of each layer, 0 first; every fifth image is held out.
        labels: class of each image; those with -1 don't count.
    Raises:
        ShapeError: too few images with a label, or one class only.
    """
    known = labels >= 0
    wanted = labels[known].numpy()
    held_out = np.arange(len(wanted)) % HELD_OUT == HELD_OUT - 1
    if not held_out.any() or len(np.unique(wanted[~held_out])) < 2:
        raise ShapeError(
            f"probes of layers need at least {HELD_OUT} images with labels of two classes, got {len(wanted)} images of "
            f"{len(np.unique(wanted))}."
        )
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    accuracies = []
    for rows in means:
        features = rows[known].double().numpy()
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(len(features))))
        probe.fit(features[~held_out], wanted[~held_out])
        accuracies.append(float((probe.predict(features[held_out]) == wanted[held_out]).mean()))
    arrays: Arrays = {"depth": np.arange(len(means)), "accuracy": np.asarray(accuracies)}
    note = (
        f"A quick look: ridge classifiers of mean tokens, learned on {int((~held_out).sum())} images and measured on "
        f"{int(held_out.sum())}. `halfseen linear` with layer=N measures one layer properly."
    )
    return Found(arrays, {"layer_probe_best": max(accuracies), "layer_probe_last": accuracies[-1]}, (note,))


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


class SimilarityWatcher(Watcher):
    """Cosine similarity of all pairs of patches, and principal components as colours, per layer, on the first images.

    Similarities of all pairs grow with the square of the patches: those of large grids are left out.

    Args:
        shown: how many images.
    """

    def __init__(self, shown: int) -> None:
        self.shown = shown
        self._too_many: set[str] = set()
        self._pairs: dict[str, list[Tensor]] = {}
        self._tokens: dict[str, list[Tensor]] = {}
        self._grids: dict[str, tuple[int, int]] = {}

    def block(self, view: BlockView, place: Place) -> None:
        if view.number:
            self._keep(str(view.number), view.tokens.patches, view.tokens.grid, place)

    def output(self, features: Features, place: Place) -> None:
        self._keep("final", features.patches, features.grid, place)

    def _keep(self, name: str, patches: Tensor, grid: tuple[int, int], place: Place) -> None:
        wanted = self.shown - place.first
        if wanted <= 0:
            return
        tokens = patches[:wanted].float()
        if tokens.shape[1] <= (PAIRS_AT_LAST if name == "final" else PAIRS_PER_LAYER):
            units = F.normalize(tokens, dim=-1, eps=MAP_EPS)
            self._pairs.setdefault(name, []).append((units @ units.transpose(1, 2)).half().cpu())
        else:
            self._too_many.add(name)
        self._tokens.setdefault(name, []).append(tokens.cpu())
        self._grids[name] = grid

    def result(self) -> Found:
        arrays: Arrays = {"layers": np.asarray(list(self._tokens), dtype=np.str_)}
        for name, parts in self._tokens.items():
            tokens = torch.cat(parts)
            if name in self._pairs:
                arrays[f"pairs.{name}"] = torch.cat(self._pairs[name]).numpy()  # float16 [S, N, N]
            if tokens.shape[-1] >= 3 and tokens.shape[0] * tokens.shape[1] >= 3:
                arrays[f"colours.{name}"] = component_colours(tokens, self._grids[name]).numpy()
            arrays[f"grid.{name}"] = np.asarray(self._grids[name], dtype=np.int64)
        if not self._too_many:
            return Found(arrays, {})
        left_out = ", ".join(sorted(self._too_many, key=lambda name: (len(name), name)))
        note = (
            f"Similarities of all pairs of patches are kept for grids of up to {PAIRS_PER_LAYER} patches (after the "
            f"final norm {PAIRS_AT_LAST}); without layer {left_out}."
        )
        return Found(arrays, {}, (note,))


class EmbeddingWatcher(Watcher):
    """Points of the plane: tokens of the first images, of one layer and around the last attention; and all images.

    Args:
        layer: block whose output is shown.
        last: the last block.
        images: how many images.
        most_tokens: of how many tokens t-SNE is computed at most, evenly spaced.
        seed: starts t-SNE.
        tsne: whether it is wanted: it takes seconds to minutes.
    """

    def __init__(self, layer: int, last: int, images: int, most_tokens: int, seed: int, tsne: bool) -> None:
        self.layer, self.last, self.images = layer, last, images
        self.most_tokens, self.seed, self.tsne = most_tokens, seed, tsne
        self._kept: dict[str, list[Tensor]] = {"tokens": [], "before": [], "after": []}
        self._means: list[Tensor] = []

    def block(self, view: BlockView, place: Place) -> None:
        wanted = self.images - place.first
        if wanted <= 0:
            return
        if view.number == self.layer:
            self._kept["tokens"].append(view.tokens.patches[:wanted].float().cpu())
        if view.number == self.last and view.attention_input is not None and view.attention_output is not None:
            self._kept["before"].append(view.attention_input.patches[:wanted].float().cpu())
            self._kept["after"].append(view.attention_output.patches[:wanted].float().cpu())

    def output(self, features: Features, place: Place) -> None:
        self._means.append(image_feature(features, "mean").cpu())

    def result(self) -> Found:
        tokens, before, after = (torch.cat(self._kept[name]) for name in ("tokens", "before", "after"))
        images, patches = tokens.shape[:2]
        rows = tokens.flatten(0, 1)
        owner = torch.arange(images).repeat_interleave(patches)
        plane = principal_components(rows, 2)
        arrays: Arrays = {
            "layer": np.asarray(self.layer),
            "image_of_token": owner.numpy(),
            "pca": plane.points.numpy(),
            "pca_share": plane.share.numpy(),
        }
        notes: list[str] = []
        if self.tsne:
            some = torch.linspace(0, len(rows) - 1, min(len(rows), self.most_tokens)).round().long()
            arrays |= self._neighbours("tsne", rows[some], notes)
            if "tsne" in arrays:
                arrays["image_of_tsne"] = owner[some].numpy()
                if len(some) < len(rows):
                    notes.append(f"t-SNE shows {len(some)} of {len(rows)} tokens, evenly spaced.")
        one = principal_components(torch.cat([before[0], after[0]]), 2).points
        arrays |= {"one_before": one[: before.shape[1]].numpy(), "one_after": one[before.shape[1] :].numpy()}
        if images > 1:
            pair = torch.cat([before[0], before[1], after[0], after[1]])
            points = principal_components(pair, 2).points.reshape(2, 2, -1, 2)
            arrays |= {"two_before": points[0].numpy(), "two_after": points[1].numpy()}
            late = principal_components(after.flatten(0, 1), 2).points
            arrays["after"] = late.numpy()
            arrays["image_of_after"] = torch.arange(images).repeat_interleave(after.shape[1]).numpy()
        else:
            notes.append("Two images before and after attention need two images.")
        return Found(arrays | self._images(notes), {}, tuple(notes))

    def _images(self, notes: list[str]) -> Arrays:
        """Every image as a point, by its mean token after the final norm."""
        rows = torch.cat(self._means)
        if len(rows) < 2:
            notes.append("A map of the images needs two images.")
            return {}
        arrays: Arrays = {"images_pca": principal_components(rows, 2).points.numpy()}
        return arrays | self._neighbours("images_tsne", rows, notes) if self.tsne else arrays

    def _neighbours(self, name: str, rows: Tensor, notes: list[str]) -> Arrays:
        """t-SNE under a name, or a sentence on why there is none."""
        try:
            return {name: neighbour_embedding(rows, self.seed).numpy()}
        except ShapeError as error:
            notes.append(f"Without {name}: {error}")
            return {}


class RankWatcher(Watcher):
    """How many directions the images' features use: RankMe and alpha-ReQ of mean tokens and class tokens.

    With them the nearest other images of the first ones. The features themselves stay at hand: other analyses compare
    theirs with them.

    Args:
        shown: of how many images neighbours are kept.
        neighbours: how many of each, by cosine similarity of the mean tokens.
    """

    def __init__(self, shown: int, neighbours: int) -> None:
        self.shown, self.neighbours = shown, neighbours
        self._features: dict[ImageFeature, list[Tensor]] = {}

    def block(self, view: BlockView, place: Place) -> None:
        pass

    def output(self, features: Features, place: Place) -> None:
        kinds: tuple[ImageFeature, ...] = ("mean", "cls") if features.prefix.shape[1] else ("mean",)
        for kind in kinds:
            self._features.setdefault(kind, []).append(image_feature(features, kind).cpu())

    def features(self, kind: ImageFeature) -> Float[Tensor, "n D"]:
        """Every image's feature vector after the final norm."""
        return torch.cat(self._features[kind])

    def result(self) -> Found:
        arrays: Arrays = {}
        numbers: dict[str, float] = {}
        for kind in self._features:
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


def image_feature(features: Features, kind: ImageFeature) -> Float[Tensor, "B D"]:
    """One float32 vector per image: the mean patch token or the class token, after the final norm."""
    return features.patches.float().mean(dim=1) if kind == "mean" else features.prefix[:, 0].float()


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
        self._tokens: list[Tensor] = []

    def block(self, view: BlockView, place: Place) -> None:
        pass

    def output(self, features: Features, place: Place) -> None:
        self._tokens.append(features.patches.float().cpu())

    @torch.enable_grad()
    def result(self) -> Found:
        tokens = torch.cat(self._tokens)
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


def _eigenvalues(rows: Tensor) -> NDArray[np.generic]:
    """Of the rows' covariance, falling."""
    centred = rows.double() - rows.double().mean(dim=0)
    values = torch.linalg.svdvals(centred).square() / (len(centred) - 1)
    found: NDArray[np.generic] = values.numpy()
    return found


def _padded(curves: Sequence[Tensor]) -> NDArray[np.generic]:
    """Curves of different lengths as one float64 array, NaN behind their ends."""
    padded = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve.numpy()
    return padded

"""Patch tokens of the first images: similarities, colours, clouds of points; and all images as points."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from halfseen.analysis.embedding import component_colours, neighbour_embedding, principal_components
from halfseen.analysis.geometry import MAP_EPS
from halfseen.analysis.watchers.base import Arrays, Found, Place, Rows, Watcher, image_feature
from halfseen.backbones.base import BlockView, Features
from halfseen.errors import ShapeError

PAIRS_PER_LAYER = 400
PAIRS_AT_LAST = 1024


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
        self._means = Rows()

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
        self._means.put("mean", image_feature(features, "mean"), place)

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
        rows = self._means["mean"]
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

"""Layers side by side: their alignment within and between encoders, and where the classes are."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from halfseen.analysis.similarity import linear_cka
from halfseen.analysis.watchers.base import HELD_OUT, Arrays, Found, Place, Rows, Watcher
from halfseen.backbones.base import BlockView
from halfseen.errors import ShapeError
from halfseen.ops.randomness import numpy_generator


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
        self._tokens, self._means = Rows(), Rows()
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
        self._means.put(view.number, patches.float().mean(dim=1), place)
        self._whole_grid &= view.tokens.grid == self.grid
        if self._whole_grid:
            index = self._drawn[..., None].expand(-1, -1, patches.shape[-1])
            self._tokens.put(view.number, patches.gather(1, index).float(), place)

    @property
    def tokens(self) -> list[Tensor] | None:
        """Some tokens of every layer, row by row the same patches; None where the layers' grids differ."""
        return [found.flatten(0, 1) for found in self._tokens.all()] if self._whole_grid else None

    @property
    def means(self) -> list[Tensor]:
        """Every layer's mean tokens [n, D]."""
        return self._means.all()

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


def hold_out_of_classes(labels: Int64[NDArray[np.int64], " n"]) -> Bool[NDArray[np.bool_], " n"]:
    """Marks a fifth of the images of each class, and of small classes one image in some.

    Not every fifth image: images come with their classes in turn, so that would hold out whole classes.
    """
    classes, number = np.unique(labels, return_inverse=True)
    order = np.zeros(len(labels), dtype=np.int64)
    for each in range(len(classes)):
        members = number == each
        order[members] = np.arange(members.sum())
    return np.asarray((order + number) % HELD_OUT == HELD_OUT - 1)


def probe_layers(means: Sequence[Float[Tensor, "n _"]], labels: Int64[Tensor, " n"]) -> Found:
    """How well a linear classifier (ridge) of the images' mean tokens does, layer by layer, on held-out images.

    Args:
        means: of each layer, 0 first; a fifth of each class is held out.
        labels: class of each image; those with -1 don't count.
    Raises:
        ShapeError: too few images with a label, or one class only.
    """
    known = labels >= 0
    wanted = labels[known].numpy()
    held_out = hold_out_of_classes(wanted)
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

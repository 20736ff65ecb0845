"""Frequencies of the tokens over the image, and singular values around every attention."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfseen.analysis.spectrum import (
    feature_variance,
    image_singular_values,
    log_amplitudes,
    relative_log_amplitude,
    spectrum_change,
    token_singular_values,
)
from halfseen.analysis.watchers.base import Arrays, Found, Place, Rows, Watcher, padded
from halfseen.backbones.base import BlockView


class FourierWatcher(Watcher):
    """Fourier log amplitude and variance of the tokens before, within and after every block."""

    def __init__(self) -> None:
        self._amplitudes, self._variances = Rows(), Rows()
        self._sides: dict[float, int] = {}

    def block(self, view: BlockView, place: Place) -> None:
        states = {float(view.number): view.tokens}
        if view.attended is not None:
            states = {view.number - 0.5: view.attended, **states}
        for depth, tokens in states.items():
            self._amplitudes.put(depth, log_amplitudes(tokens.patches, tokens.grid), place)
            self._variances.put(depth, feature_variance(tokens.patches), place)
            self._sides[depth] = tokens.grid[0]

    def result(self) -> Found:
        curves = [relative_log_amplitude(found.mean(dim=0)) for found in self._amplitudes.all()]
        variances = torch.stack([found.mean() for found in self._variances.all()])
        highest = torch.stack([curve[-1] for curve in curves])
        arrays: Arrays = {
            "depth": np.asarray(list(self._sides), dtype=np.float64),
            "side": np.asarray(list(self._sides.values()), dtype=np.int64),
            "relative_log_amplitude": padded(curves),
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
        self._tokens, self._means = Rows(), Rows()
        self._counts: dict[int, int] = {}

    def block(self, view: BlockView, place: Place) -> None:
        if view.attention_input is None or view.attention_output is None:
            return
        wanted = max(0, self.images - place.first)
        for name, tokens in (("in", view.attention_input.patches), ("out", view.attention_output.patches)):
            key = (view.number, name)
            self._counts[view.number] = tokens.shape[1]
            self._means.put(key, tokens.float().mean(dim=1), place)
            if wanted:
                self._tokens.put(key, token_singular_values(tokens[:wanted]), place, self.images)

    def result(self) -> Found:
        layers = list(self._counts)
        before, after, changes, reliable, image_before, image_after = [], [], [], [], [], []
        for layer in layers:
            first, second = (self._tokens[layer, name] for name in ("in", "out"))
            before.append(_mean_log_spectrum(first))
            after.append(_mean_log_spectrum(second))
            change = spectrum_change(first, second, self._counts[layer])
            changes.append(torch.where(change.reliable, change.delta, torch.nan))
            reliable.append(change.reliable.double())
            if len(self._means[layer, "in"]) > 1:
                image_before.append(_image_log_spectrum(self._means[layer, "in"]))
                image_after.append(_image_log_spectrum(self._means[layer, "out"]))
        arrays: Arrays = {
            "layers": np.asarray(layers, dtype=np.int64),
            "token_before": padded(before),
            "token_after": padded(after),
            "token_change": padded(changes),
            "num_images": np.asarray(len(first)),
        }
        notes = [f"Token-level spectra are means over the first images: {len(first)}."]
        if image_before:
            arrays |= {"image_before": padded(image_before), "image_after": padded(image_after)}
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

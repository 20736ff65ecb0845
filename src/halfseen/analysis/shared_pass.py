"""The pass that all watchers share, and then the passes of their own."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from halfseen.analysis.analyze_config import AnalysisName
from halfseen.analysis.findings import EncoderAnalysis
from halfseen.analysis.look import Look
from halfseen.analysis.own_passes import masking, noise, reconstruction
from halfseen.analysis.watchers.attention import AttentionWatcher
from halfseen.analysis.watchers.base import Found, Place, Rows, Watcher
from halfseen.analysis.watchers.features import GeometryWatcher, ProbeWatcher
from halfseen.analysis.watchers.layers import probe_layers
from halfseen.analysis.watchers.spectra import FourierWatcher, SpectrumWatcher
from halfseen.analysis.watchers.tokens import EmbeddingWatcher, SimilarityWatcher
from halfseen.backbones.base import Features
from halfseen.data.loader import evaluation_batches
from halfseen.data.resident import read_resident
from halfseen.errors import ConfigError, DataError, HalfseenError
from halfseen.ops.patch_labels import class_fractions, majority_labels, patch_histogram, reference_patches
from halfseen.ops.patches import patchify

THUMBNAIL = 32
"""Largest side in pixels of the small pictures that are kept of all images."""


@torch.no_grad()
def look_at(look: Look) -> EncoderAnalysis:
    """All that is wanted of this encoder."""
    first = _shared_pass(look)
    own: dict[AnalysisName, Callable[[UInt8[Tensor, "n 3 S S"]], Found]] = {
        "layers": lambda images: probe_layers(look.layer_means.means, look.labels),
        "masking": partial(masking, look),
        "noise": partial(noise, look),
        "reconstruction": partial(reconstruction, look),
    }
    for name, measure in own.items():
        if name in look.only:
            start = time.perf_counter()
            try:
                look.found.add(name, measure(first))
            except HalfseenError as error:
                look.found.refuse(name, error)
            look.found.seconds[name] = time.perf_counter() - start
    return look.found


def _shared_pass(look: Look) -> UInt8[Tensor, "n 3 S S"]:
    """The pass that all watchers share. Gives the first images, for the passes that follow."""
    config = look.config
    _check_references(look)
    keep = max(config.shown_images, config.masked_images, config.noise_images, config.reconstruction_images)
    images, masks = _pictures(look)
    watchers = _watchers(look, masks)
    kept, indices, thumbnails = [], [], Rows()
    seconds, place = 0.0, Place(0, len(look.wanted))
    for views, rows in images:
        start = time.perf_counter()
        _watch(look, watchers, views, place)
        seconds += time.perf_counter() - start
        if place.first < keep:
            kept.append(views[: keep - place.first])
        indices.append(rows)
        thumbnails.put("pictures", _thumbnails(views), place)
        place = place._replace(first=place.first + len(views))
        look.tell(look.subject.name, place.first, place.total)
    if place.first == 0:
        raise DataError(f"'{look.source.name}': none of the {place.total} images could be read.")
    look.found.seconds["shared pass"] = seconds
    start = time.perf_counter()
    for name, watcher in watchers.items():
        if name not in look.only:
            continue  # It gathers what another analysis needs.
        try:
            look.found.add(name, watcher.result())
        except HalfseenError as error:
            look.found.refuse(name, error)
    if "cka" in look.only:
        look.alignment = look.layer_means
    look.found.seconds["shared results"] = time.perf_counter() - start
    first = torch.cat(kept)
    every = torch.cat(indices).numpy()
    look.labels = torch.from_numpy(np.asarray(look.source.labels, dtype=np.int64)[every])
    shown = first[: config.shown_images]
    look.found.arrays |= {
        "images/indices": every,
        "images/labels": look.labels.numpy(),
        "images/shown": shown.permute(0, 2, 3, 1).contiguous().numpy(),
        **({} if masks is None else {"images/pixel_classes": masks[: len(shown)].to(torch.uint8).numpy()}),
        "images/thumbnails": thumbnails["pictures"].permute(0, 2, 3, 1).contiguous().numpy(),
        "images/references": _references(look, shown, masks).numpy(),
        "images/paths": np.asarray([look.source.path(int(row)) for row in every[: len(first)]], dtype=np.str_),
    }
    return first


def _check_references(look: Look) -> None:
    """See that chosen patches are on the grid, before anything is computed.

    Raises:
        ConfigError: they aren't.
    """
    side = look.encoder.image_size // look.encoder.stride
    for row, column in look.config.references or ():
        if max(row, column) >= side:
            raise ConfigError(
                f"references: got [{row}, {column}], but '{look.subject.name}' has {side} rows and columns of patches, "
                f"counted from 0. Choose 0 to {side - 1}."
            )


def _references(look: Look, shown: Tensor, masks: Tensor | None) -> Int64[Tensor, "S R"]:
    """Patches that similarity maps are drawn for: the chosen ones, or corner, inside and outline of an object.

    Without masks, which tell what an object is: the corner, the centre and the patch with the most contrast.
    """
    if look.config.references is not None:
        chosen = [row * look.found.grid[1] + column for row, column in look.config.references]
        return torch.tensor(chosen).expand(len(shown), -1)
    names, patch = look.source.mask_names if masks is not None else (), look.encoder.stride
    if masks is not None and "background" in names:
        fractions = class_fractions(patch_histogram(masks[: len(shown)], patch, len(names)))
        background = fractions[..., names.index("background")]
        if "border" in names:
            edge = fractions[..., names.index("border")]
        else:
            edge = 1 - fractions.amax(dim=-1)
        return reference_patches(torch.stack([1 - background - edge, background, edge], dim=-1))
    rows, columns = look.found.grid
    cells = patchify(shown.float(), patch)
    contrast = cells.std(dim=-1).argmax(dim=1)
    corner, centre = torch.zeros_like(contrast), torch.full_like(contrast, rows // 2 * columns + columns // 2)
    return torch.stack([corner, centre, contrast], dim=1)


def _pictures(look: Look) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor | None]:
    """The images, batch by batch with their places in the source, and the masks of all where there are masks."""
    size, step = look.encoder.image_size, look.config.batch_size
    if not look.source.has_masks:
        batches = evaluation_batches(
            look.source,
            look.wanted,
            size,
            step,
            resize=look.config.resize,
            crop_ratio=look.config.crop_ratio,
            interpolation=look.config.interpolation,
            workers=look.workers,
        )
        return ((batch.images, batch.indices) for batch in batches if len(batch.images)), None
    chosen = look.source.subset(look.wanted)
    data = read_resident(chosen, size, masks=True, resize="bilinear", workers=look.workers)
    rows = torch.from_numpy(look.wanted)[data.indices]
    return zip(torch.split(data.images, step), torch.split(rows, step), strict=True), data.masks


def _watchers(look: Look, masks: Tensor | None) -> dict[str, Watcher]:
    """One for each wanted analysis, and what others need."""
    config, encoder = look.config, look.encoder
    layer = config.embedding_layer or max(1, encoder.num_layers - 1)
    every: dict[AnalysisName, Callable[[], Watcher]] = {
        "attention": lambda: AttentionWatcher(
            encoder.patch_size, config.shown_images, config.queries, class_token=encoder.has_class_token
        ),
        "fourier": FourierWatcher,
        "spectra": lambda: SpectrumWatcher(config.spectrum_images),
        "cka": lambda: look.layer_means,
        "geometry": GeometryWatcher,
        "similarity": lambda: SimilarityWatcher(config.shown_images),
        "embedding": lambda: EmbeddingWatcher(
            layer, encoder.num_layers, config.embedding_images, config.tsne_tokens, look.seed, config.tsne
        ),
    }
    watchers: dict[str, Watcher] = {name: make() for name, make in every.items() if name in look.only}
    if {"rank", "masking", "noise"} & set(look.only):
        watchers["rank"] = look.rank
    if "layers" in look.only:
        watchers["cka"] = look.layer_means
    if "embedding" in watchers and layer > encoder.num_layers:
        del watchers["embedding"]
        reason = f"embedding_layer: got {layer}, but this encoder has the blocks 1 to {encoder.num_layers}."
        look.found.refuse("embedding", ConfigError(reason))
    if "probe" in look.only and masks is None:
        reason = f"'{look.source.name}' has no masks, which say what a patch shows. bundled:fashion-scenes has."
        look.found.refuse("probe", DataError(reason))
    elif "probe" in look.only and masks is not None:
        classes = len(look.source.mask_names)
        labels = majority_labels(patch_histogram(masks, encoder.stride, classes))
        watchers["probe"] = ProbeWatcher(labels, classes, config.probe_epochs, config.probe_lr, look.seed)
    return watchers


def _watch(look: Look, watchers: dict[str, Watcher], views: Tensor, place: Place) -> None:
    """One batch through the encoder, block by block; a watcher that can't go on leaves a sentence."""

    def show(see: Callable[[Watcher], None]) -> None:
        for name, watcher in list(watchers.items()):
            try:
                see(watcher)
            except HalfseenError as error:
                del watchers[name]
                look.found.refuse(name, error)

    with look.autocast():
        for view in look.encoder.block_views(look.normalised(views)):
            show(methodcaller("block", view, place))
        norm = look.encoder.final_norm
        features = Features(norm(view.tokens.prefix), norm(view.tokens.patches), view.tokens.grid)
    if not bool(torch.isfinite(features.patches).all()):
        raise DataError(
            f"'{look.subject.name}': its features are not finite, so there is nothing to analyse. Its weights are "
            "damaged, or the precision is too narrow for them: try --precision fp32."
        )
    look.found.grid = features.grid
    show(methodcaller("output", features, place))


def _thumbnails(views: UInt8[Tensor, "B 3 S S"]) -> UInt8[Tensor, "B 3 t t"]:
    """Pictures small enough to keep of every image."""
    side = min(views.shape[-1], THUMBNAIL)
    small: Tensor = functional.resize(views, [side, side], antialias=True)
    return small

"""Representation analyses of one or several encoders: one shared forward pass each, and a few passes of their own.

Writes plain arrays (`NAME.npz` for each encoder, `between.npz`) and `analysis.json`; drawing them is the business of
`reports`. An analysis that isn't defined for an encoder leaves a sentence and the others run.
"""

import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from halfseen.analysis.analyze_config import ANALYSES, AnalysisName, AnalyzeConfig
from halfseen.analysis.fidelity import Fidelity, Region, Space
from halfseen.analysis.masked_views import agreement, draw_visible, learned_half_seen, retrieve, shared_neighbours
from halfseen.analysis.reconstruct import spread_indices
from halfseen.analysis.robustness import band_noise, nearest_class, sign_noise
from halfseen.analysis.watchers import (
    AlignmentWatcher,
    Arrays,
    AttentionWatcher,
    EmbeddingWatcher,
    Found,
    FourierWatcher,
    GeometryWatcher,
    ImageFeature,
    Place,
    ProbeWatcher,
    RankWatcher,
    SimilarityWatcher,
    SpectrumWatcher,
    Watcher,
    align,
    image_feature,
    probe_layers,
)
from halfseen.backbones.base import Encoder, Features
from halfseen.data.loader import evaluation_batches
from halfseen.data.resident import read_resident
from halfseen.data.sources import Source
from halfseen.data.subsets import share_of_each_class
from halfseen.errors import ConfigError, DataError, HalfseenError, ShapeError
from halfseen.evaluation.features import Precision
from halfseen.methods.base import Method
from halfseen.ops.effective_rank import lidar
from halfseen.ops.mask_distance import average_distance
from halfseen.ops.patch_labels import class_fractions, majority_labels, patch_histogram, reference_patches
from halfseen.ops.patches import mask_from_ids, patchify
from halfseen.ops.randomness import stream_seed, torch_generator

FORMAT_VERSION = 1
SUMMARY_FILE = "analysis.json"
BETWEEN_FILE = "between.npz"
RANDOM_INIT = "random_init"
"""Name of the same network with fresh weights."""
NEIGHBOUR = 128
"""Largest side in pixels at which neighbours are shown."""
THUMBNAIL = 32
"""Largest side in pixels of the small pictures that are kept of all images."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AnalyzedEncoder:
    """An encoder that is analysed.

    Attributes:
        name: its name in files and figures, unique in a comparison.
        encoder, mean, std: the network, and what its images are normalised with, on the scale 0 to 1.
        origin, role: where it comes from, for the record.
        method: the pre-training method it belongs to, for reconstructions; None where there is none.
    """

    name: str
    encoder: Encoder
    mean: Sequence[float]
    std: Sequence[float]
    origin: str
    role: str = "student"
    method: Method | None = None


@dataclass
class EncoderAnalysis:
    """What was found of one encoder.

    Attributes:
        arrays: "analysis/array" -> what figures are drawn from.
        numbers: the few that stand for all.
        notes: analysis -> sentences: what couldn't be measured, and what to know about it.
        seconds: of the shared pass and of each pass of its own.
    """

    subject: AnalyzedEncoder
    grid: tuple[int, int] = (0, 0)
    arrays: Arrays = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, found: Found) -> None:
        """Take what an analysis has found."""
        self.arrays |= {f"{name}/{key}": array for key, array in found.arrays.items()}
        self.numbers |= found.numbers
        if found.notes:
            self.notes.setdefault(name, []).extend(found.notes)

    def refuse(self, name: str, reason: Exception) -> None:
        """Remember why an analysis was left out."""
        self.notes.setdefault(name, []).append(f"Left out: {reason}")


@dataclass
class Analysis:
    """A finished comparison."""

    encoders: list[EncoderAnalysis]
    between: Arrays
    notes: list[str]
    facts: dict[str, object]

    def write(self, folder: Path) -> Path:
        """Write everything into a folder; the path of `analysis.json`, which names the other files.

        The json comes last, so it never speaks of files that aren't there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for found in self.encoders:
            _write_arrays(folder / f"{found.subject.name}.npz", found.arrays)
        if self.between:
            _write_arrays(folder / BETWEEN_FILE, self.between)
        else:
            (folder / BETWEEN_FILE).unlink(missing_ok=True)
        path = folder / SUMMARY_FILE
        beside = path.with_suffix(".json.part")
        beside.write_text(json.dumps(self.summary(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        beside.replace(path)
        return path

    def summary(self) -> dict[str, object]:
        """All but the arrays, as plain data; a number that isn't finite is null."""
        return {
            "format_version": FORMAT_VERSION,
            **self.facts,
            "notes": self.notes,
            "between": BETWEEN_FILE if self.between else None,
            "encoders": [
                {
                    "name": found.subject.name,
                    "file": f"{found.subject.name}.npz",
                    "origin": found.subject.origin,
                    "role": found.subject.role,
                    "image_size": found.subject.encoder.image_size,
                    "patch_size": found.subject.encoder.patch_size,
                    "grid": list(found.grid),
                    "num_layers": found.subject.encoder.num_layers,
                    "embed_dim": found.subject.encoder.embed_dim,
                    "numbers": {
                        key: value if math.isfinite(value) else None for key, value in sorted(found.numbers.items())
                    },
                    "notes": found.notes,
                    "seconds": {key: round(value, 3) for key, value in found.seconds.items()},
                }
                for found in self.encoders
            ],
        }


def analyze(
    encoders: Sequence[AnalyzedEncoder],
    source: Source,
    config: AnalyzeConfig,
    only: Sequence[AnalysisName] = ANALYSES,
    *,
    split: str = "all",
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> Analysis:
    """Analyse encoders side by side on the same images.

    Args:
        encoders: one after the other goes to the device.
        source: where the images come from; a spread over the classes is taken.
        only: names of the analyses that are wanted.
        split: what part of the data `source` is, for the record.
        seed: draws tokens, masks, noise and the start of t-SNE.
        device, precision: of the forward passes.
        workers: loader processes.
        on_progress: called with (what is being done, images done, all).
    Raises:
        DataError: no image at all, or none that can be read.
    """
    if len(source) == 0:
        raise DataError(f"'{source.name}' holds no image to analyse. Name a folder with some.")
    wanted = chosen_images(source, config)
    tell = on_progress or (lambda what, done, of: None)
    results, alignments = [], []
    for subject in encoders:
        work = _Work(subject, source, wanted, config, only, seed, device, precision, workers, tell)
        results.append(work.run())
        alignments.append(work.alignment)
        subject.encoder.to("cpu")
    between, notes = _between(results, alignments)
    notes += _sizes_note(results)
    facts: dict[str, object] = {
        "analyses": list(only),
        "data": {
            "source": source.name,
            "split": split,
            "n": int(results[0].arrays["images/indices"].size),
            "asked": len(wanted),
            "fingerprint": source.fingerprint(),
        },
        "class_names": list(source.class_names),
        "mask_names": list(source.mask_names) if source.has_masks else [],
        "settings": config.model_dump(mode="json"),
        "precision": precision,
        "seed": seed,
        "halfseen_version": version("halfseen"),
    }
    return Analysis(results, between, notes, facts)


def chosen_images(source: Source, config: AnalyzeConfig) -> NDArray[np.int64]:
    """Rows of the source that are analysed.

    Raises:
        DataError: a share of each class that comes to no image at all.
    """
    if config.fraction_per_class is None:
        return spread_indices(source, config.images)
    rows = share_of_each_class(np.asarray(source.labels), config.fraction_per_class)
    if not len(rows):
        raise DataError(
            f"fraction_per_class: {config.fraction_per_class:g} of each class of '{source.name}' is no image at all. "
            "Raise it, or use images=N."
        )
    return rows


def file_name(text: str, taken: Sequence[str] = ()) -> str:
    """A short name for an encoder's files and figures out of any text, none of the `taken` ones."""
    base = re.sub(r"[^\w.+-]+", "_", text).strip("._") or "encoder"
    reserved = (*taken, Path(SUMMARY_FILE).stem, Path(BETWEEN_FILE).stem, RANDOM_INIT)
    count = 1
    while (name := base if count == 1 else f"{base}-{count}") in reserved:
        count += 1
    return name


class _Work:
    """The passes over one encoder."""

    def __init__(
        self,
        subject: AnalyzedEncoder,
        source: Source,
        wanted: np.ndarray,
        config: AnalyzeConfig,
        only: Sequence[AnalysisName],
        seed: int,
        device: str,
        precision: Precision,
        workers: int,
        tell: OnProgress,
    ) -> None:
        self.subject, self.source, self.wanted, self.config = subject, source, wanted, config
        self.only, self.seed, self.device, self.precision = only, seed, device, precision
        self.workers, self.tell = workers, tell
        self.encoder = subject.encoder.to(device).eval()
        self.mean, self.std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (subject.mean, subject.std))
        self.found = EncoderAnalysis(subject)
        self.alignment: AlignmentWatcher | None = None
        self.rank = RankWatcher(config.shown_images, config.neighbours)
        self.layer_means = AlignmentWatcher(config.token_rows, seed)

    @torch.no_grad()
    def run(self) -> EncoderAnalysis:
        """All that is wanted of this encoder."""
        first = self._shared_pass()
        own: dict[AnalysisName, Callable[[UInt8[Tensor, "n 3 S S"]], Found]] = {
            "layers": lambda images: probe_layers(self.layer_means.means, self.labels),
            "masking": self._masking,
            "noise": self._noise,
            "reconstruction": self._reconstruction,
        }
        for name, measure in own.items():
            if name in self.only:
                start = time.perf_counter()
                try:
                    self.found.add(name, measure(first))
                except HalfseenError as error:
                    self.found.refuse(name, error)
                self.found.seconds[name] = time.perf_counter() - start
        return self.found

    def _shared_pass(self) -> UInt8[Tensor, "n 3 S S"]:
        """The pass that all watchers share. Gives the first images, for the passes that follow."""
        config = self.config
        keep = max(config.shown_images, config.masked_images, config.noise_images, config.reconstruction_images)
        images, masks = self._pictures()
        watchers = self._watchers(masks)
        kept, indices, thumbnails = [], [], []
        seconds, place = 0.0, Place(0, len(self.wanted))
        for views, rows in images:
            start = time.perf_counter()
            self._watch(watchers, views, place)
            seconds += time.perf_counter() - start
            if place.first < keep:
                kept.append(views[: keep - place.first])
            indices.append(rows)
            thumbnails.append(_thumbnails(views))
            place = place._replace(first=place.first + len(views))
            self.tell(self.subject.name, place.first, place.total)
        if place.first == 0:
            raise DataError(f"'{self.source.name}': none of the {place.total} images could be read.")
        self.found.seconds["shared pass"] = seconds
        start = time.perf_counter()
        for name, watcher in watchers.items():
            if name not in self.only:
                continue  # It gathers what another analysis needs.
            try:
                self.found.add(name, watcher.result())
            except HalfseenError as error:
                self.found.refuse(name, error)
        if "cka" in self.only:
            self.alignment = self.layer_means
        self.found.seconds["shared results"] = time.perf_counter() - start
        first = torch.cat(kept)
        every = torch.cat(indices).numpy()
        self.labels = torch.from_numpy(np.asarray(self.source.labels, dtype=np.int64)[every])
        shown = first[: config.shown_images]
        self.found.arrays |= {
            "images/indices": every,
            "images/labels": self.labels.numpy(),
            "images/shown": shown.permute(0, 2, 3, 1).contiguous().numpy(),
            **({} if masks is None else {"images/pixel_classes": masks[: len(shown)].to(torch.uint8).numpy()}),
            "images/thumbnails": torch.cat(thumbnails).permute(0, 2, 3, 1).contiguous().numpy(),
            "images/references": self._references(shown, masks).numpy(),
            "images/paths": np.asarray([self.source.path(int(row)) for row in every[: len(first)]], dtype=np.str_),
        }
        return first

    def _references(self, shown: Tensor, masks: Tensor | None) -> Int64[Tensor, "S 3"]:
        """Patches that similarity maps are drawn for: corner, inside and outline of an object where masks tell these.

        Without masks: the corner, the centre and the patch with the most contrast.
        """
        names, patch = self.source.mask_names if masks is not None else (), self.encoder.stride
        if masks is not None and "background" in names:
            fractions = class_fractions(patch_histogram(masks[: len(shown)], patch, len(names)))
            background = fractions[..., names.index("background")]
            if "border" in names:
                edge = fractions[..., names.index("border")]
            else:
                edge = 1 - fractions.amax(dim=-1)
            return reference_patches(torch.stack([1 - background - edge, background, edge], dim=-1))
        rows, columns = self.found.grid
        cells = patchify(shown.float(), patch)
        contrast = cells.std(dim=-1).argmax(dim=1)
        corner, centre = torch.zeros_like(contrast), torch.full_like(contrast, rows // 2 * columns + columns // 2)
        return torch.stack([corner, centre, contrast], dim=1)

    def _pictures(self) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor | None]:
        """The images, batch by batch with their places in the source, and the masks of all where there are masks."""
        size, step = self.encoder.image_size, self.config.batch_size
        if not self.source.has_masks:
            batches = evaluation_batches(
                self.source,
                self.wanted,
                size,
                step,
                resize=self.config.resize,
                crop_ratio=self.config.crop_ratio,
                interpolation=self.config.interpolation,
                workers=self.workers,
            )
            return ((batch.images, batch.indices) for batch in batches if len(batch.images)), None
        chosen = self.source.subset(self.wanted)
        data = read_resident(chosen, size, masks=True, resize="bilinear", workers=self.workers)
        rows = torch.from_numpy(self.wanted)[data.indices]
        return zip(torch.split(data.images, step), torch.split(rows, step), strict=True), data.masks

    def _watchers(self, masks: Tensor | None) -> dict[str, Watcher]:
        """One for each wanted analysis, and what others need."""
        config, encoder = self.config, self.encoder
        layer = config.embedding_layer or max(1, encoder.num_layers - 1)
        every: dict[AnalysisName, Callable[[], Watcher]] = {
            "attention": lambda: AttentionWatcher(encoder.patch_size, config.shown_images, config.queries),
            "fourier": FourierWatcher,
            "spectra": lambda: SpectrumWatcher(config.spectrum_images),
            "cka": lambda: self.layer_means,
            "geometry": GeometryWatcher,
            "similarity": lambda: SimilarityWatcher(config.shown_images),
            "embedding": lambda: EmbeddingWatcher(
                layer, encoder.num_layers, config.embedding_images, config.tsne_tokens, self.seed, config.tsne
            ),
        }
        watchers: dict[str, Watcher] = {name: make() for name, make in every.items() if name in self.only}
        if {"rank", "masking", "noise"} & set(self.only):
            watchers["rank"] = self.rank
        if "layers" in self.only:
            watchers["cka"] = self.layer_means
        if "embedding" in watchers and layer > encoder.num_layers:
            del watchers["embedding"]
            reason = f"embedding_layer: got {layer}, but this encoder has the blocks 1 to {encoder.num_layers}."
            self.found.refuse("embedding", ConfigError(reason))
        if "probe" in self.only and masks is None:
            reason = f"'{self.source.name}' has no masks, which say what a patch shows. bundled:fashion-scenes has."
            self.found.refuse("probe", DataError(reason))
        elif "probe" in self.only and masks is not None:
            classes = len(self.source.mask_names)
            labels = majority_labels(patch_histogram(masks, encoder.stride, classes))
            watchers["probe"] = ProbeWatcher(labels, classes, config.probe_epochs, config.probe_lr, self.seed)
        return watchers

    def _watch(self, watchers: dict[str, Watcher], views: Tensor, place: Place) -> None:
        """One batch through the encoder, block by block; a watcher that can't go on leaves a sentence."""

        def show(look: Callable[[Watcher], None]) -> None:
            for name, watcher in list(watchers.items()):
                try:
                    look(watcher)
                except HalfseenError as error:
                    del watchers[name]
                    self.found.refuse(name, error)

        with self._autocast():
            for view in self.encoder.block_views(self._normalised(views)):
                show(lambda watcher, view=view: watcher.block(view, place))  # type: ignore[misc]
            norm = self.encoder.final_norm
            features = Features(norm(view.tokens.prefix), norm(view.tokens.patches), view.tokens.grid)
        self.found.grid = features.grid
        show(lambda watcher: watcher.output(features, place))

    def _autocast(self) -> torch.autocast:
        half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype=half, enabled=half is not None)

    def _normalised(self, views: Tensor) -> Tensor:
        return (views.to(self.device).float() / 255 - self.mean) / self.std

    def _encode(self, images: Tensor, visible_ids: Tensor | None = None) -> Features:
        """Normalised images through the encoder, some patches dropped where `visible_ids` says so."""
        with self._autocast():
            features: Features = self.encoder(images, visible_ids=visible_ids)
        return features

    @property
    def _feature(self) -> ImageFeature:
        return "cls" if self.config.feature == "cls" and self.encoder.has_class_token else "mean"

    def _masking(self, images: Tensor) -> Found:
        """Masked queries among the whole images: agreement, neighbours, ranks, and LiDAR of the masks."""
        config = self.config
        images = images[: config.masked_images]
        whole = self.rank.features(self._feature)
        own = torch.arange(len(images))
        patches = self.found.grid[0] * self.found.grid[1]
        ratios = sorted(config.mask_ratios)
        curve, ranks, precision, learned = [], [], [], [([whole[own]], 0.0)]
        for ratio in ratios:
            draws = config.masks_per_image if ratio == ratios[-1] else 1
            masked = [self._half_seen(images, patches, ratio, draw) for draw in range(draws)]
            curve.append(torch.cat([agreement(each, whole[own]) for each in masked]))
            learned.append((masked, ratio))
            near = [retrieve(each, whole, own, self.labels, config.neighbours) for each in masked]
            ranks.append(torch.cat([each.own_rank for each in near]).double())
            precision.append(torch.cat([each.precision for each in near]).double())
            self.tell(f"{self.subject.name}: masked", len(curve), len(ratios))
        arrays: Arrays = {
            "ratios": np.asarray(ratios),
            "agreement": np.asarray([float(each.mean()) for each in curve]),
            "agreement_std": np.asarray([float(each.std()) for each in curve]),
            "own_first": np.asarray([float((each == 0).double().mean()) for each in ranks]),
            "own_rank": np.asarray([float(each.mean()) for each in ranks]),
            "precision": np.asarray([float(torch.nanmean(each)) for each in precision]),
            "nearest": torch.stack([each.nearest for each in near], dim=1).numpy(),  # [m, masks, k]
            "similarity": torch.stack([each.similarity for each in near], dim=1).numpy(),
            "shared_neighbours": shared_neighbours([each.nearest for each in near]).numpy(),
        }
        shown = images[: config.shown_images]
        places = sorted({int(place) for each in near for place in each.nearest[: len(shown)].flatten()})
        arrays["gallery_places"] = np.asarray(places, dtype=np.int64)
        arrays["gallery"] = self._read_again(places)
        hidden = [
            mask_from_ids(draw_visible(len(shown), patches, ratios[-1], self.seed, draw), patches).logical_not()
            for draw in range(config.masks_per_image)
        ]
        arrays["hidden"] = torch.stack(hidden, dim=1).numpy()  # bool [S, masks, N]
        numbers = {
            "agreement_least": float(arrays["agreement"][-1]),
            "own_first_least": float(arrays["own_first"][-1]),
            "shared_neighbours": float(arrays["shared_neighbours"].mean()),
        }
        notes = [
            f"Retrieval, not generation: {len(images)} queries among {len(whole)} whole images by the {self._feature} "
            f"feature; {ratios[-1]:.0%} of the patches dropped in {config.masks_per_image} independent masks."
        ]
        try:
            accuracies = [learned_half_seen(masked[:1], whole, self.labels) for masked, _ in learned]
        except ShapeError as error:
            notes.append(f"Without a classifier of half-seen images: {error}")
        else:
            arrays |= {
                "learned_ratios": np.asarray([ratio for _, ratio in learned]),
                "learned_accuracy": np.asarray(accuracies),
            }
            numbers |= {"learned_whole": accuracies[0], "learned_least": accuracies[-1]}
            notes.append(
                f"Classifiers learned from {len(images)} half-seen images, measured on {len(whole) - len(images)} "
                "whole ones: a quick look. `halfseen logistic --mask` follows MSN's protocol."
            )
        if config.masks_per_image > 1:
            numbers["lidar"] = lidar(torch.stack(masked, dim=1))
            notes.append(
                f"LiDAR: {len(images)} images are the classes, {config.masks_per_image} masks of each the samples, so "
                f"it is at most {min(len(images) - 1, whole.shape[1])}: compare equal settings only."
            )
        return Found(arrays, numbers, tuple(notes))

    def _half_seen(self, images: Tensor, patches: int, ratio: float, draw: int) -> Float[Tensor, "m D"]:
        """Features of images of which only some patches enter the encoder."""
        visible = draw_visible(len(images), patches, ratio, self.seed, draw).to(self.device)
        step = self.config.batch_size
        batches = zip(torch.split(images, step), torch.split(visible, step), strict=True)
        found = [self._encode(self._normalised(views), ids) for views, ids in batches]
        return torch.cat([image_feature(each, self._feature).cpu() for each in found])

    def _read_again(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """Pictures uint8 [p, S, S, 3] of analysed images, by their places among them."""
        rows = self.found.arrays["images/indices"][list(places)]
        size, config = min(self.encoder.image_size, NEIGHBOUR), self.config
        resize = "squash" if self.source.has_masks else config.resize
        batches = evaluation_batches(
            self.source, rows, size, max(1, len(rows)), resize=resize, crop_ratio=config.crop_ratio
        )
        return torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).contiguous().numpy()

    def _noise(self, images: Tensor) -> Found:
        """Band-limited noise on the first images: what becomes of their features, and of the class nearest to them."""
        config = self.config
        images = images[: config.noise_images]
        own, size = len(images), self.encoder.image_size
        features = self.rank.features(self._feature)
        frequencies = [tenth * math.pi / 10 for tenth in range(1, 10)]
        noise = sign_noise(own, size, config.noise_eps, torch_generator(self.seed, "analysis noise"))
        clean = nearest_class(features[own:], self.labels[own:], features[:own])
        labels = self.labels[:own]
        kept, accuracy = [], []
        for frequency in frequencies:
            band = band_noise(noise, frequency, config.noise_half_width)
            batches = zip(torch.split(images, config.batch_size), torch.split(band, config.batch_size), strict=True)
            noisy = torch.cat(
                [
                    image_feature(self._encode(self._normalised(views) + part.to(self.device)), self._feature).cpu()
                    for views, part in batches
                ]
            )
            kept.append(float(agreement(noisy, features[:own]).mean()))
            if clean is not None:
                found = nearest_class(features[own:], self.labels[own:], noisy)
                accuracy.append(math.nan if found is None else _share(found, labels))
            self.tell(f"{self.subject.name}: noise", len(kept), len(frequencies))
        arrays: Arrays = {"frequencies": np.asarray(frequencies), "agreement": np.asarray(kept)}
        numbers = {"noise_agreement_low": kept[0], "noise_agreement_high": kept[-1]}
        notes = [f"Images with noise: {own}, its size {config.noise_eps:g} before its band is cut out."]
        if clean is None:
            notes.append("Without accuracies: they need labels, and more images than get noise.")
        else:
            arrays["accuracy_change"] = np.asarray(accuracy) - _share(clean, labels)
            arrays["clean_accuracy"] = np.asarray(_share(clean, labels))
            notes.append(
                f"Accuracy: nearest class mean of the other {len(features) - own} images, "
                f"{_share(clean, labels):.1%} without noise."
            )
        return Found(arrays, numbers, tuple(notes))

    def _reconstruction(self, images: Tensor) -> Found:
        """PSNR and SSIM of the method's predictions by both conventions, and how far hidden pixels are from seen ones.

        Raises:
            ConfigError: no method, or one that predicts no pixels.
        """
        method, config = self.subject.method, self.config
        if method is None:
            raise ConfigError("only a run whose method predicts pixels has reconstructions (MAE, SimMIM, KAMIM ...).")
        trained_at = method.encoders()["student"].image_size
        if trained_at != self.encoder.image_size:
            raise ConfigError(
                f"the method reconstructs images of {trained_at} pixels, the encoder was loaded for "
                f"{self.encoder.image_size}. Leave --image-size out."
            )
        images = images[: config.reconstruction_images]
        ways: tuple[tuple[Space, Region], ...] = (
            ("normalized", "all"),
            ("pixel", "all"),
            ("pixel", "masked"),
            ("pixel", "composite"),
        )
        scores = {way: Fidelity(*way) for way in ways}
        method.to(self.device).eval()
        distances, pictures = [], []
        note = ""
        for number, views in enumerate(torch.split(images, config.batch_size)):
            made = method.reconstruct(self._normalised(views), stream_seed(self.seed, "reconstruction", number))
            if made is None:
                raise ConfigError(f"'{method.name}' as it was trained here predicts no pixels.")
            hidden, note = made.pixel_mask, made.note
            target, guess = (self._pixels(x) for x in (made.images, made.prediction))
            for (space, _), score in scores.items():
                pair = (guess, target) if space == "pixel" else (made.prediction, made.images)
                score.update(*pair, hidden)
            distances.append(average_distance(hidden) * float(hidden.sum()))
            pictures.append((target, guess.clamp(0, 1), hidden))
            self.tell(f"{self.subject.name}: reconstructions", number + 1, -(-len(images) // config.batch_size))
        target, guess, hidden = (torch.cat(parts)[: config.shown_images].cpu() for parts in zip(*pictures, strict=True))
        arrays: Arrays = {
            "original": _bytes(target),
            "predicted": _bytes(guess),
            "hidden": hidden[:, 0].numpy(),
        }
        count = sum(float(each[2].sum()) for each in pictures)
        numbers = {"average_distance": sum(distances) / count}
        for (space, region), score in scores.items():
            found = score.result()
            numbers |= {f"psnr_{space}_{region}": found.psnr, f"ssim_{space}_{region}": found.ssim}
        notes = (
            f"Images: {len(images)}. normalized_all is KAMIM's convention: whole predictions in the network's space, "
            f"SSIM relative to the range of each batch of {config.batch_size}. pixel_*: range 1, predictions clipped; "
            "composite: visible patches pasted from the input.",
            note,
        )
        return Found(arrays, numbers, notes)

    def _pixels(self, normalised: Tensor) -> Tensor:
        return normalised.float() * self.std + self.mean


def _between(
    results: Sequence[EncoderAnalysis], alignments: Sequence[AlignmentWatcher | None]
) -> tuple[Arrays, list[str]]:
    """CKA of every pair of encoders, "first|second/array"."""
    arrays: Arrays = {}
    notes = []
    for (i, ours), (j, theirs) in itertools.combinations(enumerate(alignments), 2):
        if ours is None or theirs is None:
            continue
        names = f"{results[i].subject.name}|{results[j].subject.name}"
        try:
            found = align(ours, theirs)
        except HalfseenError as error:
            notes.append(f"{names}: {error}")
            continue
        arrays |= {f"{names}/{key}": array for key, array in found.arrays.items()}
        notes += [f"{names}: {note}" for note in found.notes]
    return arrays, notes


def _sizes_note(results: Sequence[EncoderAnalysis]) -> list[str]:
    """What to know where encoders cut images in different ways."""
    sizes = {(each.subject.encoder.image_size, each.subject.encoder.stride) for each in results}
    if len(sizes) < 2:
        return []
    cuts = "; ".join(
        f"{each.subject.name}: {each.subject.encoder.image_size} px in tokens of {each.subject.encoder.stride} px"
        for each in results
    )
    return [
        f"The encoders cut images in different ways ({cuts}). Distances in pixels and frequencies relative to the "
        "highest can be compared; token by token, nothing can."
    ]


def _share(found: Tensor, labels: Tensor) -> float:
    """Of images with a label, those that got it."""
    known = labels >= 0
    return float((found[known] == labels[known]).double().mean())


def _thumbnails(views: UInt8[Tensor, "B 3 S S"]) -> UInt8[Tensor, "B 3 t t"]:
    """Pictures small enough to keep of every image."""
    side = min(views.shape[-1], THUMBNAIL)
    small: Tensor = functional.resize(views, [side, side], antialias=True)
    return small


def _bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3]."""
    found: NDArray[np.uint8] = (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return found


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """The file appears whole or not at all."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    beside.replace(path)

"""Passes of their own, over some of the images: half-seen ones, noisy ones, reconstructions."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from halfseen.analysis.fidelity import Fidelity, Region, Space
from halfseen.analysis.look import Look
from halfseen.analysis.masked_views import agreement, draw_visible, learned_half_seen, retrieve, shared_neighbours
from halfseen.analysis.reconstruct import to_uint8
from halfseen.analysis.robustness import band_noise, nearest_class, sign_noise
from halfseen.analysis.watchers.base import Arrays, Found, image_feature
from halfseen.data.loader import evaluation_batches
from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.effective_rank import lidar
from halfseen.ops.mask_distance import average_distance
from halfseen.ops.patches import mask_from_ids
from halfseen.ops.randomness import stream_seed, torch_generator

NEIGHBOUR = 128
"""Largest side in pixels at which neighbours are shown."""


def masking(look: Look, images: Tensor) -> Found:
    """Masked queries among the whole images: agreement, neighbours, ranks, and LiDAR of the masks."""
    config = look.config
    images = images[: config.masked_images]
    whole = look.rank.features(look.feature)
    own = torch.arange(len(images))
    patches = look.found.grid[0] * look.found.grid[1]
    ratios = sorted(config.mask_ratios)
    curve, ranks, precision, learned = [], [], [], [([whole[own]], 0.0)]
    for ratio in ratios:
        draws = config.masks_per_image if ratio == ratios[-1] else 1
        masked = [_half_seen(look, images, patches, ratio, draw) for draw in range(draws)]
        curve.append(torch.cat([agreement(each, whole[own]) for each in masked]))
        learned.append((masked, ratio))
        near = [retrieve(each, whole, own, look.labels, config.neighbours) for each in masked]
        ranks.append(torch.cat([each.own_rank for each in near]).double())
        precision.append(torch.cat([each.precision for each in near]).double())
        look.tell(f"{look.subject.name}: masked", len(curve), len(ratios))
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
    arrays["gallery"] = _read_again(look, places)
    hidden = [
        mask_from_ids(draw_visible(len(shown), patches, ratios[-1], look.seed, draw), patches).logical_not()
        for draw in range(config.masks_per_image)
    ]
    arrays["hidden"] = torch.stack(hidden, dim=1).numpy()  # bool [S, masks, N]
    numbers = {
        "agreement_least": float(arrays["agreement"][-1]),
        "own_first_least": float(arrays["own_first"][-1]),
        "shared_neighbours": float(arrays["shared_neighbours"].mean()),
    }
    notes = [
        f"Retrieval, not generation: {len(images)} queries among {len(whole)} whole images by the {look.feature} "
        f"feature; {ratios[-1]:.0%} of the patches dropped in {config.masks_per_image} independent masks."
    ]
    try:
        accuracies = [learned_half_seen(masked[:1], whole, look.labels) for masked, _ in learned]
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


def _half_seen(look: Look, images: Tensor, patches: int, ratio: float, draw: int) -> Float[Tensor, "m D"]:
    """Features of images of which only some patches enter the encoder."""
    visible = draw_visible(len(images), patches, ratio, look.seed, draw).to(look.device)
    step = look.config.batch_size
    batches = zip(torch.split(images, step), torch.split(visible, step), strict=True)
    found = [look.encode(look.normalised(views), ids) for views, ids in batches]
    return torch.cat([image_feature(each, look.feature).cpu() for each in found])


def _read_again(look: Look, places: Sequence[int]) -> NDArray[np.uint8]:
    """Pictures uint8 [p, S, S, 3] of analysed images, by their places among them."""
    rows = look.found.arrays["images/indices"][list(places)]
    size, config = min(look.encoder.image_size, NEIGHBOUR), look.config
    resize = "squash" if look.source.has_masks else config.resize
    batches = evaluation_batches(
        look.source, rows, size, max(1, len(rows)), resize=resize, crop_ratio=config.crop_ratio
    )
    return torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).contiguous().numpy()


def noise(look: Look, images: Tensor) -> Found:
    """Band-limited noise on the first images: what becomes of their features, and of the class nearest to them."""
    config = look.config
    images = images[: config.noise_images]
    own, size = len(images), look.encoder.image_size
    features = look.rank.features(look.feature)
    frequencies = [tenth * math.pi / 10 for tenth in range(1, 10)]
    noise = sign_noise(own, size, config.noise_eps, torch_generator(look.seed, "analysis noise"))
    clean = nearest_class(features[own:], look.labels[own:], features[:own])
    labels = look.labels[:own]
    kept, accuracy = [], []
    for frequency in frequencies:
        band = band_noise(noise, frequency, config.noise_half_width)
        batches = zip(torch.split(images, config.batch_size), torch.split(band, config.batch_size), strict=True)
        noisy = torch.cat(
            [
                image_feature(look.encode(look.normalised(views) + part.to(look.device)), look.feature).cpu()
                for views, part in batches
            ]
        )
        kept.append(float(agreement(noisy, features[:own]).mean()))
        if clean is not None:
            found = nearest_class(features[own:], look.labels[own:], noisy)
            accuracy.append(math.nan if found is None else _share(found, labels))
        look.tell(f"{look.subject.name}: noise", len(kept), len(frequencies))
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


def reconstruction(look: Look, images: Tensor) -> Found:
    """PSNR and SSIM of the method's predictions by both conventions, and how far hidden pixels are from seen ones.

    Raises:
        ConfigError: no method, or one that predicts no pixels.
    """
    method, config = look.subject.method, look.config
    if method is None:
        raise ConfigError("only a run whose method predicts pixels has reconstructions (MAE, SimMIM, KAMIM ...).")
    trained_at = method.encoders()["student"].image_size
    if trained_at != look.encoder.image_size:
        raise ConfigError(
            f"the method reconstructs images of {trained_at} pixels, the encoder was loaded for "
            f"{look.encoder.image_size}. Leave --image-size out."
        )
    images = images[: config.reconstruction_images]
    ways: tuple[tuple[Space, Region], ...] = (
        ("normalized", "all"),
        ("pixel", "all"),
        ("pixel", "masked"),
        ("pixel", "composite"),
    )
    scores = {way: Fidelity(*way) for way in ways}
    method.to(look.device).eval()
    distances, pictures = [], []
    note = ""
    for number, views in enumerate(torch.split(images, config.batch_size)):
        made = method.reconstruct(look.normalised(views), stream_seed(look.seed, "reconstruction", number))
        if made is None:
            raise ConfigError(f"'{method.name}' as it was trained here predicts no pixels.")
        hidden, note = made.pixel_mask, made.note
        target, guess = (look.pixels(x) for x in (made.images, made.prediction))
        for (space, _), score in scores.items():
            pair = (guess, target) if space == "pixel" else (made.prediction, made.images)
            score.update(*pair, hidden)
        distances.append(average_distance(hidden) * float(hidden.sum()))
        pictures.append((target, guess.clamp(0, 1), hidden))
        look.tell(f"{look.subject.name}: reconstructions", number + 1, -(-len(images) // config.batch_size))
    target, guess, hidden = (torch.cat(parts)[: config.shown_images].cpu() for parts in zip(*pictures, strict=True))
    arrays: Arrays = {
        "original": to_uint8(target),
        "predicted": to_uint8(guess),
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


def _share(found: Tensor, labels: Tensor) -> float:
    """Of images with a label, those that got it."""
    known = labels >= 0
    return float((found[known] == labels[known]).double().mean())

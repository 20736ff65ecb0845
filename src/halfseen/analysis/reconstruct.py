"""Pictures of what a method predicts for the patches it can't see, and how far off they are.

Computes and writes arrays (`reconstruction.npz`); drawing them is the business of `reports`. Everything is shown in
pixel space: normalisation undone, clipped to [0, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from halfseen.data.loader import evaluation_batches
from halfseen.data.sources import Source
from halfseen.errors import DataError, ShapeError
from halfseen.methods.base import Method
from halfseen.types import Reconstruction

FILE_NAME = "reconstruction.npz"
HIDDEN_GREY = 0.5
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5

Pictures = NDArray[np.uint8]
Numbers = NDArray[np.float64]


class ReconstructionSet(NamedTuple):
    """Reconstructions of B images at M mask ratios.

    Attributes:
        original: uint8 [B, H, W, 3].
        masked: uint8 [M, B, H, W, 3], hidden pixels grey.
        predicted: uint8 [M, B, H, W, 3], the whole predicted picture; where a method predicts hidden pixels only, the
            rest is what it put there.
        pasted: uint8 [M, B, H, W, 3], the prediction where pixels were hidden, the original elsewhere.
        hidden_share: float64 [M], share of hidden pixels.
        psnr_hidden, psnr_whole: float64 [M, B], dB at range 1: prediction on the hidden pixels; pasted picture, whole.
        ssim_hidden, ssim_whole: float64 [M, B] of the pasted picture: where hidden; everywhere. NaN below 11 pixels.
        indices: int64 [B], positions in the source.
        paths: where the images come from.
        note: the method's caption.
    """

    original: Pictures
    masked: Pictures
    predicted: Pictures
    pasted: Pictures
    hidden_share: Numbers
    psnr_hidden: Numbers
    psnr_whole: Numbers
    ssim_hidden: Numbers
    ssim_whole: Numbers
    indices: NDArray[np.int64]
    paths: tuple[str, ...]
    note: str

    def write(self, folder: Path) -> Path:
        """Write `<folder>/reconstruction.npz`; plain arrays, readable without this library."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        with path.open("wb") as file:
            arrays = {name: np.asarray(value) for name, value in self._asdict().items()}
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return path


def reconstruct_images(
    method: Method,
    source: Source,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    crop_ratio: float = 0.875,
    count: int = 8,
    indices: Sequence[int] | None = None,
    mask_ratios: Sequence[float | None] = (None,),
    seed: int = 0,
    device: str = "cpu",
) -> ReconstructionSet | None:
    """Let a method reconstruct fixed images; the same arguments always show the same images and masks.

    Args:
        mean, std: what the method's images are normalised with, per colour, on the scale 0 to 1.
        count: how many images, spread over the classes; `indices` names them instead.
        mask_ratios: one set of pictures for each; None = the method's own ratio.
    Returns:
        None where the method predicts no pixels.
    Raises:
        DataError: if none of the images can be read.
    """
    wanted = spread_indices(source, count) if indices is None else np.asarray(indices, dtype=np.int64)
    images, found = _read(source, wanted, image_size, crop_ratio)
    centre, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    normalised = ((images - centre) / scale).to(device)
    was_training = method.training
    method.to(device).eval()
    shown, notes = [], []
    with torch.inference_mode():
        for mask_ratio in mask_ratios:
            reconstruction = method.reconstruct(normalised, seed, mask_ratio)
            if reconstruction is None:
                method.train(was_training)
                return None
            shown.append(_show(reconstruction, centre, scale))
            notes.append(reconstruction.note)
    method.train(was_training)
    stacked = {name: np.stack([each[name] for each in shown]) for name in shown[0]}
    return ReconstructionSet(
        original=to_uint8(images),
        **stacked,
        indices=found,
        paths=tuple(source.path(int(index)) for index in found),
        note=notes[0],
    )


def spread_indices(source: Source, count: int) -> NDArray[np.int64]:
    """`count` rows of a source: the classes in turn, the first images of each; evenly spaced where there are none."""
    count = min(count, len(source))
    labels = np.asarray(source.labels)
    classes = [label for label in np.unique(labels) if label >= 0]
    if not classes:
        return np.linspace(0, len(source) - 1, count).round().astype(np.int64)
    members = [np.flatnonzero(labels == label) for label in classes]
    turns = [rows[turn] for turn in range(max(map(len, members))) for rows in members if turn < len(rows)]
    return np.asarray(turns[:count], dtype=np.int64)


def psnr(
    prediction: Float[Tensor, "B C H W"],
    target: Float[Tensor, "B C H W"],
    data_range: float = 1.0,
    where: Bool[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(range^2 / MSE), the mean taken over `where`.

    Infinite for equal images, NaN where `where` is empty.
    """
    squared = (prediction.double() - target.double()).square()
    if where is None:
        error = squared.flatten(1).mean(dim=1)
    else:
        weight = where.double().expand_as(squared)
        error = (squared * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1)
    return (10 * torch.log10(data_range**2 / error)).float()


def ssim_map(
    prediction: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], data_range: float = 1.0
) -> Float[Tensor, "B h w"]:
    """Structural similarity at every pixel whose 11 x 11 Gaussian window (sigma 1.5) lies inside, mean over colours.

    The map is 5 pixels smaller on each side; its mean is the image's SSIM.

    Raises:
        ShapeError: sides below 11 pixels.
    Source: Wang et al., Image quality assessment, 2004; k1 0.01, k2 0.03, biased variances.
    """
    if min(target.shape[-2:]) < SSIM_WINDOW:
        raise ShapeError(f"SSIM needs sides of at least {SSIM_WINDOW} pixels, got {tuple(target.shape[-2:])}.")
    x, y = prediction.double(), target.double()
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y])).unbind(0)
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean(dim=1).float()


def _blur(stack: Tensor) -> Tensor:
    """Gaussian window, without padding, over the last two axes."""
    offsets = torch.arange(SSIM_WINDOW, dtype=stack.dtype, device=stack.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    planes = stack.reshape(-1, 1, *stack.shape[-2:])
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.reshape(*stack.shape[:-2], *planes.shape[-2:])


def _read(
    source: Source, wanted: NDArray[np.int64], image_size: int, crop_ratio: float
) -> tuple[Tensor, NDArray[np.int64]]:
    """Images float32 [B, 3, S, S] in [0, 1] and their rows; those that can't be read are left out."""
    images, rows = [], []
    for batch in evaluation_batches(source, wanted, image_size, len(wanted), crop_ratio=crop_ratio):
        images.append(batch.images.float() / 255)
        rows.append(batch.indices.numpy())
    if not sum(map(len, rows)):
        raise DataError(f"'{source.name}': none of the images to reconstruct could be read.")
    return torch.cat(images), np.concatenate(rows)


def _show(reconstruction: Reconstruction, mean: Tensor, std: Tensor) -> dict[str, np.ndarray]:
    images = (reconstruction.images.cpu().float() * std + mean).clamp(0, 1)
    prediction = (reconstruction.prediction.cpu().float() * std + mean).clamp(0, 1)
    hidden = reconstruction.pixel_mask.cpu()
    pasted = torch.where(hidden, prediction, images)
    shown = {
        "masked": to_uint8(torch.where(hidden, torch.full_like(images, HIDDEN_GREY), images)),
        "predicted": to_uint8(prediction),
        "pasted": to_uint8(pasted),
        "hidden_share": hidden.double().mean().numpy(),
        "psnr_hidden": psnr(prediction, images, where=hidden).double().numpy(),
        "psnr_whole": psnr(pasted, images).double().numpy(),
    }
    return shown | _ssim(pasted, images, hidden)


def _ssim(pasted: Tensor, images: Tensor, hidden: Tensor) -> dict[str, np.ndarray]:
    if min(images.shape[-2:]) < SSIM_WINDOW:
        nothing = np.full(len(images), np.nan)
        return {"ssim_hidden": nothing, "ssim_whole": nothing}
    similarity = ssim_map(pasted, images).double()
    edge = SSIM_WINDOW // 2
    inside = hidden[:, 0, edge:-edge, edge:-edge].double()
    where_hidden = (similarity * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)
    return {"ssim_hidden": where_hidden.numpy(), "ssim_whole": similarity.flatten(1).mean(dim=1).numpy()}


def to_uint8(images: Tensor) -> Pictures:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3]."""
    pixels: Pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels

"""A small data set that stays on the device: images and masks at their final size, as uint8, read once.

6000 images of 128 pixels with masks weigh 0.4 GB. A batch is then a few indexed rows, flipped and recoloured there: no
worker, no copy from the host, and fifty epochs that read no file.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from halfseen.data.decode import BadImage
from halfseen.data.loader import Job, Stack, run_jobs, stack_images
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import Source
from halfseen.data.transforms import deterministic_view
from halfseen.errors import DataError
from halfseen.ops.randomness import numpy_generator
from halfseen.types import Batch, SkippedFile

ResidentResize = Literal["nearest", "bilinear"]

IMAGES_PER_JOB = 32


class Resident(NamedTuple):
    """Images on a device.

    Attributes:
        images: uint8 [n, 3, S, S].
        masks: uint8 [n, S, S], class of each pixel; None if they weren't asked for.
        labels: int64 [n], class of each image or -1.
        indices: int64 [n], positions in the source, on the CPU.
        skipped: files that couldn't be read and are left out.
    """

    images: UInt8[Tensor, "n 3 S S"]
    masks: UInt8[Tensor, "n S S"] | None
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]
    skipped: tuple[SkippedFile, ...]

    def take(self, rows: Int64[Tensor, " m"]) -> "Resident":
        """Some of them, in the order of `rows` (on the CPU)."""
        there = rows.to(self.images.device)
        masks = None if self.masks is None else self.masks[there]
        return Resident(self.images[there], masks, self.labels[there], self.indices[rows], self.skipped)


class ResidentAugmentation(NamedTuple):
    """Random changes of an image together with its mask: first the flip, then the contrast.

    Attributes:
        flip: probability of a horizontal flip of image and mask.
        contrast: the factor is uniform in [max(0, 1 - contrast), 1 + contrast]; the image only.
        frozen: draw once per image, the same in every epoch (ViNy's original keeps its transformed images in a list);
            False draws anew in every epoch.
    """

    flip: float = 0.5
    contrast: float = 0.3
    frozen: bool = True


def read_resident(
    source: Source,
    image_size: int,
    *,
    masks: bool,
    resize: ResidentResize = "nearest",
    device: str = "cpu",
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Resident:
    """All images of a source, squashed to a square and put on the device.

    Args:
        source: the images.
        image_size: side of the square; the aspect ratio is not kept.
        masks: read masks too; they are always resized to the nearest pixel, with the image's own rule.
        resize: "nearest" takes single pixels as torch's `interpolate` does; "bilinear" has the full support (Pillow).
        device: where they stay.
        workers: processes that read.
        on_progress: called with (images read, all).
    Raises:
        DataError: no image can be read; a mask is missing, of another size than its image, or has unknown classes.
    """
    worker = _Reader(source, image_size, masks, resize)
    count = len(source)
    jobs = (Job(0, np.arange(at, min(at + IMAGES_PER_JOB, count))) for at in range(0, count, IMAGES_PER_JOB))
    job_bytes = IMAGES_PER_JOB * (4 if masks else 3) * image_size**2
    parts: list[Batch] = []
    read = 0
    with contextlib.closing(run_jobs(worker, jobs, job_bytes, workers)) as results:
        for batch in results:
            parts.append(batch.to(device))
            read += len(batch.index) + len(batch.skipped)
            if on_progress is not None:
                on_progress(read, count)
    skipped = tuple(file for part in parts for file in part.skipped)
    if len(skipped) == count:
        reason = f", the first for this reason: {skipped[0].reason}" if skipped else ""
        raise DataError(f"data.source: none of the {count} images of '{source.name}' can be read{reason}.")
    return Resident(
        torch.cat([part.views[0] for part in parts]),
        torch.cat([part.extras["mask"] for part in parts]) if masks else None,
        torch.cat([part.labels for part in parts]),
        torch.cat([part.index for part in parts]).cpu(),
        skipped,
    )


class _Reader(NamedTuple):
    """Does jobs of `run_jobs`; pickled to the worker processes."""

    source: Source
    image_size: int
    masks: bool
    resize: ResidentResize

    def __call__(self, job: Job) -> Stack:
        size = self.image_size
        images: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        kept: list[int] = []
        skipped: list[SkippedFile] = []
        for index in job.indices.tolist():
            try:
                image, mask = self.source.read_with_mask(index) if self.masks else (self.source.read(index), None)
            except BadImage as fault:
                skipped.append(SkippedFile(index, self.source.path(index), fault.reason, None))
                continue
            if self.resize == "nearest":
                images.append(resize_nearest(image, size))
            else:
                images.append(deterministic_view(image, size, "squash", interpolation="bilinear"))
            if mask is not None:
                masks.append(resize_nearest(mask[:, :, None], size)[:, :, 0])
            kept.append(index)
        rows = np.array(kept, dtype=np.int64)
        stacked = np.stack(masks) if masks else np.empty((0, size, size), np.uint8)
        return Stack(
            views=(stack_images(images) if images else np.empty((0, 3, size, size), np.uint8),),
            indices=rows,
            labels=np.asarray(self.source.labels[rows], dtype=np.int64),
            extras={"mask": stacked} if self.masks else {},
            skipped=tuple(skipped),
        )


def resize_nearest(image: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "size size C"]:
    """Single pixels of the image: row i comes from row floor(i * H / size), as torch's `interpolate` rounds it.

    torch takes the scale in float32, so that a few pairs of sizes (112 -> 96) are a row off the exact quotient.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    resized: np.ndarray = F.interpolate(pixels, size=(size, size), mode="nearest")[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(resized)


def draw_augmentation(
    augmentation: ResidentAugmentation, count: int, seed: int, epoch: int
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Whether each of `count` images is flipped, and its factor of contrast, in the epoch: a function of (seed, epoch,
    position), the same in every epoch for frozen ones."""
    generator = numpy_generator(seed, "resident", 0 if augmentation.frozen else epoch)
    draws = generator.random((count, 2))
    low = max(0.0, 1.0 - augmentation.contrast)
    factors = low + (1.0 + augmentation.contrast - low) * draws[:, 1]
    return torch.from_numpy(draws[:, 0] < augmentation.flip), torch.from_numpy(factors.astype(np.float32))


def augment(
    images: UInt8[Tensor, "n 3 S S"], flip: Bool[Tensor, " n"], factors: Float[Tensor, " n"]
) -> UInt8[Tensor, "n 3 S S"]:
    """Flipped and with their contrast changed, rounded to whole levels.

    The contrast is torchvision's: a mix of the image and the mean of its grey version, cut to the range.
    """
    pixels = flip_some(images, flip).float()
    luma = pixels.new_tensor([0.2989, 0.587, 0.114])
    mean = torch.einsum("nchw,c->nhw", pixels, luma).mean(dim=(1, 2))[:, None, None, None]
    scale = factors[:, None, None, None]
    return (scale * pixels + (1.0 - scale) * mean).clamp(0, 255).round().to(torch.uint8)


def flip_some(pictures: UInt8[Tensor, "n *rest"], flip: Bool[Tensor, " n"]) -> UInt8[Tensor, "n *rest"]:
    """Mirrored left-right where `flip` says so."""
    return torch.where(flip.reshape(-1, *[1] * (pictures.ndim - 1)), pictures.flip(-1), pictures)


def apply_augmentation(data: Resident, augmentation: ResidentAugmentation, seed: int, epoch: int = 0) -> Resident:
    """The whole data set as it looks in an epoch, e.g. the test images of ViNy's original, which are changed too."""
    flip, factors = (
        part.to(data.images.device) for part in draw_augmentation(augmentation, len(data.labels), seed, epoch)
    )
    masks = None if data.masks is None else flip_some(data.masks, flip)
    pieces = [
        augment(data.images[at : at + 512], flip[at : at + 512], factors[at : at + 512])
        for at in range(0, len(flip), 512)
    ]
    return data._replace(images=torch.cat(pieces), masks=masks)


class ResidentLoader:
    """The batches of a run from images that stay on the device; a `StepLoader` of the engine.

    `Batch.views` has one view, `Batch.extras["mask"]` the masks if there are any, `Batch.index` positions in the data.

    Attributes:
        steps_per_epoch: updates in one pass over the data.
        wait_seconds: 0, nobody waits here.
        sampler: the images of each step.
    """

    wait_seconds = 0.0

    def __init__(
        self, data: Resident, sampler: StepSampler, seed: int, augmentation: ResidentAugmentation | None = None
    ) -> None:
        """
        Args:
            data: from `read_resident`.
            sampler: over `len(data.labels)` images.
            seed: of the augmentation.
            augmentation: None changes nothing.
        """
        self.sampler, self.steps_per_epoch = sampler, sampler.steps_per_epoch
        frozen = augmentation is not None and augmentation.frozen
        # Frozen changes are made once, not in each step.
        self._data = apply_augmentation(data, augmentation, seed) if augmentation is not None and frozen else data
        self._fresh = None if frozen else augmentation
        self._seed = seed

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """For each step of the run from `start_step` to `stop_step` - 1: its micro-batches on this process."""
        drawn: tuple[int, Tensor, Tensor] | None = None
        device = self._data.images.device
        for step in range(start_step, stop_step):
            epoch = self.sampler.epoch(step)
            if self._fresh is not None and (drawn is None or drawn[0] != epoch):
                flip, factors = draw_augmentation(self._fresh, len(self._data.labels), self._seed, epoch)
                drawn = epoch, flip.to(device), factors.to(device)
            yield [self._batch(torch.from_numpy(rows).to(device), drawn) for rows in self.sampler.micro_batches(step)]

    def _batch(self, rows: Tensor, drawn: tuple[int, Tensor, Tensor] | None) -> Batch:
        images = self._data.images[rows]
        masks = None if self._data.masks is None else self._data.masks[rows]
        if drawn is not None:
            flip, factors = drawn[1][rows], drawn[2][rows]
            images = augment(images, flip, factors)
            masks = None if masks is None else flip_some(masks, flip)
        return Batch(
            views=(images,), index=rows, labels=self._data.labels[rows], extras={} if masks is None else {"mask": masks}
        )

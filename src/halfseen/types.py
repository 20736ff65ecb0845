"""What travels between the wings of the library: what a method asks of the data, a batch, and a step's result.

Open to every module. A batch's trip: `data` cuts the views that a `ViewPlan` asks for and stacks them into a `Batch`;
the engine moves it to the device and calls the method with it and with the `Progress`; the method gives a `StepOutput`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

ViewChange = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Makes one view (uint8 [S, S, 3]) into another of the same size with the sample's own generator. Must be picklable."""

ViewExtras = Callable[[tuple[np.ndarray, ...], np.random.Generator], dict[str, np.ndarray]]
"""Computes arrays from one sample's views (each uint8 [H, W, 3]) with the sample's own generator. Must be picklable."""


@dataclass(frozen=True)
class Photometric:
    """Random changes of a view's colours and sharpness, after crop and flip, in the order of the fields.

    Attributes:
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - strength), 1 + strength].
        hue: turn of the colour circle, uniform in [-hue, hue], hue at most 0.5.
        jitter: probability of the four changes above, which then come in a random order.
        grayscale: probability that the view loses its colours.
        blur: probability of a Gaussian blur.
        blur_radius: smallest and largest standard deviation of the blur, in pixels.
        solarize: probability that all values from 128 on are inverted.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


@dataclass(frozen=True)
class ViewSpec:
    """One kind of view: a random resized crop, flipped, and recoloured where `colour` says so.

    Attributes:
        size: side of the square view, in pixels.
        count: how many views of this kind are cut from each image.
        crop_scale: smallest and largest share of the image's area that is cut out, in (0, 1].
        crop_ratio: smallest and largest width/height of the crop.
        interpolation: resampling filter.
        antialias: filter with the full support when shrinking (what Pillow does); False is plain point sampling.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        colour: changes of colour and sharpness; None makes none.
        change: what else is done to the view, last of all; None does nothing.
        crop: "random" draws until a crop fits, "clamped" draws once and cuts what sticks out of the image off, "whole"
            takes the whole image, whatever its aspect ratio, and ignores scale and ratio.
    """

    size: int
    count: int = 1
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    hflip: float = 0.5
    vflip: float = 0.0
    colour: Photometric | None = None
    change: ViewChange | None = None
    crop: Literal["random", "clamped", "whole"] = "random"


@dataclass(frozen=True)
class ViewPlan:
    """All views that a method wants of each image, in the order in which `Batch.views` carries them.

    `extras` runs on the CPU beside the views (keypoint densities, loader-side masks); its arrays are stacked into
    `Batch.extras`.
    """

    views: tuple[ViewSpec, ...]
    extras: ViewExtras | None = None


class SkippedFile(NamedTuple):
    """A file that could not be used, and the neighbour that stood in for it (None where it was left out)."""

    index: int  # type: ignore[assignment]  # tuple.index is not missed.
    path: str
    reason: str
    replaced_by: int | None


@dataclass
class Batch:
    """A stack of samples.

    Attributes:
        views: one uint8 tensor [B, 3, S, S] per view of the plan (a spec with count n gives n tensors).
        index: int64 [B], position in the source of the image that was asked for.
        labels: int64 [B], class or -1 where there is none.
        extras: what the plan's `extras` computed, stacked along the first axis.
        skipped: files of this batch that were replaced by a neighbour.
    """

    views: tuple[Tensor, ...]
    index: Tensor
    labels: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    skipped: tuple[SkippedFile, ...] = ()

    def to(self, device: str, non_blocking: bool = True) -> "Batch":
        """The same batch with its tensors on `device`."""
        return Batch(
            views=tuple(view.to(device, non_blocking=non_blocking) for view in self.views),
            index=self.index.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            extras={name: value.to(device, non_blocking=non_blocking) for name, value in self.extras.items()},
            skipped=self.skipped,
        )


@dataclass(frozen=True)
class Progress:
    """Where the run stands when a micro-batch enters the method.

    Attributes:
        step: optimiser updates done before this one, from 0.
        total_steps: updates of the whole schedule (`train.epochs` worth, even if `train.max_steps` ends earlier).
        steps_per_epoch: updates in one pass over the sampler.
        seed: the run's seed.
        row_start: position of the micro-batch's first sample within the global batch of this step; together with
            `global_batch_size` it lets every process draw the same random numbers for the same sample.
        global_batch_size: samples of one update over all processes and micro-batches.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    seed: int
    row_start: int
    global_batch_size: int

    @property
    def epoch(self) -> float:
        """Passes over the data so far, fractional."""
        return self.step / self.steps_per_epoch

    @property
    def epoch_index(self) -> int:
        """Number of the pass over the data that is under way, from 0."""
        return self.step // self.steps_per_epoch


class StepOutput(NamedTuple):
    """A method's answer to a batch.

    `loss` is the float32 [] that is differentiated (a mean over this micro-batch); `metrics` are detached float32 []
    tensors to be logged, still on the device.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


class GroupKey(NamedTuple):
    """How the optimiser treats one parameter; parameters with the same key share a group.

    With `clip=False` a parameter's gradient is neither clipped nor part of the norm.
    """

    decay: bool
    lr_scale: float = 1.0
    unit: str = ""
    clip: bool = True


class Reconstruction(NamedTuple):
    """What a method shows of its predictions; all images float32 [B, 3, H, W] in the *normalised* space of its input.

    Attributes:
        images: what the network was given (before hiding).
        prediction: the predicted picture, un-normalised per patch where the target was.
        pixel_mask: bool [B, 1, H, W], True = hidden from the encoder.
        note: one sentence for the caption, e.g. how normalised-pixel predictions were turned back into pixels.
    """

    images: Tensor
    prediction: Tensor
    pixel_mask: Tensor
    note: str

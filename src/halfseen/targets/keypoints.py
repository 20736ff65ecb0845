"""Keypoint weights: the loss counts more where hand-crafted detectors find structure (KAMIM, arXiv 2407.13873).

On the CPU, beside the views, keypoints are found on the augmented uint8 view, marked on a binary map, and averaged
over square cells; only these densities travel. On the device they become weights. OpenCV is imported where it is used
and a detector is built once per process.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from halfseen.errors import ConfigError, DataError, ShapeError
from halfseen.ops.losses import patch_weights

Detector = Literal["fast", "sift", "orb"]
Footprint = Literal["ring", "point"]
ChannelOrder = Literal["reference", "rgb"]

DENSITY_KEY = "keypoint_density"
"""Name of the densities among a batch's extras."""

_MAX_EXPONENT = 20.0

# The non-zero pixels of OpenCV's drawKeypoints for an integer position: an anti-aliased circle of radius 3 px. The
# centre stays empty.
_RING = np.array(
    [
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
    ],
    dtype=np.uint8,
)


class _KeyPoint(Protocol):
    pt: tuple[float, float]
    size: float
    angle: float
    response: float
    octave: int


class _Detector(Protocol):
    def detect(self, image: np.ndarray, mask: None) -> tuple[_KeyPoint, ...]: ...


@functools.cache
def _detector(name: Detector) -> _Detector:
    """OpenCV's detector with all its defaults, built once per process."""
    import cv2

    if name == "fast":
        return cast(_Detector, cv2.FastFeatureDetector.create())
    return cast(_Detector, cv2.SIFT.create() if name == "sift" else cv2.ORB.create())


def detector_gray(image: np.ndarray, channel_order: ChannelOrder = "reference") -> np.ndarray:
    """The gray picture that the detectors see: uint8 [H, W] from uint8 RGB [H, W, 3].

    "reference" weighs red and blue the wrong way round, as the original does by handing an RGB array to OpenCV, which
    takes it for BGR: (3735 R + 19235 G + 9798 B + 2^14) >> 15. "rgb" is the true luma.
    """
    import cv2

    # OpenCV's own conversion is this formula, bit by bit, and vectorised.
    code = cv2.COLOR_BGR2GRAY if channel_order == "reference" else cv2.COLOR_RGB2GRAY
    return cast(np.ndarray, cv2.cvtColor(np.ascontiguousarray(image), code))


def detect_keypoints(gray: np.ndarray, detector: Detector) -> np.ndarray:
    """Keypoints of uint8 [H, W] in the detector's order: float32 [K, 6] = x, y, size, angle, response, octave."""
    found = _detector(detector).detect(gray, None)
    rows = [(*point.pt, point.size, point.angle, point.response, point.octave) for point in found]
    table: np.ndarray = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return table


def keypoint_map(
    image: np.ndarray, detector: Detector, footprint: Footprint = "ring", channel_order: ChannelOrder = "reference"
) -> np.ndarray:
    """Detect keypoints on an RGB picture and mark them: uint8 [H, W] in {0, 1}.

    Args:
        image: uint8 [H, W, 3], augmented, not normalised.
        detector: "fast", "sift" or "orb", each with OpenCV's defaults.
        footprint: "ring" marks what OpenCV's drawKeypoints draws, an outline of 3 px radius whose centre stays 0 (the
            original's code); "point" marks the nearest pixel (the paper's words).
        channel_order: how colours are weighed, see `detector_gray`.
    """
    import cv2

    gray = detector_gray(image, channel_order)
    points = _detector(detector).detect(gray, None)
    marks = np.zeros(gray.shape, dtype=np.uint8)
    if not points:
        return marks
    if footprint == "ring" and detector != "fast":
        # Sub-pixel positions: the footprint depends on the sixteenth of a pixel, so OpenCV draws.
        canvas = np.zeros((*gray.shape, 3), dtype=np.uint8)
        drawn = cv2.drawKeypoints(canvas, cast(tuple[cv2.KeyPoint, ...], points), canvas, color=(255, 0, 0))
        marks[drawn[..., 0] != 0] = 1
        return marks
    where = np.rint(cv2.KeyPoint.convert(cast(tuple[cv2.KeyPoint, ...], points))).astype(np.intp)
    columns = where[:, 0].clip(0, gray.shape[1] - 1)
    rows = where[:, 1].clip(0, gray.shape[0] - 1)
    marks[rows, columns] = 1
    if footprint == "ring":
        # FAST's positions are whole pixels: the union of rings is a dilation, equal to the drawing bit by bit.
        return cast(np.ndarray, cv2.dilate(marks, _RING))
    return marks


def keypoint_density(marks: np.ndarray, cell_size: int) -> np.ndarray:
    """Share of marked pixels in each square cell: float32 [H / cell_size, W / cell_size] in [0, 1].

    Exact in float32 for the usual cell sizes (k / cell_size**2 with a power of two below).

    Raises:
        ShapeError: cells that don't divide the picture.
    """
    height, width = marks.shape
    if height % cell_size or width % cell_size:
        raise ShapeError(
            f"a keypoint map of {height}x{width} pixels can't be cut into cells of {cell_size}: both sides must be "
            "multiples of the cell size."
        )
    cells = marks.reshape(height // cell_size, cell_size, width // cell_size, cell_size)
    count: np.ndarray = cells.sum(axis=(1, 3), dtype=np.int64)
    density: np.ndarray = (count / cell_size**2).astype(np.float32)
    return density


class UniformWeight(BaseModel):
    """Every hidden pixel counts the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["uniform"] = Field(
        "uniform", description="loss weights: uniform = every hidden pixel counts the same"
    )


class KeypointWeight(BaseModel):
    """Hidden pixels count more where keypoints are dense."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["keypoints"] = Field(
        "keypoints", description="loss weights: keypoints = pixels count more where keypoints are dense (KAMIM)"
    )
    detector: Detector = Field("fast", description="keypoint detector, with OpenCV's defaults: fast, sift or orb")
    weight_patch_size: int = Field(
        8, ge=1, description="side of a weight cell in pixels, w_ps; the image side must be a multiple"
    )
    temperature: float = Field(
        0.25, gt=0, description="T: weights are exp(density / T); smaller counts keypoints more, at most exp(1 / T)"
    )
    footprint: Footprint = Field(
        "ring",
        description="pixels that a keypoint marks: ring = OpenCV's drawn circle, as the published numbers; "
        "point = the nearest pixel, as the paper's words",
    )
    channel_order: ChannelOrder = Field(
        "reference",
        description="gray picture for the detector: reference = red and blue exchanged, as the original; rgb = luma",
    )
    normalize_weights: Literal["none", "mean"] = Field(
        "none", description="divide the weights of an image by nothing (original) or by their mean"
    )

    def extras(self, image_size: int, key: str) -> "KeypointDensity":
        """What the loader must compute for square views of `image_size` pixels; `key` names this setting in errors.

        Raises:
            ConfigError: cells that don't divide the image.
        """
        if image_size % self.weight_patch_size:
            fitting = [size for size in range(4, image_size + 1) if image_size % size == 0]
            raise ConfigError(
                f"{key}.weight_patch_size: {self.weight_patch_size} px cells don't divide the image side of "
                f"{image_size} px. Cells that fit: {', '.join(map(str, fitting))}."
            )
        return KeypointDensity(self.detector, self.weight_patch_size, self.footprint, self.channel_order)

    def of_patches(self, extras: Mapping[str, Tensor], patch_size: int) -> Float[Tensor, "B N k k"]:
        """The weights of a batch, cell by cell within patches of `patch_size` pixels.

        Raises:
            DataError: a batch that came without keypoint densities.
        """
        if DENSITY_KEY not in extras:
            raise DataError(
                f"the batch has no '{DENSITY_KEY}'. Load it with the method's own view plan, or choose "
                "loss_weight.kind=uniform."
            )
        cells = keypoint_weights(extras[DENSITY_KEY], self.temperature, self.normalize_weights)
        return patch_weights(cells, self.weight_patch_size, patch_size)


LossWeight = Annotated[UniformWeight | KeypointWeight, Field(discriminator="kind")]
"""How much each hidden pixel counts in a pixel loss: a part that SimMIM and MAE can use alike."""


@dataclass(frozen=True)
class KeypointDensity:
    """What the loader computes beside the views: the densities of the first view, under `DENSITY_KEY`.

    Attributes:
        detector: which keypoints.
        cell_size: side of a cell in pixels (the paper's w_ps).
        footprint: see `keypoint_map`.
        channel_order: see `detector_gray`.
    """

    detector: Detector
    cell_size: int
    footprint: Footprint = "ring"
    channel_order: ChannelOrder = "reference"

    def __call__(self, views: tuple[np.ndarray, ...], generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Densities of `views[0]`, uint8 [H, W, 3]; the generator is not needed, detection is deterministic."""
        marks = keypoint_map(views[0], self.detector, self.footprint, self.channel_order)
        return {DENSITY_KEY: keypoint_density(marks, self.cell_size)}


def keypoint_weights(
    density: Float[Tensor, "B h w"], temperature: float, normalize: Literal["none", "mean"] = "none"
) -> Float[Tensor, "B h w"]:
    """Loss weights of the cells: exp(clip(d / T, -20, 20)) over its minimum in the same image, so at least 1.

    Args:
        density: in [0, 1].
        temperature: T > 0; smaller weighs keypoints more. The largest possible weight is exp(1 / T).
        normalize: "none" as published; "mean" divides by the image's mean weight, which keeps the loss at SimMIM's
            scale.
    Source: KAMIM, arXiv 2407.13873 (official code).
    """
    with torch.autocast(density.device.type, enabled=False):
        scores = (density.float() / temperature).clamp(-_MAX_EXPONENT, _MAX_EXPONENT).exp()
        weights = scores / scores.amin(dim=(1, 2), keepdim=True)
        if normalize == "mean":
            weights = weights / weights.mean(dim=(1, 2), keepdim=True)
        return weights

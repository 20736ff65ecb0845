"""Settings that nobody wrote: those of a method, and those chosen for somebody's own images when no recipe is named.

ImageNet recipes copied to a small folder fail silently: too few updates, patches as large as the objects. Here the
side, the patch, the batch and the length follow from the pictures' sizes, their number and the device, on top of the
method's `_small` recipe. Each choice is written into the run's config.yaml as "chosen for this data".
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from halfseen.config.yaml_text import Settings
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.data.sources import BadImage, Source
from halfseen.ops.randomness import numpy_generator

LOOKED_AT = 48
"""Images whose sizes are looked at."""
TARGET_STEPS = 3000
"""Updates that a small run should get on a CPU; an accelerator gets ten times as many."""
FEWEST_STEPS_PER_EPOCH = 20


POSITION_RULES: Mapping[str, str] = {"ibot": "scale_offset", "msn": "scale"}
"""How the originals resize positions to small crops; the other methods see one size, as MAE."""


def settings_of_method(method: str, model: str) -> Settings:
    """Nested settings of the encoder that belong to a method, weaker than all that is written anywhere.

    Args:
        method: value of `method.name`.
        model: value of `model.name`; a Swin has no positions to resize.
    """
    rule = POSITION_RULES.get(method)
    return {} if rule is None or model.startswith("swin") else {"model": {"position_rule": rule}}


class Geometry(NamedTuple):
    """Sides in pixels: of the views, of the patches, of SimMIM's mask cells."""

    image_size: int
    patch_size: int
    mask_cell_size: int


def typical_side(source: Source) -> int:
    """Median shorter side, in pixels, of a few images of the source; files are not decoded for it.

    Unreadable ones are passed over; with none readable the answer is 224 (the data check names the trouble).
    """
    rows = numpy_generator(0, "sizes").permutation(len(source))[:LOOKED_AT]
    sides = []
    for row in rows:
        try:
            sides.append(source.shorter_side(int(row)))
        except BadImage:
            continue
    return int(np.median(sides)) if sides else 224


def geometry(side: int, accelerated: bool) -> Geometry:
    """View, patch and cell sizes for pictures of this shorter side: never enlarged by much, at least 7 patches a side.

    On a CPU large pictures are seen at 96 px, where a run takes minutes; with an accelerator at 224 px.
    """
    if side < 56:
        return Geometry(max(16, min(48, side // 4 * 4)), 4, 4)
    if side < 88:
        return Geometry(64, 8, 8)
    if side < 180 or not accelerated:
        return Geometry(96, 8, 16)
    return Geometry(224, 16, 32)


def settings_for(source: Source, method: str, accelerated: bool) -> Settings:
    """Nested settings that suit the source, to be laid over the recipe `<method>_small`.

    Args:
        source: the images; a few of them are read.
        method: value of `method.name`.
        accelerated: whether an accelerator will do the work.
    """
    shape = geometry(typical_side(source), accelerated)
    if method == "localmim":  # Its coarsest cells join 2 x 2 patches.
        pair = 2 * shape.patch_size
        shape = shape._replace(image_size=math.ceil(shape.image_size / pair) * pair)
    batch_size = min(
        256 if accelerated else 64, max(8, 2 ** int(math.log2(max(1, len(source) // FEWEST_STEPS_PER_EPOCH))))
    )
    batch_size = max(1, min(batch_size, len(source)))
    steps_per_epoch = len(source) // batch_size
    target = TARGET_STEPS * (10 if accelerated else 1)
    epochs = min(400, max(1, math.ceil(target / steps_per_epoch)))
    settings: Settings = {
        "data": {"image_size": shape.image_size, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "model": {"patch_size": shape.patch_size},
        "train": {"batch_size": batch_size, "epochs": epochs},
        "evaluate": {"crop_ratio": 1.0 if shape.image_size < 64 else 0.875},
    }
    if method in ("simmim", "kamim"):
        settings["method"] = {"mask_cell_size": shape.mask_cell_size}
    if accelerated and shape.image_size >= 96:
        settings["model"] = {"patch_size": shape.patch_size, "name": "vit_small"}
    return settings

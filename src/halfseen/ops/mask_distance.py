"""How far hidden pixels lie from what can be seen: one number that tells an easy mask from a hard one."""

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from halfseen.errors import ShapeError


def average_distance(pixel_mask: Bool[Tensor, "B 1 H W"]) -> float:
    """AvgDist: mean distance in pixels from each hidden pixel to the nearest visible one, over the whole batch.

    A diagnostic of a mask generator: SimMIM reports that values of about 10 to 20 px work well.

    Raises:
        ShapeError: if a mask hides everything or nothing at all is hidden.
    Source: SimMIM, arXiv 2111.09886, section 4.1.
    """
    import cv2

    if bool(pixel_mask.flatten(1).all(dim=1).any()) or not bool(pixel_mask.any()):
        raise ShapeError("AvgDist needs hidden and visible pixels in each mask.")
    masks = np.ascontiguousarray(pixel_mask[:, 0].cpu().numpy().astype(np.uint8))
    distances = (cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for mask in masks)
    return sum(float(distance.sum(dtype=np.float64)) for distance in distances) / int(masks.sum())

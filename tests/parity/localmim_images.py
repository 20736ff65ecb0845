"""Prepares the stored 8-bit pictures of the LocalMIM vectors as they were when their targets were recorded.

Plain 8-bit pictures hold many pixels whose gradient lies exactly on the border of two orientation bins, where rounding
decides. The recorded ones were shifted by less than one grey level, differently at each place, and framed.
"""

import numpy as np
import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRAME_WIDTH, FRAME_VALUE = 2, 128.0


def prepare(images_u8_nhwc: np.ndarray) -> Tensor:
    """Jitter, frame, normalise, in this order.

    Args:
        images_u8_nhwc: uint8 [B, H, W, 3], the whole stored batch: the jitter depends on an image's place in it.
    Returns:
        float32 [B, 3, H, W], normalised.
    """
    return normalised(jittered(images_u8_nhwc))


def jittered(images_u8_nhwc: np.ndarray) -> np.ndarray:
    """Shift each value by less than half a grey level: float32 [B, H, W, 3]."""
    b, y, x, c = np.indices(images_u8_nhwc.shape, dtype=np.int64)
    jitter = ((7919 * b + 104729 * y + 1299709 * x + 15485863 * c) % 1000003) / 1000003 - 0.5
    shifted: np.ndarray = (images_u8_nhwc + jitter).astype(np.float32)
    return shifted


def normalised(pixels: np.ndarray) -> Tensor:
    """Frame and normalise float32 [B, H, W, 3] pixels: float32 [B, 3, H, W]."""
    framed = np.full_like(pixels, FRAME_VALUE)
    inner = slice(FRAME_WIDTH, -FRAME_WIDTH)
    framed[:, inner, inner] = pixels[:, inner, inner]
    images = torch.from_numpy(framed).permute(0, 3, 1, 2).contiguous()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std

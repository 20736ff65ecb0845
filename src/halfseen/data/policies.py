"""Random changes of whole views by torchvision's policies, as fine-tuning and KAMIM's linear probe use them.

torchvision draws from torch's global random state; here each image forks it under a seed from the sample's own
generator, so a view stays a function of (seed, epoch, index).
"""

import numpy as np
import torch
from jaxtyping import UInt8
from torchvision.transforms import v2

ERASED_SHARE = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)

_trivial_augment = v2.TrivialAugmentWide()
_random_erasing = v2.RandomErasing(p=0.5, scale=ERASED_SHARE, ratio=ERASED_RATIO, value=0)


def trivial_augment_and_erase(
    view: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """One change of random kind and strength, then, for half of the views, a black rectangle.

    Source: TrivialAugment, arXiv 2103.10158; random erasing, arXiv 1708.04896; together as KAMIM's evaluations have
    them, arXiv 2407.13873.
    """
    seed = int(generator.integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes 0.3 ms for the CUDA it doesn't need.
        planes = torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1)
        changed = _random_erasing(_trivial_augment(planes))
    found: np.ndarray = changed.permute(1, 2, 0).numpy()
    return found

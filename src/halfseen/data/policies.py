"""Random changes of whole views by the policies of torchvision and timm, for fine-tuning and KAMIM's linear probe.

torchvision draws from torch's global random state, timm from Python's and NumPy's; here each image forks them under a
seed from the sample's own generator, so a view stays a function of (seed, epoch, index).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
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


@dataclass(frozen=True)
class RandAugment:
    """A few changes of random kind and strength, by timm's policies.

    Attributes:
        policy: timm's words, e.g. "rand-m9-mstd0.5-inc1": two changes of strength 9, spread 0.5, all growing with it.
        side: of the views in pixels; shifts reach 45 % of it.
        fill: colour that shows where a picture was moved away, 0 to 255.
    Source: RandAugment, arXiv 1909.13719, as timm's `rand_augment_transform` does it with bicubic resampling.
    """

    policy: str
    side: int
    fill: tuple[int, int, int]

    def __call__(self, view: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """The changed view, a function of it and of the generator."""
        change = _rand_augment(self)
        with _seeded_globals(int(generator.integers(2**32))):
            changed = change(Image.fromarray(np.ascontiguousarray(view)))
        return np.asarray(changed)


@cache
def _rand_augment(settings: RandAugment) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform

    hints = {
        "translate_const": int(settings.side * 0.45),
        "img_mean": settings.fill,
        "interpolation": Image.Resampling.BICUBIC,
    }
    transform: Callable[[Image.Image], Image.Image] = rand_augment_transform(settings.policy, hints)
    return transform


@contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Python's and NumPy's global random states under a seed, and as they were afterwards."""
    before, before_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm knows no other source.
    random.setstate(random.Random(seed).getstate())
    np.random.set_state(np.random.RandomState(seed).get_state())  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)  # noqa: NPY002

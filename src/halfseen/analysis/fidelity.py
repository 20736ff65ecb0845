"""How close reconstructions come to the originals, over a whole data set: PSNR and SSIM as KAMIM reports them, and as
is usual.

The two conventions differ in the space (what the network sees, or pixels), in the range that PSNR and SSIM are relative
to, and in the part of the picture that counts.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from halfseen.analysis.reconstruct import SSIM_WINDOW, ssim_map
from halfseen.errors import ConfigError, ShapeError

Space = Literal["normalized", "pixel"]
Region = Literal["all", "masked", "composite"]


class FidelityResult(NamedTuple):
    """What `Fidelity` has found.

    Attributes:
        psnr: dB, from the mean squared error over every value of the set.
        ssim: mean over images; NaN below 11 pixels a side.
        data_range: what the PSNR is relative to.
        num_images: images seen.
    """

    psnr: float
    ssim: float
    data_range: float
    num_images: int


class Fidelity:
    """Accumulates PSNR and SSIM over batches.

    Args:
        space: "normalized" compares in the space of the network's input: PSNR's range is that of all targets and 0,
            SSIM's the larger of the prediction's and the target's in each batch, so that it depends on the batches, as
            in the original. "pixel": values in [0, 1], the prediction clipped to it, range 1.
        region: "all" compares whole pictures, the visible part of the prediction included; "masked" the hidden part
            only; "composite" whole pictures in which the visible part is the original's.
    Source: KAMIM, arXiv 2407.13873, official code (normalized, all; torchmetrics 1.3 with its defaults).
    """

    def __init__(self, space: Space = "pixel", region: Region = "all") -> None:
        self.space, self.region = space, region
        self._squares = self._similarity = 0.0
        self._values = self._low = self._high = 0.0
        self._images = 0

    def update(
        self,
        prediction: Float[Tensor, "B C H W"],
        target: Float[Tensor, "B C H W"],
        hidden: Bool[Tensor, "B 1 H W"] | None = None,
    ) -> None:
        """Take one batch; both in the space that was chosen.

        Args:
            hidden: True = hidden from the network; not needed where whole predictions count.
        Raises:
            ConfigError: no mask where the region needs one.
            ShapeError: a region without a hidden pixel.
        """
        if self.region != "all" and hidden is None:
            raise ConfigError(f"region: '{self.region}' needs to know which pixels were hidden. Give `hidden`.")
        prediction, target = prediction.double().cpu(), target.double().cpu()
        if self.space == "pixel":
            prediction = prediction.clamp(0, 1)
        if hidden is None:
            hidden = torch.ones_like(target[:, :1], dtype=torch.bool)
        hidden = hidden.cpu()
        if self.region == "composite":
            prediction = torch.where(hidden, prediction, target)
        squares = (prediction - target).square()
        if self.region == "masked":
            squares = squares[hidden.expand_as(squares)]
        if squares.numel() == 0:
            raise ShapeError("reconstruction: no pixel was hidden in this batch, so nothing can be compared.")
        self._squares += float(squares.sum())
        self._values += squares.numel()
        self._low, self._high = min(self._low, float(target.min())), max(self._high, float(target.max()))
        self._similarity += self._structure(prediction, target, hidden)
        self._images += len(target)

    def _structure(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> float:
        """The batch's sum of SSIM over images."""
        if min(target.shape[-2:]) < SSIM_WINDOW:
            return float("nan")
        spans = [float(values.max() - values.min()) for values in (prediction, target)]
        similarity = ssim_map(prediction, target, 1.0 if self.space == "pixel" else max(spans)).double()
        if self.region != "masked":
            return float(similarity.mean(dim=(1, 2)).sum())
        edge = SSIM_WINDOW // 2
        inside = hidden[:, 0, edge:-edge, edge:-edge].double()
        return float(((similarity * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2))).sum())

    def result(self) -> FidelityResult:
        """What all batches so far amount to.

        Raises:
            ShapeError: none has come.
        """
        if not self._images:
            raise ShapeError("reconstruction: no images were given.")
        data_range = 1.0 if self.space == "pixel" else self._high - self._low
        error = torch.tensor(self._squares / self._values, dtype=torch.float64)
        psnr = float(10 * torch.log10(data_range**2 / error))
        return FidelityResult(psnr, self._similarity / self._images, data_range, self._images)

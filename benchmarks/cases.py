"""What is measured: methods at the sizes of their papers' small models, beside the peer that has the same model."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor


class Case(NamedTuple):
    """One method with one model.

    Attributes:
        title: what the table calls it.
        method: `method.name`.
        model: `model.name`.
        image_size: pixels on a side.
        batch_size: images per step.
        settings: `method.*` keys that are not the default.
        peer: name of the class in transformers that trains the same model, or None.
    """

    title: str
    method: Literal["mae", "simmim", "kamim"]
    model: str
    image_size: int
    batch_size: int
    settings: dict[str, bool]
    peer: str | None


CASES = {
    "mae": Case("MAE ViT-S/16", "mae", "vit_small", 224, 16, {"norm_pix_loss": True}, "ViTMAEForPreTraining"),
    "simmim-swin": Case("SimMIM Swin-T", "simmim", "swin_tiny", 192, 8, {}, "SwinForMaskedImageModeling"),
    "simmim-vit": Case("SimMIM ViT-S/16", "simmim", "simmim_vit_small", 224, 8, {}, None),
    "kamim": Case("KAMIM ViT-S/16, FAST", "kamim", "vit_small", 192, 8, {}, None),
}


class Contestant(NamedTuple):
    """A model with its optimiser, cut into the phases of a step.

    Attributes:
        forward: loss of a fixed batch.
        backward: gradients of that loss.
        update: the optimiser's step, gradients cleared.
        num_trained: number of trained parameters, to see that two contestants train the same model.
    """

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], None]
    update: Callable[[], None]
    num_trained: int

    def step(self) -> None:
        """One whole training step."""
        self.backward(self.forward())
        self.update()

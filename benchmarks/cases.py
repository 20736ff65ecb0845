"""What is measured: methods at the sizes of their papers' small models, beside a peer that has the same model."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

Precision = Literal["fp32", "bf16"]


class Peer(NamedTuple):
    """What a case is compared with.

    Attributes:
        title: what the table calls it: the name of the class in transformers, or the plain implementation.
        package: where it comes from; "plain" is `benchmarks.plain` or `benchmarks.plain_localmim`.
        precision: its number format; None takes the one of ours.
    """

    title: str
    package: Literal["transformers", "plain"]
    precision: Precision | None = None


class Case(NamedTuple):
    """One method with one model.

    Attributes:
        title: what the table calls it.
        method: `method.name`.
        model: `model.name`.
        image_size: pixels on a side; of the large views where there are several kinds.
        batch_size: images per step.
        settings: `method.*` keys that are not the default.
        peer: what trains the same model, or None.
        model_settings: `model.*` keys that are not the default.
        train: `train.*` keys that are not the default and cost time.
        seed: of the batch's views and masks.
    """

    title: str
    method: Literal["mae", "simmim", "kamim", "ibot", "msn", "localmim"]
    model: str
    image_size: int
    batch_size: int
    settings: Mapping[str, Any]
    peer: Peer | None
    model_settings: Mapping[str, Any] = {}
    train: Mapping[str, Any] = {}
    seed: int = 0

    def peer_precision(self, ours: Precision) -> Precision:
        """The peer's number format when ours is the given one."""
        return (self.peer and self.peer.precision) or ours


MAE_PEER = Peer("ViTMAEForPreTraining", "transformers")
SWIN_PEER = Peer("SwinForMaskedImageModeling", "transformers")
PLAIN_PEER = Peer("plain fp32", "plain", "fp32")

IBOT_SETTINGS = {
    "shared_head": True,
    "norm_last_layer": False,
    "mask": {"kind": "block", "pred_ratio": (0.0, 0.3), "pred_ratio_var": (0.0, 0.2)},
    "teacher_temp": 0.07,
    "global_crops_scale": (0.25, 1.0),
    "local_crops_scale": (0.05, 0.25),
    "local_crops_number": 10,
}
"""The published recipe of ViT-S/16; the defaults are the command line's."""

CASES = {
    "mae": Case("MAE ViT-S/16", "mae", "vit_small", 224, 16, {"norm_pix_loss": True}, MAE_PEER),
    "simmim-swin": Case("SimMIM Swin-T", "simmim", "swin_tiny", 192, 8, {}, SWIN_PEER),
    "simmim-vit": Case("SimMIM ViT-S/16", "simmim", "simmim_vit_small", 224, 8, {}, None),
    "kamim": Case("KAMIM ViT-S/16, FAST", "kamim", "vit_small", 192, 8, {}, None),
    "ibot": Case(
        "iBOT ViT-S/16, 2+10",
        "ibot",
        "vit_small",
        224,
        4,
        IBOT_SETTINGS,
        PLAIN_PEER,
        model_settings={"drop_path": 0.1, "position_rule": "scale_offset"},
        train={"clip_norm": 3.0, "clip_scope": "tensor"},
        seed=2,  # Hides 14.3 % of the patches, about as much as the recipe does on average.
    ),
    "msn": Case(
        "MSN ViT-S/16, 1+1+10",
        "msn",
        "vit_small",
        224,
        4,
        {},
        PLAIN_PEER,
        model_settings={"position_rule": "scale"},
        train={"clip_norm": 3.0},
    ),
    "localmim": Case("LocalMIM ViT-S/16, HOG", "localmim", "vit_small", 224, 8, {}, PLAIN_PEER),
}


def chosen(name: str, batch_size: int | None = None) -> Case:
    """A case by its name, with another number of images per step if one is given."""
    case = CASES[name]
    return case if batch_size is None else case._replace(batch_size=batch_size)


class Contestant(NamedTuple):
    """A model with its optimiser, cut into the phases of a step.

    Attributes:
        forward: loss of a fixed batch.
        backward: gradients of that loss.
        update: the optimiser's step and all that comes with it, gradients cleared.
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

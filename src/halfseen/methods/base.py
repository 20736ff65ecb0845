"""The contract between a method and everything that is shared: data, loop, checkpoints, evaluation, report."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.types import Batch, GroupKey, Progress, Reconstruction, StepOutput, ViewPlan, ViewSpec


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"got {list(ends)}; the first number must not be larger than the second.")
    return ends


_Share = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]

CropScale = Annotated[
    tuple[_Share, _Share],
    AfterValidator(_ascending),
    Field(description="smallest and largest share of the image's area in a crop, each in (0, 1]"),
]
CropRatio = Annotated[
    tuple[_Positive, _Positive],
    AfterValidator(_ascending),
    Field(description="smallest and largest width / height of a crop"),
]
HFlip = Annotated[float, Field(ge=0, le=1, description="probability of a horizontal flip")]
VFlip = Annotated[float, Field(ge=0, le=1, description="probability of a vertical flip")]
Interpolation = Annotated[Literal["bilinear", "bicubic"], Field(description="resampling filter of the crop")]
Antialias = Annotated[
    bool, Field(description="filter with full support when a crop is shrunk, as Pillow does (true/false)")
]


CROP_KEYS = ("crop_scale", "crop_ratio", "interpolation", "antialias", "hflip", "vflip")
"""Settings of the methods that look at one crop of each image."""


def one_crop(config: BaseModel, image_size: int) -> ViewSpec:
    """One random crop of each image, flipped, of `image_size` pixels a side, as the `CROP_KEYS` of a method say."""
    return ViewSpec(size=image_size, **config.model_dump(include=set(CROP_KEYS)))


ClassHead = Callable[[Tensor], Tensor]
"""Summaries float [B, D] of an encoder, see `Encoder.summary`, to outputs [B, K]; the largest one is the image's."""


class Method(nn.Module, ABC):
    """A pre-training method: hides, encodes, predicts, makes the target and compares.

    All that is learned or averaged is a parameter or a buffer, so `state_dict()` is complete. A method never reads a
    global random state: randomness is a function of the `Progress` (see `ops.randomness`).
    """

    name: str

    schedule_horizon: float = 1.0
    """Lengths of the run over which the engine's MSN schedules go (MSN: 1.25, so that they never reach their end)."""

    main_role: str = "student"
    """Which of `encoders()` is the run's result: it becomes encoder.safetensors and is measured first."""

    whole_batch_only: bool = False
    """Whether the loss is a statistic of the whole batch, so that micro-batches would be another method."""

    taps: tuple[int, ...] = ()
    """Encoder blocks (1-based, ascending) at which branches with losses of their own leave; a branch ends when
    progressive freezing reaches its block, see `drop_branches`."""

    num_outputs: int | None = None
    """Outputs or prototypes K over which teacher and student spread a probability of 1; None without such."""

    outputs_of: Literal["images", "patches"] = "images"
    """What gets such a probability, in the loss and in the metrics about it."""

    @abstractmethod
    def view_plan(self) -> ViewPlan:
        """The views that the loader must cut from each image."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of one micro-batch whose tensors are on the method's device."""

    @abstractmethod
    def encoders(self) -> Mapping[str, Encoder]:
        """What remains after pre-training, by role: "student" always, "teacher" where there is one."""

    @abstractmethod
    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """Weight decay and lr scale of a parameter, by its name within this module."""

    def check_batch(self, num_images: int) -> None:
        """See that a step of so many images, those of all processes, has a loss.

        Raises:
            ConfigError: images are compared, and there are too few.
        """
        return None

    def freezing_unit(self, name: str) -> int:
        """The unit with which progressive freezing stops a parameter, by its name within this module.

        Unit 0 is all that is trained before block 1, unit i is block i, with the branch that leaves there; what lies
        above the last block shares its number and is never frozen.

        Source: FreezeOut, arXiv 1706.04983; Local Masking Meets Progressive Freezing, arXiv 2312.02194.
        """
        encoder = self.encoders()["student"]
        if name.startswith("encoder."):
            return encoder.freezing_unit(name.removeprefix("encoder."))
        return 0 if name == "mask_token" else encoder.num_layers

    def first_use(self, name: str) -> int:
        """The first unit in which a parameter acts, see `Encoder.first_use`."""
        if name.startswith("encoder."):
            return self.encoders()["student"].first_use(name.removeprefix("encoder."))
        return self.freezing_unit(name)

    @property
    def idle_parameters(self) -> bool:
        """Whether a parameter that needs a gradient may get none in some step, so that DDP has to look for such ones.

        The norm of pooled tokens (model.final_norm=pooled) is of no use to a loss over patches.
        """
        return self.encoders()["student"].config.final_norm == "pooled"

    def freeze(self, units: int, *, embedding: bool = True, cut: bool = True) -> None:
        """Let the student's first units rest; see `Encoder.freeze`. What happens to parameters is the engine's part."""
        self.encoders()["student"].freeze(units, embedding=embedding, cut=cut)

    def drop_branches(self, count: int) -> None:
        """Leave the `count` shallowest branches out of loss, targets and graph for good; their weights stay."""
        return None

    def start_averages(self) -> None:
        """Make moving averages equal to what they follow; runs after weights were put in from elsewhere."""
        return None

    def before_update(self, progress: Progress) -> None:
        """Runs between clipping and the optimiser's update, e.g. to take a frozen layer's gradient away."""
        return None

    def after_step(self, progress: Progress) -> None:
        """Runs after each optimiser update, e.g. the teacher's moving average. Nothing by default."""
        return None

    def class_heads(self) -> Mapping[str, ClassHead]:
        """By role, the heads whose outputs for an image's summary make it belong to one of K; none by default."""
        return {}

    def sample_masks(self, count: int, seed: int) -> Tensor | None:
        """Masks of pixels as training draws them, bool [count, 1, S, S], True = hidden; None where it draws none."""
        return None

    def reconstruct(self, images: Tensor, seed: int, mask_ratio: float | None = None) -> Reconstruction | None:
        """Prediction pictures for float32 [B, 3, H, W] normalised images; None where a method predicts no pixels.

        `seed` fixes the mask; `mask_ratio` in (0, 1) replaces the training one.
        """
        return None

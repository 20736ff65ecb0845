"""iBOT: a student learns from its own moving average, across views of an image and at hidden patches; also DINO.

Papers: iBOT, arXiv 2111.07832; DINO, arXiv 2104.14294 (lambda2 = 0); attention masks: AttMask, arXiv 2203.12719.

    views     G global crops [B, 3, S, S] and L local ones [B, 3, s, s]
    teacher   global crops, nothing hidden -> class tokens [G B, D], patch tokens [G B, N, D]; head, centre, softmax
    mask      [G B, N]: blocks or single patches from the loader, or what the teacher's class token attends to
    student   global crops, hidden patches replaced -> [G B, D], [M, D] hidden only; local crops -> [L B, D]; head
    compare   each view's class token with the teacher's of every other global crop (K outputs), and
              each hidden patch with the teacher's at the same place (K2 outputs)
    after     the centres move towards the step's mean logits, the teacher towards the student, name by name

Deviations, equal in value: the head runs on class tokens and hidden patches only; a centre, being the mean of a linear
layer's outputs, is taken from the mean of its inputs. Batch norms in the head (no published recipe has any) see all
tokens, in one batch for each size of crop, as there. With lambda2 = 0 there is no patch head at all, and they see the
class tokens of all crops in one batch, as in DINO.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder, Features
from halfseen.backbones.heads import Activation, DistillationHead, HeadNorm
from halfseen.backbones.initialise import init_ibot
from halfseen.backbones.teacher import averaged_copy
from halfseen.errors import ConfigError, ShapeError
from halfseen.idle import Need, refuse_idle
from halfseen.masking.block import BlockMask
from halfseen.masking.crops import CropMasks, MaskSetting
from halfseen.methods.base import ClassHead, CropScale, Method
from halfseen.ops.collectives import process_count, sum_over_processes
from halfseen.ops.contrastive import ContrastiveForm, check_pairs, contrastive, select_pairs
from halfseen.ops.distillation import class_token_loss, patch_token_loss, teacher_probabilities, update_center
from halfseen.ops.moving_average import pair_by_name, update_average
from halfseen.ops.patches import patch_grid, pixel_mask, repeat_cells
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import torch_generator
from halfseen.ops.schedules import ibot_cosine, teacher_temperature
from halfseen.types import Batch, GroupKey, Photometric, Progress, StepOutput, ViewPlan, ViewSpec

logger = logging.getLogger(__name__)

COLOUR = Photometric(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2)
"""What all views share; they differ in blur and solarize."""


class ContrastiveConfig(BaseModel):
    """A third loss term: patches of high score alike in both crops, unlike those of low score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lambda3: float = Field(1.0, gt=0, description="weight of the term, lambda3")
    k_anchors: int = Field(3, ge=1, description="patches of highest and of lowest score taken from each crop, k")
    cont_dense_temp: float = Field(0.2, gt=0, description="temperature of the term, tau")
    source: Literal["teacher", "student"] = Field(
        "teacher",
        description="whose patch probabilities are compared: the teacher's, as published, which gives no gradient, or "
        "the student's",
    )
    form: ContrastiveForm = Field(
        "reference",
        description="denominator: reference = the positive similarity enters as it is, infonce = it is exponentiated "
        "and pairs are averaged",
    )


class IBOTConfig(BaseModel):
    """What iBOT may be told; the defaults are those of the official command line, not of its published recipes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["ibot"] = Field("ibot", description="the method: ibot")
    out_dim: int = Field(8192, ge=2, description="outputs of the head for class tokens, K")
    patch_out_dim: int = Field(
        8192, ge=2, description="outputs of the head for patches, K2; K if student or teacher share the last layer"
    )
    shared_head: bool = Field(
        False, description="one last layer for class tokens and patches of the student (all published recipes: true)"
    )
    shared_head_teacher: bool = Field(
        True, description="the same of the teacher; unlike shared_head, the student's patch layer never reaches it"
    )
    norm_last_layer: bool = Field(
        True, description="keep the rows of the last layer at length 1; false trains (and decays) their lengths g"
    )
    norm_in_head: HeadNorm | None = Field(
        None,
        description="norm between the layers of the head: bn (batch of this process), syncbn (of all processes), "
        "csyncbn (only subtracts a running mean of all processes), ln; null = none",
    )
    act_in_head: Activation = Field("gelu", description="activation between the layers of the head: gelu, relu, silu")
    head_hidden_dim: int = Field(2048, ge=1, description="width of the head's hidden layers")
    head_bottleneck_dim: int = Field(
        256,
        ge=0,
        description="width before the last layer, where vectors get length 1; 0 = no last layer after the MLP",
    )
    head_num_layers: int = Field(3, ge=1, description="linear layers of the head before the last layer")
    momentum_teacher: float = Field(
        0.996, ge=0, lt=1, description="share of the teacher that stays in the first update; rises to 1 by a cosine"
    )
    mask: MaskSetting = Field(
        BlockMask(), description="how patches of global crops are hidden: one mask for all crops, or one for each"
    )
    use_masked_im_modeling: bool = Field(
        True,
        description="replace hidden patches by a mask token; false shows them and only compares at their places (the "
        "original's Swin replaces them all the same)",
    )
    pred_start_epoch: int = Field(0, ge=0, description="epochs before which nothing is hidden")
    lambda1: float = Field(1.0, ge=0, description="weight of the class-token loss")
    lambda2: float = Field(1.0, ge=0, description="weight of the patch loss; 0 builds no head for patches (DINO)")
    student_temp: float = Field(0.1, gt=0, description="temperature of the student, tau_s")
    warmup_teacher_temp: float = Field(0.04, gt=0, description="first temperature of the teacher's class tokens")
    teacher_temp: float = Field(0.04, gt=0, description="final temperature of the teacher's class tokens, tau_c")
    warmup_teacher_patch_temp: float = Field(0.04, gt=0, description="first temperature of the teacher's patches")
    teacher_patch_temp: float = Field(0.07, gt=0, description="final temperature of the teacher's patches, tau_p")
    warmup_teacher_temp_epochs: int = Field(
        30, ge=0, description="epochs over which both temperatures rise, those of patches from pred_start_epoch on"
    )
    freeze_last_layer: int = Field(1, ge=0, description="epochs during which the last layers are not trained")
    centering: bool = Field(True, description="subtract a running mean from the teacher's logits, against collapse")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="share of the running mean that stays in each update")
    contrastive: ContrastiveConfig | None = Field(
        None, description="third loss term between patches of high and low score; needs attention masks; null = none"
    )
    global_crops_number: int = Field(2, ge=1, description="large views of an image, G; teacher and student see them")
    global_crops_scale: CropScale = Field(
        (0.14, 1.0), description="smallest and largest share of the image's area in a global crop, each in (0, 1]"
    )
    local_crops_number: int = Field(0, ge=0, description="small views of an image, L; only the student sees them")
    local_crops_scale: CropScale = Field(
        (0.05, 0.4), description="smallest and largest share of the image's area in a local crop, each in (0, 1]"
    )
    color_jitter_strength: float = Field(
        1.0, ge=0, le=2.5, description="factor of the strengths of the colour jitter: 1 = published, 0 = no jitter"
    )
    hue: float | None = Field(
        None, ge=0, le=0.5, description="largest turn of the colour circle, 0.5 = any colour; null = 0.1 of the jitter"
    )
    grayscale: float = Field(0.2, ge=0, le=1, description="probability that a view loses its colours")
    blur_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="factor of the probabilities of blur and solarize: 1 = published; images of a few dozen pixels "
        "lose what they show by a blur of up to 2 pixels, there 0 is better",
    )
    local_crop_size: int = Field(96, ge=1, description="side of a local crop in pixels, a multiple of the patch size")

    @model_validator(mode="after")
    def _settings_go_together(self) -> "IBOTConfig":
        if self.global_crops_number + self.local_crops_number < 2:
            raise ValueError(
                "global_crops_number: got 1 without local crops, but the class token of a crop is compared with other "
                "crops of its image. Write at least 2, or set local_crops_number."
            )
        if isinstance(self.mask, tuple) and len(self.mask) != self.global_crops_number:
            raise ValueError(
                f"mask: got {len(self.mask)} masks for {self.global_crops_number} global crops "
                "(global_crops_number). Give one for each, or a single one for all."
            )
        if self.shares_last_layer and self.patch_out_dim not in (8192, self.out_dim):
            raise ValueError(
                f"patch_out_dim: got {self.patch_out_dim}, but where student or teacher share their last layer "
                f"patches have out_dim = {self.out_dim} outputs too. Leave it out, or set shared_head and "
                "shared_head_teacher to false."
            )
        if self.lambda1 == 0 and self.lambda2 == 0:
            raise ValueError("lambda1: got 0 with lambda2 = 0, so there is no loss. Set one of them above 0.")
        if self.contrastive is not None:
            if self.global_crops_number != 2:
                raise ValueError(
                    f"contrastive: it compares the patches of exactly 2 global crops, got global_crops_number = "
                    f"{self.global_crops_number}. Write 2, or leave contrastive out."
                )
            if self.lambda2 == 0:
                raise ValueError(
                    "contrastive: it compares outputs for patches, but with lambda2 = 0 there is no head for them. "
                    "Set lambda2 above 0, or leave contrastive out."
                )
        refuse_idle(self, self._needs())
        return self

    def _needs(self) -> Iterator[Need]:
        """What settings ask of others to do anything."""
        warms = self.warmup_teacher_temp_epochs > 0
        for otherwise, met, keys in (
            ("lambda1=0", self.lambda1 > 0, ("local_crops_number", "warmup_teacher_temp", "teacher_temp")),
            (
                "lambda2=0",
                self.has_patch_loss,
                (
                    "shared_head",
                    "shared_head_teacher",
                    "patch_out_dim",
                    "warmup_teacher_patch_temp",
                    "teacher_patch_temp",
                ),
            ),
            (
                "head_bottleneck_dim=0",
                self.head_bottleneck_dim > 0,
                ("shared_head", "shared_head_teacher", "patch_out_dim", "norm_last_layer", "freeze_last_layer"),
            ),
            ("head_num_layers=1", self.head_num_layers > 1, ("norm_in_head", "act_in_head", "head_hidden_dim")),
            ("local_crops_number=0", self.local_crops_number > 0, ("local_crops_scale", "local_crop_size")),
            ("lambda2=0 and use_masked_im_modeling=false", self.uses_masks, ("mask", "pred_start_epoch")),
            ("warmup_teacher_temp_epochs=0", warms, ("warmup_teacher_temp",)),
            (
                "warmup_teacher_temp_epochs=0 and pred_start_epoch=0",
                warms or self.pred_start_epoch > 0,
                ("warmup_teacher_patch_temp",),
            ),
            ("centering=false", self.centering, ("center_momentum",)),
        ):
            yield from (Need(key, met, otherwise) for key in keys)

    @property
    def shares_last_layer(self) -> bool:
        """Whether student or teacher have one last layer for class tokens and patches."""
        return self.shared_head or self.shared_head_teacher

    @property
    def uses_masks(self) -> bool:
        """Whether masks play a part: patches are hidden, or compared where they would be."""
        return self.use_masked_im_modeling or self.has_patch_loss

    @property
    def has_patch_loss(self) -> bool:
        """Whether patches are compared at all; if not, nothing of it is built or computed."""
        return self.lambda2 > 0

    @property
    def num_patch_outputs(self) -> int:
        """Outputs for a patch, K2."""
        own = not self.shares_last_layer and self.head_bottleneck_dim > 0
        return self.patch_out_dim if own else self.out_dim

    @property
    def least_epochs(self) -> int:
        """Epochs that the temperatures take to reach their final values: a run must not be shorter."""
        start = self.pred_start_epoch if self.has_patch_loss else 0
        return self.warmup_teacher_temp_epochs + start


class Looked(NamedTuple):
    """What the teacher's encoder gives of the global crops, stacked crop by crop.

    Attributes:
        summary: float [G B, D], class tokens (for Swin: means of the final tokens).
        patches: float [G B, N, D]; None without a patch loss.
        attention: as asked for by attention masks.
    """

    summary: Tensor
    patches: Tensor | None
    attention: tuple[Tensor, ...]


class Targets(NamedTuple):
    """The teacher's distributions, float32, without gradient.

    Attributes:
        views: [G, B, K], class tokens of the global crops.
        patches: [m, K2] for each group of places, see `IBOT._places`.
        winners: int64 [B], largest outputs for the first crop's class tokens, before centre and temperature.
    """

    views: Tensor
    patches: tuple[Tensor, ...]
    winners: Tensor


class Answers(NamedTuple):
    """The student's logits.

    Attributes:
        views: [G + L, B, K], class tokens of the global crops, then of the local ones.
        patches: [m, K2] for each group of places.
    """

    views: Tensor
    patches: tuple[Tensor, ...]


class IBOT(Method):
    """iBOT around a ViT or a Swin.

    Args:
        config: the method's settings.
        encoder: the student's, initialised here as the original; its stochastic depth acts on the student alone.
        image_size: side of the global crops in pixels.
        mean, std: normalisation of the pixels, per colour, on the scale 0 to 1.
        seed: of the initial weights.
    Raises:
        ConfigError: masks that don't fit the model or hide nothing on its grid, or too many anchors.
        ShapeError: crops that are not made of whole patches.
    """

    name = "ibot"
    main_role = "teacher"
    center: Tensor
    center2: Tensor
    bottleneck_sums: Tensor
    images_summed: Tensor

    def __init__(
        self, config: IBOTConfig, encoder: Encoder, image_size: int, mean: Channels, std: Channels, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.mean, self.std = mean, std
        self.image_size = image_size
        if config.lambda1 > 0:
            self.num_outputs = config.out_dim
        else:
            self.num_outputs, self.outputs_of = config.num_patch_outputs, "patches"
        self.whole_batch_only = config.norm_in_head not in (None, "ln")
        self.grid = patch_grid(image_size, image_size, encoder.stride)
        self.num_patches = self.grid[0] * self.grid[1]
        if config.local_crops_number:
            try:
                patch_grid(config.local_crop_size, config.local_crop_size, encoder.patch_size)
            except ShapeError as error:
                raise ShapeError(f"method.local_crop_size: {error}") from None
        self.masks = self._crop_masks(encoder)

        self.encoder = encoder
        self.head = self._build_head(config.shared_head)
        self.mask_token = nn.Parameter(torch.zeros(1, encoder.mask_dim)) if config.use_masked_im_modeling else None
        init_ibot(encoder, self.head, self.mask_token, torch_generator(seed, "weights"))

        self.teacher = averaged_copy(encoder)
        self.teacher_head = self._build_head(config.shared_head_teacher).requires_grad_(False)
        self._warn_of_unequal_heads()
        self.start_averages()

        self.register_buffer("center", torch.zeros(1, config.out_dim))
        if config.has_patch_loss:
            self.register_buffer("center2", torch.zeros(1, 1, self.head.num_patch_outputs))
        # What the step's teacher has said so far, in all its micro-batches; zero between steps, so never saved.
        narrow = config.head_bottleneck_dim or config.out_dim
        self.register_buffer("bottleneck_sums", torch.zeros(2, narrow), persistent=False)
        self.register_buffer("images_summed", torch.zeros(()), persistent=False)

    @property
    def idle_parameters(self) -> bool:
        """Mask token and patch head get no gradient in a step that hides nothing on this process."""
        return True

    def view_plan(self) -> ViewPlan:
        """Global crops, the first always blurred, the others seldom but sometimes solarized; then local crops."""
        config = self.config

        def crops(size: int, count: int, scale: CropScale, blur: float, solarize: float = 0.0) -> ViewSpec:
            jitter, share = config.color_jitter_strength, config.blur_share
            colour = replace(
                COLOUR,
                brightness=COLOUR.brightness * jitter,
                contrast=COLOUR.contrast * jitter,
                saturation=COLOUR.saturation * jitter,
                hue=COLOUR.hue * jitter if config.hue is None else config.hue,
                grayscale=config.grayscale,
                blur=blur * share,
                solarize=solarize * share,
            )
            return ViewSpec(size=size, count=count, crop_scale=scale, colour=colour)

        plan = (
            crops(self.image_size, 1, config.global_crops_scale, blur=1.0),
            crops(self.image_size, config.global_crops_number - 1, config.global_crops_scale, blur=0.1, solarize=0.2),
            crops(config.local_crop_size, config.local_crops_number, config.local_crops_scale, blur=0.5),
        )
        extras = None if self.masks is None else self.masks.extras
        return ViewPlan(views=tuple(spec for spec in plan if spec.count), extras=extras)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        crops = [normalise(view, self.mean, self.std) for view in batch.views]
        images = torch.cat(crops[: self.config.global_crops_number])  # crop by crop: [G B, 3, S, S]
        looked = self.look(images)
        mask = self.draw_mask(looked, batch.extras, progress)
        return self.compare(images, crops[self.config.global_crops_number :], looked, mask, progress)

    @torch.no_grad()
    def look(self, images: Float[Tensor, "GB 3 S S"]) -> Looked:
        """The teacher's encoder on normalised global crops of which nothing is hidden."""
        need = None if self.masks is None else self.masks.need
        if need is None and not self.config.has_patch_loss:
            return Looked(self.teacher.forward_selected(images).summary, None, ())
        layers, rows = ((), "class") if need is None else need
        features: Features = self.teacher(images, attention_layers=layers, attention_rows=rows)
        patches = features.patches if self.config.has_patch_loss else None
        return Looked(self.teacher.summary(features), patches, features.attention)

    def draw_mask(
        self, looked: Looked, extras: Mapping[str, Tensor], progress: Progress
    ) -> Bool[Tensor, "GB N"] | None:
        """The step's masks on the grid of the encoder's output; None where masks play no part."""
        if self.masks is None:
            return None
        mask = self.masks.draw(looked.attention, extras, progress)
        return torch.zeros_like(mask) if progress.epoch_index < self.config.pred_start_epoch else mask

    def compare(
        self,
        images: Float[Tensor, "GB 3 S S"],
        local_crops: Sequence[Float[Tensor, "B 3 s s"]],
        looked: Looked,
        mask: Bool[Tensor, "GB N"] | None,
        progress: Progress,
    ) -> StepOutput:
        """Loss of normalised crops whose patches are hidden by `mask`, given what the teacher saw of them."""
        config = self.config
        compared = len(images) * (process_count() if config.norm_in_head == "syncbn" else 1)
        if compared == 1 and config.norm_in_head in ("bn", "syncbn") and not config.has_patch_loss:
            raise ConfigError(
                f"train.batch_size: 1 image in 1 global crop, but method.norm_in_head={config.norm_in_head} compares "
                f"those of {'all processes' if config.norm_in_head == 'syncbn' else 'a process'}. Take at least 2 "
                "there, or leave norm_in_head out."
            )
        places = self._places(looked, mask)
        targets = self._targets(looked, places, progress.epoch_index)
        answers = self._answers(images, local_crops, mask, places)

        losses = {"loss_cls": config.lambda1 * class_token_loss(targets.views, answers.views, config.student_temp)}
        if places:
            owners = places[0] // self.num_patches
            losses["loss_patch"] = config.lambda2 * patch_token_loss(
                targets.patches[0], answers.patches[0], config.student_temp, owners, len(images)
            )
        if config.contrastive is not None:
            losses["contrastive"] = self._contrastive(config.contrastive, targets, answers)
        loss = torch.stack(list(losses.values())).sum()
        return StepOutput(loss, self._metrics(losses, targets, answers, mask, progress))

    def start_averages(self) -> None:
        """Make the teacher what the student is, by name, as the original does.

        There one last layer for both has both names, and `last_layer2` is loaded last: a teacher with one layer starts
        from the *patch* layer of a student with two.
        """
        self.teacher.load_state_dict(self.encoder.state_dict())
        state = self.head.state_dict()
        patch_layer = {name: tensor for name, tensor in state.items() if name.startswith("last_layer2.")}
        if patch_layer and self.teacher_head.last_layer2 is None:
            state = {name: tensor for name, tensor in state.items() if name not in patch_layer}
            state |= {name.replace("last_layer2", "last_layer"): tensor for name, tensor in patch_layer.items()}
        elif self.head.last_layer2 is None and self.teacher_head.last_layer2 is not None:
            class_layer = {name: tensor for name, tensor in state.items() if name.startswith("last_layer.")}
            state |= {name.replace("last_layer", "last_layer2"): tensor for name, tensor in class_layer.items()}
        self.teacher_head.load_state_dict(state)

    def encoders(self) -> Mapping[str, Encoder]:
        """The teacher, which is the result, and the student."""
        return {"student": self.encoder, "teacher": self.teacher}

    def class_heads(self) -> Mapping[str, ClassHead]:
        """The outputs for class tokens; none where no loss has trained them."""
        if self.config.lambda1 == 0:
            return {}
        heads = {"student": self.head, "teacher": self.teacher_head}
        return {role: partial(_class_logits, head) for role, head in heads.items()}

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """No decay for vectors and biases; tokens, positions, tables and the last layer's lengths are decayed."""
        return GroupKey(decay=parameter.ndim > 1 and not name.endswith(".bias"))

    def before_update(self, progress: Progress) -> None:
        """Take the last layers' gradients away while they are frozen; zeros would still decay them and count steps."""
        if progress.epoch_index < self.config.freeze_last_layer:
            for name, parameter in self.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None

    def sample_masks(self, count: int, seed: int) -> Bool[Tensor, "count 1 S S"] | None:
        """Masks of a global crop as the loader draws them; None if none hides, or the teacher must look first."""
        mask = None if self.masks is None else self.masks.sample(count, seed)
        if mask is None or not bool(mask.any()):
            return None
        return pixel_mask(mask, self.grid, self.encoder.stride)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the centres, then the teacher: the centres belong to the weights that made this step's logits."""
        if self.config.centering:
            self._move_centers()
        pairs = pair_by_name(self.encoder, self.teacher) + pair_by_name(self.head, self.teacher_head)
        update_average(pairs, self._momentum(progress))

    def _places(self, looked: Looked, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Patches whose outputs are compared: the hidden ones; for the contrastive term, those of high and low score.

        Each group is int64 [m] of image * N + patch over the stacked global crops; there is none without a patch loss.
        """
        if mask is None or not self.config.has_patch_loss:
            return ()
        hidden = mask.flatten().nonzero().squeeze(1)
        if self.config.contrastive is None or self.masks is None:
            return (hidden,)
        pairs = select_pairs(self.masks.pair_scores(looked.attention), self.config.contrastive.k_anchors)
        first = torch.arange(len(mask), device=mask.device).unsqueeze(1) * self.num_patches
        return (hidden, *((first + ids).flatten() for ids in pairs))

    @torch.no_grad()
    def _targets(self, looked: Looked, places: Sequence[Tensor], epoch: int) -> Targets:
        """The teacher's distributions, with the centres as they were before this step."""
        head, crops = self.teacher_head, self.config.global_crops_number
        # [G B, 1 + N, d]; the patches' centre needs all of them.
        narrow = head.bottleneck(_joined(looked.summary, looked.patches))
        self._sum_up(narrow)
        logits = head.logits(narrow[:, 0])
        views = teacher_probabilities(logits, self.center, self.temperature(epoch))
        winners = logits[: len(logits) // crops].argmax(dim=-1)

        def probabilities(ids: Tensor) -> Tensor:
            outputs = head.patch_logits(self._at(narrow, _filled_up(ids)))[: len(ids)]
            return teacher_probabilities(outputs, self.center2, self.patch_temperature(epoch))

        return Targets(views.reshape(crops, -1, views.shape[-1]), tuple(map(probabilities, places)), winners)

    def _answers(
        self, images: Tensor, local_crops: Sequence[Tensor], mask: Tensor | None, places: Sequence[Tensor]
    ) -> Answers:
        """The student's logits: one pass over the global crops, one over the local ones."""
        if self.config.contrastive is None or self.config.contrastive.source == "teacher":
            places = places[:1]
        hidden = None if mask is None or self.mask_token is None else self._on_input_grid(mask)
        every_token = self.whole_batch_only and self.config.has_patch_loss
        narrow = self._narrow_all if every_token else self._narrow_wanted
        classes, patches = narrow(images, local_crops, hidden, [_filled_up(ids) for ids in places])
        views = self.head.logits(classes)
        images_per_crop = len(images) // self.config.global_crops_number
        views = views.reshape(-1, images_per_crop, views.shape[-1])
        outputs = [self.head.patch_logits(part) for part in patches]
        return Answers(views, tuple(part[: len(ids)] for part, ids in zip(outputs, places, strict=True)))

    def _narrow_wanted(
        self, images: Tensor, local_crops: Sequence[Tensor], hidden: Tensor | None, places: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The head's narrow vectors of class tokens and of the patches at each group of places; no others are made."""
        seen = self.encoder.forward_selected(
            images, mask=hidden, mask_token=self.mask_token, selected=torch.cat(list(places)) if places else None
        )
        summaries = [seen.summary]
        if local_crops:
            summaries.append(self.encoder.forward_selected(torch.cat(list(local_crops))).summary)
        count = sum(map(len, summaries))
        narrow = self.head.bottleneck(torch.cat([*summaries, seen.patches]))
        return narrow[:count], list(torch.split(narrow[count:], [len(ids) for ids in places]))

    def _narrow_all(
        self, images: Tensor, local_crops: Sequence[Tensor], hidden: Tensor | None, places: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The same, with all tokens of the crops of one size in one batch of the head's norms."""
        features: Features = self.encoder(images, mask=hidden, mask_token=self.mask_token)
        narrow = self.head.bottleneck(_joined(self.encoder.summary(features), features.patches))  # [G B, 1 + N, d]
        classes = [narrow[:, 0]]
        if local_crops:
            features = self.encoder(torch.cat(list(local_crops)))
            classes.append(self.head.bottleneck(_joined(self.encoder.summary(features), features.patches))[:, 0])
        return torch.cat(classes), [self._at(narrow, ids) for ids in places]

    def _at(self, tokens: Float[Tensor, "GB T d"], ids: Int64[Tensor, "m"]) -> Float[Tensor, "m d"]:
        """Rows of the patches at some places; before every image's patches stands its class token."""
        return tokens.flatten(0, 1).index_select(0, ids + ids // self.num_patches + 1)

    def _contrastive(self, config: ContrastiveConfig, targets: Targets, answers: Answers) -> Tensor:
        """The third term, from the probabilities of patches of high and of low score."""
        if config.source == "teacher":
            positive, negative = targets.patches[1:]
        else:
            temperature = self.config.student_temp
            positive, negative = ((part.float() / temperature).softmax(dim=-1) for part in answers.patches[1:])
        shape = (self.config.global_crops_number, -1, config.k_anchors, positive.shape[-1])
        term = contrastive(positive.reshape(shape), negative.reshape(shape), config.cont_dense_temp, config.form)
        return config.lambda3 * term

    def _on_input_grid(self, mask: Tensor) -> Tensor:
        """A mask of output tokens as one of input patches; Swin's are finer."""
        finer = self.encoder.stride // self.encoder.patch_size
        return repeat_cells(mask.reshape(-1, *self.grid), finer).flatten(1)

    def _sum_up(self, narrow: Float[Tensor, "GB T d"]) -> None:
        """Add the class tokens and the mean patches of this micro-batch to the step's sums."""
        if self.config.centering and self.training:
            self.bottleneck_sums[0] += narrow[:, 0].float().sum(dim=0)
            if narrow.shape[1] > 1:
                self.bottleneck_sums[1] += narrow[:, 1:].float().mean(dim=1).sum(dim=0)
            self.images_summed += len(narrow)

    def _move_centers(self) -> None:
        """Move the centres towards the mean logits of all crops, images (patches) and processes of the step."""
        sums = sum_over_processes(torch.cat([self.bottleneck_sums.flatten(), self.images_summed.reshape(1)]))
        class_mean, patch_mean = (sums[:-1] / sums[-1]).chunk(2)
        update_center(self.center, self.teacher_head.logits(class_mean), self.config.center_momentum)
        if self.config.has_patch_loss:
            update_center(self.center2, self.teacher_head.patch_logits(patch_mean), self.config.center_momentum)
        self.bottleneck_sums.zero_()
        self.images_summed.zero_()

    def temperature(self, epoch: int) -> float:
        config = self.config
        return teacher_temperature(
            epoch,
            warm=config.warmup_teacher_temp,
            final=config.teacher_temp,
            warmup_epochs=config.warmup_teacher_temp_epochs,
        )

    def patch_temperature(self, epoch: int) -> float:
        config = self.config
        return teacher_temperature(
            epoch,
            warm=config.warmup_teacher_patch_temp,
            final=config.teacher_patch_temp,
            warmup_epochs=config.warmup_teacher_temp_epochs,
            start_epoch=config.pred_start_epoch,
        )

    def _momentum(self, progress: Progress) -> float:
        return ibot_cosine(progress.step, base=self.config.momentum_teacher, final=1.0, total=progress.total_steps)

    @torch.no_grad()
    def _metrics(
        self,
        losses: Mapping[str, Tensor],
        targets: Targets,
        answers: Answers,
        mask: Tensor | None,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """What the log holds beside the loss; nothing here waits for the device.

        It tells of the outputs that are trained: those for images, or with lambda1 = 0 those for hidden patches.
        """
        metrics = {name: value.detach() for name, value in losses.items()}
        in_force = {"momentum": self._momentum(progress)}
        if self.config.lambda1 > 0:
            # As in the original: the teacher's largest output for the first crop is the student's for the second.
            agree = targets.winners == answers.views[1].argmax(dim=-1)
            metrics |= _about_outputs(targets.views.flatten(0, 1), agree) | {"center_norm": self.center.norm()}
            in_force["teacher_temp"] = self.temperature(progress.epoch_index)
        elif progress.epoch_index >= self.config.pred_start_epoch:
            agree = targets.patches[0].argmax(dim=-1) == answers.patches[0].argmax(dim=-1)
            metrics |= _about_outputs(targets.patches[0], agree) | {"center_norm": self.center2.norm()}
        if self.config.has_patch_loss:
            in_force["teacher_patch_temp"] = self.patch_temperature(progress.epoch_index)
        if mask is not None:
            metrics["hidden_share"] = mask.float().mean()
        return metrics | {name: self.center.new_full((), value) for name, value in in_force.items()}

    def _build_head(self, shared: bool) -> DistillationHead:
        config = self.config
        own_patch_layer = config.has_patch_loss and config.head_bottleneck_dim > 0 and not shared
        return DistillationHead(
            self.encoder.embed_dim,
            config.out_dim,
            config.num_patch_outputs if own_patch_layer else None,
            hidden_dim=config.head_hidden_dim,
            bottleneck_dim=config.head_bottleneck_dim,
            num_layers=config.head_num_layers,
            norm=config.norm_in_head,
            activation=config.act_in_head,
            norm_last_layer=config.norm_last_layer,
        )

    def _warn_of_unequal_heads(self) -> None:
        config = self.config
        same = config.shared_head == config.shared_head_teacher or config.head_bottleneck_dim == 0
        if same or not config.has_patch_loss:
            return
        if config.shared_head_teacher:
            fate = "starts as the student's layer for patches and then follows its layer for class tokens only"
        else:
            fate = "for patches starts as the student's only one and then never moves"
        logger.warning(
            "method.shared_head=%s with method.shared_head_teacher=%s: averages go by name, so the last layer of the "
            "teacher %s. The original's command line starts like that; its published recipes set both to true.",
            str(config.shared_head).lower(),
            str(config.shared_head_teacher).lower(),
            fate,
        )

    def _crop_masks(self, encoder: Encoder) -> CropMasks | None:
        config = self.config
        if not config.uses_masks:
            return None
        masks = CropMasks(
            config.mask, config.global_crops_number, self.grid, encoder.num_layers, encoder.has_class_token
        )
        if config.contrastive is not None:
            masks.check_scored("method.contrastive")
            check_pairs(config.contrastive.k_anchors, masks.num_patches, "method.contrastive.k_anchors")
            if config.contrastive.source == "teacher":
                logger.warning(
                    "method.contrastive: as published, the term is made of the teacher's outputs only, so it has no "
                    "gradient: it moves the printed loss and nothing else. method.contrastive.source=student acts."
                )
        return masks


def _filled_up(ids: Int64[Tensor, "m"]) -> Int64[Tensor, "M"]:
    """Places with some repeated at the end, M a multiple of 32; what comes of those must be cut off again.

    Each step hides another number of patches. A CPU's matrix library (oneDNN) makes code of its own for each number of
    rows and keeps it: half a megabyte for each product and number, up to gigabytes in a long run.
    """
    more = -len(ids) % 32
    return torch.cat([ids, ids[:1].expand(more)]) if more else ids


def _class_logits(head: DistillationHead, summary: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
    return head.logits(head.bottleneck(summary))


def _joined(summary: Float[Tensor, "B D"], patches: Float[Tensor, "B N D"] | None) -> Float[Tensor, "B T D"]:
    """Each image's class token, and its patches behind it where there are any."""
    tokens = summary.unsqueeze(1)
    return tokens if patches is None else torch.cat([tokens, patches], dim=1)


def _about_outputs(probs: Float[Tensor, "n K"], agree: Bool[Tensor, "m"]) -> dict[str, Tensor]:
    """How a teacher's outputs are spread, and the share in which the student agrees; 0 where there are none.

    Args:
        probs: distributions of the teacher.
        agree: whether the largest outputs of both are the same.
    """
    used = probs.new_zeros(probs.shape[1]).index_fill_(0, probs.argmax(dim=-1), 1.0)
    return {
        "teacher_entropy": _mean(torch.special.entr(probs).sum(dim=-1)),
        "assignment_entropy": torch.special.entr(_mean(probs)).sum(),
        "prototypes_used": used.sum(),
        "agreement": _mean(agree.float()),
    }


def _mean(rows: Float[Tensor, "n *K"]) -> Float[Tensor, "*K"]:
    """Over the rows; 0 where there are none."""
    return rows.sum(dim=0) / max(1, len(rows))

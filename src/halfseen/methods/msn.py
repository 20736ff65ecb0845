"""MSN: views with patches missing must be placed among prototypes where a whole view of the same image is.

Paper: Masked Siamese Networks for Label-Efficient Learning, arXiv 2204.07141.

    views     target and `rand_views` anchors [B, 3, R, R], `focal_views` small anchors [B, 3, F, F]
    drop      floor(N (1 - patch_drop)) patches of the first group of anchors enter the encoder, the same for all images
    anchors   class token -> head -> z [V B, d]; one pass and one batch norm per resolution
    target    class token -> head of the moving averages -> h [B, d], no gradient
    assign    p = softmax(cos(z, Q) / tau), t = sharpened (and balanced) softmax(cos(h, Q) / tau), K prototypes Q
    compare   cross-entropy of p with t, log K - entropy of the mean p (me-max), mean entropy of p

Deviations, equal in value: dropped patches are never projected; the encoder's last block runs for the class token only;
the products with the label-smoothing matrix are written out; logarithms of probabilities are taken as such. Kept
patches and views are functions of (seed, step), not of a global generator.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.heads import MSNHead
from halfseen.backbones.initialise import init_msn
from halfseen.backbones.teacher import averaged_copy
from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.methods.base import ClassHead, CropScale, Method
from halfseen.ops.assignment import (
    mean_entropy,
    mean_entropy_gap,
    prototype_log_probs,
    sharpen,
    sinkhorn,
    view_cross_entropy,
)
from halfseen.ops.collectives import mean_over_processes, mean_pass_through, process_count, sum_over_processes
from halfseen.ops.moving_average import pair_by_name, update_average
from halfseen.ops.patches import whole_patches
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import step_noise, torch_generator
from halfseen.ops.schedules import linear_ramp
from halfseen.types import Batch, GroupKey, Photometric, Progress, StepOutput, ViewPlan, ViewSpec


class MSNConfig(BaseModel):
    """What MSN may be told; the defaults are those of the published ViT-S/16 configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["msn"] = Field("msn", description="the method: msn")
    num_prototypes: int = Field(1024, ge=2, description="number of prototypes, K (num_proto)")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosines with the prototypes, tau")
    start_sharpen: float = Field(0.25, gt=0, le=1, description="sharpening T of the targets at the first step")
    final_sharpen: float = Field(0.25, gt=0, le=1, description="sharpening T at the end of the schedules' horizon")
    me_max: bool = Field(True, description="push the mean assignment of a batch to use all prototypes (true/false)")
    memax_weight: float = Field(1.0, ge=0, description="weight of me-max, lambda")
    use_ent: bool = Field(True, description="compute the anchors' mean entropy (true/false)")
    ent_weight: float = Field(0.0, ge=0, description="weight of that entropy; 0 only logs it")
    use_sinkhorn: bool = Field(True, description="balance the targets over the prototypes (true/false)")
    freeze_prototypes: bool = Field(False, description="keep the prototypes as they are drawn (true/false)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of every assignment that is spread evenly, s")
    patch_drop: float = Field(0.15, ge=0, lt=1, description="dropped share of the patches of the first group of views")
    patch_drop_scope: Literal["shared", "per_sample"] = Field(
        "shared",
        description="which patches are kept: the same for the whole group (original), or drawn for each view of each "
        "image",
    )
    rand_views: int = Field(1, ge=0, description="large anchor views of each image, at data.image_size")
    focal_views: int = Field(10, ge=0, description="small anchor views of each image")
    focal_size: int = Field(96, ge=1, description="side of the small views in pixels")
    rand_crop_scale: CropScale = Field(
        (0.3, 1.0), description="smallest and largest share of the image's area in a large view, each in (0, 1]"
    )
    focal_crop_scale: CropScale = Field(
        (0.05, 0.3), description="smallest and largest share of the image's area in a small view, each in (0, 1]"
    )
    color_jitter_strength: float = Field(
        0.5, ge=0, le=2.5, description="s: brightness, contrast and saturation vary by 0.8 s, hue by 0.2 s"
    )
    hue: float | None = Field(
        None, ge=0, le=0.5, description="largest turn of the colour circle, 0.5 = any colour; null = 0.2 s"
    )
    grayscale: float = Field(0.2, ge=0, le=1, description="probability that a view loses its colours")
    blur: float = Field(0.5, ge=0, le=1, description="probability of a Gaussian blur of 0.1 to 2 pixels")
    hidden_dim: int = Field(2048, ge=1, description="width of the head's hidden layers")
    output_dim: int = Field(256, ge=1, description="width of representations and prototypes, d")
    use_bn: bool = Field(True, description="batch norm in the head (true/false)")
    start_momentum: float = Field(0.996, ge=0, le=1, description="momentum of the target's average at the first step")
    final_momentum: float = Field(1.0, ge=0, le=1, description="momentum at the end of the schedules' horizon")
    schedule_horizon: float = Field(
        1.25,
        ge=1,
        description="length of all schedules over the length of the run; at 1.25 (original) none reaches its end",
    )
    prototype_gradient: Literal["sum", "mean"] = Field(
        "sum", description="how processes join the prototypes' gradients: sum (original) or mean, as all others"
    )
    decay_exclude_tokens: bool = Field(
        False, description="keep class token and positions out of the weight decay (the original decays them)"
    )

    @model_validator(mode="after")
    def _settings_go_together(self) -> "MSNConfig":
        if self.rand_views + self.focal_views == 0:
            raise ValueError("rand_views: got 0 beside focal_views=0, but at least one anchor view is needed.")
        refuse_idle(
            self,
            (
                Need("memax_weight", self.me_max, "me_max=false"),
                Need("ent_weight", self.use_ent, "use_ent=false"),
                Need("patch_drop_scope", self.patch_drop > 0, "patch_drop=0"),
                Need("focal_size", self.focal_views > 0, "focal_views=0"),
                Need("focal_crop_scale", self.focal_views > 0, "focal_views=0"),
                Need("prototype_gradient", not self.freeze_prototypes, "freeze_prototypes=true"),
            ),
        )
        return self


class MSN(Method):
    """MSN around a plain ViT, or one with a convolutional stem.

    Args:
        config: the method's settings.
        encoder: the anchor encoder; initialised here as the original.
        image_size: side of the large views in pixels.
        mean, std: normalisation of the pixels, per colour, on the scale 0 to 1.
        seed: of the initial weights.
    Raises:
        ConfigError: an encoder without a class token, small views without a whole patch, or a drop that keeps none.
    """

    name = "msn"
    main_role = "teacher"
    whole_batch_only = True

    def __init__(
        self, config: MSNConfig, encoder: Encoder, image_size: int, mean: Channels, std: Channels, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.mean, self.std = mean, std
        self.schedule_horizon = config.schedule_horizon
        self.num_outputs = config.num_prototypes
        if not encoder.has_class_token:
            raise ConfigError(
                "model.name: MSN places class tokens and drops patches; this model can't. Choose a vit_* model."
            )
        sizes = [image_size] * config.rand_views + [config.focal_size] * config.focal_views
        for size in dict.fromkeys(sizes):
            if size < encoder.patch_size:
                raise ConfigError(
                    f"method.focal_size: views of {size} px hold no whole patch of {encoder.patch_size} px. Choose a "
                    "larger size or a smaller model.patch_size."
                )
        self.first_grid = sizes[0] // encoder.patch_size
        if self.num_kept < 1:
            most = math.floor(1000 * (1 - 1 / self.first_grid**2)) / 1000
            raise ConfigError(
                f"method.patch_drop: {config.patch_drop} of {self.first_grid**2} patches keeps none. Choose at most "
                f"{most:g}."
            )
        jitter = config.color_jitter_strength
        colour = Photometric(
            brightness=0.8 * jitter,
            contrast=0.8 * jitter,
            saturation=0.8 * jitter,
            hue=0.2 * jitter if config.hue is None else config.hue,
            jitter=0.8,
            grayscale=config.grayscale,
            blur=config.blur,
        )
        large = ViewSpec(
            image_size, 1 + config.rand_views, config.rand_crop_scale, interpolation="bilinear", colour=colour
        )
        small = ViewSpec(
            config.focal_size, config.focal_views, config.focal_crop_scale, interpolation="bilinear", colour=colour
        )
        self.views = (large, small) if config.focal_views else (large,)

        self.encoder = encoder
        self.head = MSNHead(encoder.embed_dim, config.hidden_dim, config.output_dim, config.use_bn)
        self.prototypes = nn.Parameter(
            torch.empty(config.num_prototypes, config.output_dim), requires_grad=not config.freeze_prototypes
        )
        with torch.no_grad():
            init_msn(encoder, self.head, self.prototypes, torch_generator(seed, "weights"))
        self.teacher = averaged_copy(encoder, drop_path=True)
        self.teacher_head = averaged_copy(self.head)

    @property
    def num_kept(self) -> int:
        """Patches of the first group of views that are kept, of a grid with N: floor(N (1 - patch_drop))."""
        return int(self.first_grid**2 * (1.0 - self.config.patch_drop))

    def view_plan(self) -> ViewPlan:
        """The target, the large anchors, the small anchors."""
        return ViewPlan(views=self.views)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views = [normalise(view, self.mean, self.std) for view in batch.views]
        kept = None if self.config.patch_drop == 0 else self.kept_patches(views, progress)
        out = self.compare(views[0], views[1:], kept, self.sharpening(progress))
        in_force = {"sharpening": self.sharpening(progress), "momentum": self.momentum(progress)}
        return StepOutput(out.loss, {**out.metrics, **{key: out.loss.new_full((), in_force[key]) for key in in_force}})

    def kept_patches(self, views: Sequence[Tensor], progress: Progress) -> Int64[Tensor, "rows n"]:
        """Patches that enter the encoder, for each row of the first group of anchors; the class token always does."""
        anchors = views[1:]
        num_views = sum(view.shape[-1] == anchors[0].shape[-1] for view in anchors)
        B, N = len(views[0]), self.first_grid**2
        if self.config.patch_drop_scope == "shared":
            noise = torch.rand(1, N, generator=torch_generator(progress.seed, progress.step, "patch_drop"))
            ids = noise.argsort(dim=1)[:, : self.num_kept].expand(num_views * B, -1)
        else:
            noise = step_noise(progress, B, num_views * N, "patch_drop")
            per_view = noise.reshape(B, num_views, N).transpose(0, 1).reshape(num_views * B, N)
            ids = per_view.argsort(dim=1)[:, : self.num_kept]
        return ids.to(views[0].device, non_blocking=True)

    def check_batch(self, num_images: int) -> None:
        """Raises:
        ConfigError: a single image, where there is batch norm.
        """
        if self.config.use_bn and num_images == 1:
            raise ConfigError(
                "train.batch_size: a step of 1 image, but batch norm compares images. Take at least 2, leave out what "
                "an epoch has left over (train.drop_last=true), or set method.use_bn=false."
            )

    def compare(
        self,
        target: Float[Tensor, "B 3 R R"],
        anchors: Sequence[Float[Tensor, "B 3 _ _"]],
        kept: Int64[Tensor, "rows n"] | None,
        sharpening: float,
    ) -> StepOutput:
        """Loss of normalised views, `kept` patches of whose first group are seen, with targets sharpened by T.

        Raises:
            ConfigError: a single image, where there is batch norm.
        """
        config = self.config
        self.check_batch(len(target) * process_count())
        z = self.represent_anchors(anchors, kept).float()  # [V B, d]
        with torch.no_grad():
            whole = whole_patches(target, self.teacher.patch_size)
            h = self.teacher_head(self.teacher.forward_selected(whole, selected=None).summary).float()  # [B, d]

        with torch.autocast(z.device.type, enabled=False):
            log_probs = prototype_log_probs(z, self.prototypes, config.temperature, config.label_smoothing)
            with torch.no_grad():
                targets = sharpen(
                    prototype_log_probs(h, self.prototypes, config.temperature, config.label_smoothing), sharpening
                )
                if config.use_sinkhorn:
                    targets = sinkhorn(targets, total=sum_over_processes)
            probs = log_probs.exp()
            cross_entropy = view_cross_entropy(log_probs, targets)
            loss = cross_entropy
            metrics = {"ploss": cross_entropy.detach()}
            if config.me_max:
                me_max = mean_entropy_gap(probs, mean=mean_pass_through)
                loss = loss + config.memax_weight * me_max
                metrics["me_max"] = me_max.detach()
            if config.use_ent:
                entropy = mean_entropy(log_probs)
                loss = loss + config.ent_weight * entropy
                metrics["ent"] = entropy.detach()
            with torch.no_grad():
                metrics |= self._outputs(log_probs, targets)
        return StepOutput(loss, metrics)

    def represent_anchors(
        self, anchors: Sequence[Float[Tensor, "B 3 _ _"]], kept: Int64[Tensor, "rows n"] | None
    ) -> Float[Tensor, "VB d"]:
        """Neighbouring views of one size make a group; each is encoded and batch-normalised by itself."""
        groups: list[list[Tensor]] = []
        for view in anchors:
            if groups and groups[-1][0].shape[-1] == view.shape[-1]:
                groups[-1].append(view)
            else:
                groups.append([view])
        found = []
        for number, group in enumerate(groups):
            images = whole_patches(torch.cat(group), self.encoder.patch_size)
            visible = kept if number == 0 else None
            tokens = self.encoder.forward_selected(images, visible_ids=visible, selected=None).summary
            found.append(self.head(tokens))
        return torch.cat(found)

    @staticmethod
    def _outputs(log_probs: Float[Tensor, "VB K"], targets: Float[Tensor, "B K"]) -> dict[str, Tensor]:
        """What the targets look like, for log and health."""
        winner = targets.argmax(dim=1)
        average = mean_over_processes(targets.mean(dim=0))
        used = torch.zeros_like(targets[0]).index_fill_(0, winner, 1.0)
        agreed = (log_probs.argmax(dim=1).reshape(-1, len(targets)) == winner).float()
        return {
            "max_t": targets.amax(dim=1).mean(),
            "min_t": targets.amin(dim=1).mean(),
            "prototypes_used": used.sum(),
            "teacher_entropy": torch.special.entr(targets).sum(dim=1).mean(),
            "assignment_entropy": torch.special.entr(average).sum(),
            "agreement": agreed.mean(),
        }

    def sharpening(self, progress: Progress) -> float:
        """T of this step, from 0 at the first."""
        config = self.config
        horizon = config.schedule_horizon * progress.total_steps
        return linear_ramp(progress.step, start=config.start_sharpen, final=config.final_sharpen, total=horizon)

    def momentum(self, progress: Progress) -> float:
        """Share of the target that stays at the update of this step."""
        config = self.config
        horizon = config.schedule_horizon * progress.total_steps
        return linear_ramp(progress.step, start=config.start_momentum, final=config.final_momentum, total=horizon)

    def encoders(self) -> Mapping[str, Encoder]:
        """The anchor encoder, and the target: what the paper evaluates."""
        return {"student": self.encoder, "teacher": self.teacher}

    def class_heads(self) -> Mapping[str, ClassHead]:
        """The log-probabilities of the prototypes."""
        heads = {"student": self.head, "teacher": self.teacher_head}
        return {role: partial(self._of_prototypes, head) for role, head in heads.items()}

    def _of_prototypes(self, head: MSNHead, summary: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return prototype_log_probs(head(summary), self.prototypes, self.config.temperature, 0.0)

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """No decay for prototypes, vectors, biases and batch norms; class token and positions are decayed."""
        if name == "prototypes":
            return GroupKey(decay=False, clip=False)
        own_name = name.rsplit(".", 1)[-1]
        if parameter.ndim <= 1 or "bias" in name or ".bn" in name:
            return GroupKey(decay=False)
        tokens = own_name in ("cls_token", "reg_token", "pos_embed")
        return GroupKey(decay=not (tokens and self.config.decay_exclude_tokens))

    def start_averages(self) -> None:
        """The target starts as the anchors do."""
        self.teacher.load_state_dict(self.encoder.state_dict())
        self.teacher_head.load_state_dict(self.head.state_dict())

    def before_update(self, progress: Progress) -> None:
        """The prototypes' gradient is a sum over the processes, where all others are means."""
        if self.prototypes.grad is not None and self.config.prototype_gradient == "sum":
            self.prototypes.grad.mul_(process_count())

    def after_step(self, progress: Progress) -> None:
        """The target follows the anchors; its batch statistics are its own."""
        pairs = pair_by_name(self.encoder, self.teacher) + pair_by_name(self.head, self.teacher_head)
        update_average(pairs, self.momentum(progress))

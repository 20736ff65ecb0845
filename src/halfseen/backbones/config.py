"""What a model is: a preset name, and the sizes in which it may depart from it.

`None` always means the preset's own value, so a recipe writes only what differs. Light to import: neither torch nor
timm is loaded until a name has to be looked up in timm's list.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.errors import ConfigError
from halfseen.idle import IdleSettings

Family = Literal["vit", "vit_conv", "swin", "beit", "viny"]


@dataclass(frozen=True)
class Preset:
    """Sizes of a named model; `timm` is the registered timm model it is built from (empty: timm has none)."""

    family: Family
    timm: str
    patch_size: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float
    norm_eps: float


def _vit(timm: str, patch_size: int, embed_dim: int, depth: int, num_heads: int) -> Preset:
    return Preset("vit", timm, patch_size, embed_dim, (depth,), (num_heads,), 4.0, 1e-6)


def _vit_conv(depth: int, mlp_ratio: float) -> Preset:
    return Preset("vit_conv", "", 16, 384, (depth,), (6,), mlp_ratio, 1e-6)


def _beit(timm: str, embed_dim: int, depth: int, num_heads: int) -> Preset:
    return Preset("beit", timm, 16, embed_dim, (depth,), (num_heads,), 4.0, 1e-6)


def _swin(timm: str, embed_dim: int, depths: tuple[int, ...], first_heads: int) -> Preset:
    heads = tuple(first_heads * 2**stage for stage in range(len(depths)))
    return Preset("swin", timm, 4, embed_dim, depths, heads, 4.0, 1e-5)


PRESETS: dict[str, Preset] = {
    "vit_tiny": _vit("vit_tiny_patch16_224", 16, 192, 12, 3),
    "vit_small": _vit("vit_small_patch16_224", 16, 384, 12, 6),
    "vit_base": _vit("vit_base_patch16_224", 16, 768, 12, 12),
    "vit_large": _vit("vit_large_patch16_224", 16, 1024, 24, 16),
    "vit_huge": _vit("vit_huge_patch14_224", 14, 1280, 32, 16),
    "vitc_4gf": _vit_conv(11, 3.0),
    "vit_small_convstem": _vit_conv(11, 6.0),
    "swin_tiny": _swin("swin_tiny_patch4_window7_224", 96, (2, 2, 6, 2), 3),
    "swin_small": _swin("swin_small_patch4_window7_224", 96, (2, 2, 18, 2), 3),
    "swin_base": _swin("swin_base_patch4_window7_224", 128, (2, 2, 18, 2), 4),
    "swin_large": _swin("swin_large_patch4_window7_224", 192, (2, 2, 18, 2), 6),
    "simmim_vit_tiny": _beit("beit_base_patch16_224", 192, 12, 3),
    "simmim_vit_small": _beit("beit_base_patch16_224", 384, 12, 6),
    "simmim_vit_base": _beit("beit_base_patch16_224", 768, 12, 12),
    "simmim_vit_large": _beit("beit_large_patch16_224", 1024, 24, 16),
    "viny_4m": Preset("viny", "", 16, 128, (12,), (8,), 4.0, 1e-5),
}

SWIN_WINDOW = 7
VINY_HEAD_DIM = 64

# Keys that mean nothing to a family; setting one is an error, not silence.
_WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "vit": ("depths", "window_size", "pad_windows", "head_dim", "relative_positions"),
    "vit_conv": ("depths", "window_size", "pad_windows", "head_dim", "relative_positions"),
    "swin": ("depth", "head_dim", "class_token", "absolute_positions", "relative_positions", "layer_scale",
             "final_norm", "position_rule", "crop_to_patches"),
    "beit": ("depths", "window_size", "pad_windows", "head_dim", "class_token", "crop_to_patches"),
    "viny": ("depths", "window_size", "pad_windows", "absolute_positions", "relative_positions", "layer_scale",
             "crop_to_patches"),
    "timm": ("depth", "depths", "embed_dim", "num_heads", "mlp_ratio", "head_dim", "relative_positions",
             "layer_scale", "absolute_positions", "class_token", "pad_windows", "crop_to_patches"),
}  # fmt: skip


class ModelConfig(BaseModel):
    """The encoder: a preset by name and the sizes that differ from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default="vit_small",
        description="a preset (vit_tiny|small|base|large|huge, vitc_4gf, vit_small_convstem, "
        "swin_tiny|small|base|large, simmim_vit_tiny|small|base|large, viny_4m) or any timm VisionTransformer "
        "/ SwinTransformer name",
    )
    patch_size: int | None = Field(
        default=None, ge=1, description="side of a patch in pixels, p; the image side must be a multiple"
    )
    embed_dim: int | None = Field(default=None, ge=4, description="token width D; of the first stage for Swin")
    depth: int | None = Field(default=None, ge=1, description="number of transformer blocks (ViT families)")
    depths: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="number of blocks of each stage (Swin)"
    )
    num_heads: int | tuple[int, ...] | None = Field(
        default=None,
        description="attention heads; for Swin one per stage, or a single number that doubles with each stage",
    )
    mlp_ratio: float | None = Field(
        default=None, gt=0, description="width of the MLP's hidden layer over the token width"
    )
    window_size: int | None = Field(
        default=None,
        ge=1,
        description="side of an attention window in tokens, W (Swin); None = the largest up to 7 that tiles every "
        "stage at this image size (7 at 224 px, 6 at 192 px)",
    )
    pad_windows: bool = Field(
        default=False,
        description="allow windows that don't tile the stages: their grids are padded with zeros, as iBOT does (Swin)",
    )
    head_dim: int | None = Field(
        default=None, ge=1, description="width of one attention head (ViNy: 64, not D / heads)"
    )
    drop_path: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="stochastic depth rate of the last block; rises linearly from 0 at the first",
    )
    norm_eps: float | None = Field(
        default=None,
        gt=0,
        lt=1e-2,
        description="epsilon of every LayerNorm (ViT 1e-6, Swin and ViNy 1e-5, KAMIM's ViT 1e-12)",
    )
    class_token: bool | None = Field(
        default=None,
        description="put a class token before the patches (ViT: yes; ViNy: it exists but only this flag uses it)",
    )
    absolute_positions: bool | None = Field(
        default=None, description="learned absolute position embedding (ViT: yes; official SimMIM ViT: no)"
    )
    relative_positions: Literal["shared", "per_block"] | None = Field(
        default=None,
        description="tables of relative position biases of the official SimMIM ViT: one for all blocks "
        "(pre-training) or one in each (fine-tuning)",
    )
    layer_scale: float | None = Field(
        default=None, ge=0, description="initial value of the layer-scale vectors, 0 = none (official SimMIM ViT: 0.1)"
    )
    final_norm: Literal["tokens", "pooled"] = Field(
        default="tokens",
        description="where the last LayerNorm stands: over every token, or (classifiers fine-tuned with mean pooling) "
        "over the pooled feature only, so that tokens stay raw",
    )
    position_rule: Literal["size", "scale_offset", "scale"] = Field(
        default="size",
        description="how learned positions are resized to another grid: size (MAE), scale_offset (iBOT), scale (MSN)",
    )
    crop_to_patches: bool = Field(
        default=False,
        description="cut off the right and bottom border of an image that fills no patch, as MSN does, instead of "
        "refusing the image (ViT)",
    )

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        preset = PRESETS.get(self.name)
        family = preset.family if preset else "timm"
        if preset is None:
            check_timm_name(self.name)
        given = [key for key in _WITHOUT_EFFECT[family] if key in self.model_fields_set and self._departs(key)]
        if given:
            reason = f"no effect on model {self.name!r} ({_FAMILY_WORDS[family]}). Leave it out"
            reason += ", or name a preset such as 'vit_small' to choose sizes." if family == "timm" else "."
            raise IdleSettings({key: f"{key}: {reason}" for key in given})
        self._check_heads()
        return self

    def _departs(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def _check_heads(self) -> None:
        preset = PRESETS.get(self.name)
        if preset is None or preset.family == "viny":
            return
        width, depths, heads = self.sizes()
        if len(heads) != len(depths):
            raise ConfigError(f"num_heads: got {len(heads)} numbers for {len(depths)} stages; give one per stage.")
        for stage, number in enumerate(heads):
            stage_width = width * 2**stage
            if number < 1 or stage_width % number:
                allowed = [n for n in range(1, min(stage_width, 64) + 1) if stage_width % n == 0]
                raise ConfigError(
                    f"num_heads: {number} heads don't divide the width {stage_width}; allowed here: "
                    f"{', '.join(map(str, allowed))}."
                )

    def preset(self) -> Preset:
        """The preset of this name.

        Raises:
            ConfigError: for names that only timm knows.
        """
        if self.name not in PRESETS:
            raise ConfigError(f"model.name: {self.name!r} is no preset. Presets: {', '.join(PRESETS)}.")
        return PRESETS[self.name]

    def sizes(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """(width of the first stage, blocks of each stage, heads of each stage) of a preset, departures applied."""
        preset = self.preset()
        depths = self.depths or ((self.depth,) if self.depth else preset.depths)
        heads: tuple[int, ...] = preset.num_heads
        if isinstance(self.num_heads, int):
            heads = tuple(self.num_heads * 2**stage for stage in range(len(depths)))
        elif self.num_heads is not None:
            heads = self.num_heads
        elif len(depths) != len(heads):
            heads = tuple(heads[0] * 2**stage for stage in range(len(depths)))
        return self.embed_dim or preset.embed_dim, depths, heads


_FAMILY_WORDS = {
    "vit": "a plain ViT",
    "vit_conv": "a ViT with a convolutional stem",
    "swin": "a Swin transformer",
    "beit": "the official SimMIM ViT",
    "viny": "ViNy",
    "timm": "a timm model with fixed sizes",
}


def check_timm_name(name: str) -> None:
    """See that timm knows `name` as a VisionTransformer or SwinTransformer.

    Raises:
        ConfigError: unknown name, with the nearest known ones.
    """
    import timm

    known = set(timm.list_models(["vit_*", "deit_*", "swin_*"]))
    if name.split(".")[0] in known:
        return
    near = difflib.get_close_matches(name, [*PRESETS, *sorted(known)], n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    raise ConfigError(
        f"name: unknown model {name!r}. Known: {', '.join(PRESETS)}, and timm's vit_*, deit_* and swin_* names.{hint}"
    )

"""What a run may say about its data: where the images are, at which size they are seen, what becomes of bad files."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCENES = "bundled:fashion-scenes"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Deviation = Annotated[float, Field(gt=0.0)]


class DataConfig(BaseModel):
    """The `data` section of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        default="bundled:fashion",
        min_length=1,
        description="Where the images are: a folder, a manifest.csv or .parquet, 'bundled:fashion', "
        "'bundled:fashion-scenes', 'torchvision:NAME' or 'intel:PATH'.",
    )
    image_size: int = Field(
        default=224, ge=16, le=4096, description="Side of the square images the encoder sees, in pixels."
    )
    mean: tuple[Share, Share, Share] = Field(
        default=IMAGENET_MEAN, description="Mean of red, green and blue that is subtracted, on the scale 0 to 1."
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        default=IMAGENET_STD,
        description="Standard deviation of red, green and blue that is divided by, on the scale 0 to 1.",
    )
    subset_size: int | None = Field(
        default=None, ge=1, description="Train on this many images drawn from the training split; None uses all."
    )
    subset_fraction: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Train on this share of the training split, drawn at random; None uses all.",
    )
    subset_seed: int = Field(default=0, ge=0, description="Seed of the draw of `subset_size` or `subset_fraction`.")
    subset_per_class: int | None = Field(
        default=None,
        ge=1,
        description="Train on the first images of each class, by file name, this many; None uses all.",
    )
    subset_fraction_per_class: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Train on the first images of each class, by file name, this share of them; None uses all.",
    )
    subset_rounding: Literal["floor", "ceil", "round"] = Field(
        default="floor",
        description="How `subset_fraction`, or `subset_fraction_per_class` of a class, becomes a number of images: "
        "floor, ceil or round (halves to the even number).",
    )
    subset_list: str | None = Field(
        default=None,
        description="Train on the images that a text file lists, one line `relative/path label` for each, relative to "
        "the train folder; None uses all.",
    )
    max_bad_fraction: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Largest share of unreadable files among those checked before training.",
    )
    precheck: int | None = Field(
        default=2000,
        ge=1,
        description="Number of files, evenly drawn, that are decoded before training; None checks none.",
    )
    max_pixels: int = Field(
        default=178_956_970,
        ge=1,
        description="Images with more pixels than this are skipped: a guard against decompression bombs.",
    )
    skip_list: str | None = Field(
        default=None,
        description="Path of a skip list written by `halfseen data check`; None uses halfseen_skip.json in the data's "
        "folder where there is one.",
    )
    root_dir: str | None = Field(
        default=None,
        description="Folder that holds, or receives, torchvision's data sets; None takes the environment variable "
        "HALFSEEN_DATA, else ~/.cache/halfseen.",
    )
    download: Literal["small", "always", "never"] = Field(
        default="small",
        description="Which of torchvision's data sets that are not there yet may be fetched when they are named: small "
        "(up to 10 GB), always (also iNaturalist's 224 GB) or never (the network is not used).",
    )
    scene_size: int | None = Field(
        default=None,
        ge=32,
        le=224,
        description="Side of the composed pictures of bundled:fashion-scenes, in pixels; None takes image_size, kept "
        "between 32 and 224.",
    )

    @model_validator(mode="after")
    def _one_subset_at_most(self) -> "DataConfig":
        keys = ("subset_size", "subset_fraction", "subset_per_class", "subset_fraction_per_class", "subset_list")
        given = [key for key in keys if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[1]}: got {getattr(self, given[1])!r} beside {given[0]}={getattr(self, given[0])!r}, but a "
                f"subset is chosen in one way only. Leave one of {', '.join(given)} out."
            )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "DataConfig":
        no_share = self.subset_fraction is None and self.subset_fraction_per_class is None
        if self.subset_rounding != "floor" and no_share:
            raise ValueError(
                f"subset_rounding: got '{self.subset_rounding}', but it has an effect with subset_fraction and "
                "subset_fraction_per_class only. Leave it out."
            )
        if self.scene_size is not None and self.source != SCENES:
            raise ValueError(
                f"scene_size: got {self.scene_size}, but it has an effect for source '{SCENES}' only, not for "
                f"'{self.source}'. Leave it out."
            )
        for key, standard in (("root_dir", None), ("download", "small")):
            if getattr(self, key) != standard and not self.source.startswith("torchvision:"):
                raise ValueError(
                    f"{key}: got '{getattr(self, key)}', but it has an effect for torchvision: sources only, not for "
                    f"'{self.source}'. Leave it out."
                )
        return self

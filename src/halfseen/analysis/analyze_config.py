"""What an analysis of encoders may be told."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

AnalysisName = Literal[
    "attention",
    "fourier",
    "spectra",
    "cka",
    "geometry",
    "similarity",
    "embedding",
    "rank",
    "layers",
    "probe",
    "masking",
    "noise",
    "reconstruction",
]
ANALYSES: tuple[AnalysisName, ...] = get_args(AnalysisName)

MaskRatio = Annotated[float, Field(ge=0, lt=1)]


class AnalyzeConfig(BaseModel):
    """Settings of `halfseen analyze`; the same for all encoders of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(500, ge=1, description="Most images that are analysed, the classes in turn.")
    fraction_per_class: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Take the first images of each class, this share of them rounded down, instead of `images`; "
        "KAMIM's analyses take 1/64 of Imagenette's: 0.015625.",
    )
    batch_size: int = Field(16, ge=1, description="Images per forward pass.")
    resize: Literal["crop", "squash"] = Field(
        "crop",
        description="How an image becomes square: crop (shorter side resized, centre cut out) or squash (aspect ratio "
        "lost). Data with masks are squashed in any case, so that masks fit.",
    )
    crop_ratio: float = Field(
        0.875, gt=0, le=1, description="Side of the centre crop over the resized shorter side, no unit."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bicubic", description="Filter that resizes images; the papers' analyses use bilinear."
    )
    feature: Literal["mean", "cls"] = Field(
        "mean",
        description="What stands for a whole image in retrieval and under noise, after the final norm: mean (of the "
        "patch tokens) or cls (the class token, where there is one).",
    )
    shown_images: int = Field(
        8, ge=1, description="Of how many images pictures are kept: attention maps, similarities, colours."
    )
    queries: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] | None = Field(
        None,
        min_length=1,
        description="Patches whose attention is shown, as [[row, column], ...] from 0; null takes the centre and two "
        "quarters. KAMIM's figure shows [[8, 3]].",
    )
    references: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] | None = Field(
        None,
        min_length=1,
        description="Patches whose similarity to all others is drawn, as [[row, column], ...] from 0; null takes "
        "corner, inside and outline of an object where the data has masks, else corner, centre and most contrast.",
    )
    spectrum_images: int = Field(
        64, ge=1, description="Of how many images the token-level singular values are computed."
    )
    token_rows: int = Field(
        4096, ge=2, description="About how many tokens, of all images together, CKA compares token by token."
    )
    embedding_images: int = Field(16, ge=1, description="Of how many images the tokens are drawn as points.")
    embedding_layer: int | None = Field(
        None,
        ge=1,
        description="Block whose tokens are drawn as points; null = the last but one (11 of 12, as in KAMIM's figure).",
    )
    tsne: bool = Field(True, description="Compute t-SNE of the tokens beside their principal components (true/false).")
    tsne_tokens: int = Field(1500, ge=30, description="Most tokens that t-SNE places, evenly spaced.")
    probe_epochs: int = Field(5, ge=1, description="Passes of the linear patch probe over the tokens.")
    probe_lr: float = Field(1e-2, gt=0, description="Adam's learning rate of the patch probe.")
    mask_ratios: tuple[MaskRatio, ...] = Field(
        (0.15, 0.3, 0.5, 0.7, 0.9), min_length=1, description="Shares of patches that masked queries lose."
    )
    masked_images: int = Field(32, ge=2, description="How many images are encoded with dropped patches.")
    masks_per_image: int = Field(
        3, ge=1, description="Independent masks of each image at the largest ratio, for neighbours and for LiDAR."
    )
    neighbours: int = Field(5, ge=1, description="Nearest whole images of a masked query (paper symbol k).")
    noise_images: int = Field(64, ge=1, description="How many images get band-limited noise.")
    noise_eps: float = Field(
        0.5, gt=0, description="Size of the noise before it is filtered, in units of the normalised input (epsilon)."
    )
    noise_half_width: float = Field(
        0.2, gt=0, description="Half the width of a band, in radians per pixel (s); the paper's text says 0.1 pi."
    )
    reconstruction_images: int = Field(64, ge=1, description="How many images a run's method reconstructs.")

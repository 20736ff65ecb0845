"""What an evaluation looks at: a frozen encoder, what is known of it, and what it is measured beside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from halfseen.backbones.base import Encoder
from halfseen.evaluation.features import EncoderFeatures, Extractor, RawPixels
from halfseen.evaluation.results import FeatureKind
from halfseen.ops.pixels import Channels
from halfseen.ops.precision import Precision

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, done, all)."""

RAW_MEAN, RAW_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Of pixels that are shown to an encoder as they are, on the scale 0 to 1."""

WITHOUT_RANDOM = "Without the random-initialisation baseline: this network can't be built anew."


@dataclass(frozen=True)
class Subject:
    """An encoder that every protocol can measure, together with its baselines.

    Attributes:
        encoder: the frozen encoder.
        random_encoder: builds the same network with fresh weights; None leaves this baseline out, with a note.
        mean, std: the normalisation the encoder expects.
        origin: where the encoder comes from, for the record.
        role: which of a run's encoders this is, "student" or "teacher".
        others: the run's other encoders by role; each is measured beside the baselines, under its role's name.
        pretrained_on: fingerprint of the images the encoder was pre-trained on, where known.
        pretrained_from: fingerprints of the sets that these were drawn from, if they were.
        taught_on: fingerprints of the data whose labels or masks the encoder has learned from, in an intermediate stage
            or by fine-tuning.
        image_size: side of the views; None = the encoder's own.
        device, precision: of the forward pass.
        workers: loader processes.
    """

    encoder: Encoder
    random_encoder: Callable[[], Encoder] | None
    mean: Sequence[float]
    std: Sequence[float]
    origin: str
    role: str = "student"
    others: Mapping[str, Encoder] = field(default_factory=dict)
    pretrained_on: str | None = None
    image_size: int | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    workers: int = 0
    taught_on: tuple[str, ...] = ()
    pretrained_from: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Side of the views in pixels."""
        return self.encoder.image_size if self.image_size is None else self.image_size

    def normalisation(self, removed: bool) -> tuple[Channels, Channels]:
        """Mean and spread to remove from pixels in [0, 1]: what the encoder expects, or nothing."""
        if not removed:
            return RAW_MEAN, RAW_STD
        (red, green, blue), (red_spread, green_spread, blue_spread) = self.mean, self.std
        return (red, green, blue), (red_spread, green_spread, blue_spread)

    @property
    def notes(self) -> list[str]:
        """What is missing among the baselines."""
        return [WITHOUT_RANDOM] if self.random_encoder is None else []

    def extractors(self, feature: FeatureKind, last_blocks: int = 1, layer: int | None = None) -> dict[str, Extractor]:
        """Whose features a result compares, the same choice for all: "encoder", others, "random_init", "raw_pixels".

        Args:
            feature, last_blocks, layer: see `EncoderFeatures`.
        """

        def features_of(encoder: Encoder) -> Extractor:
            return EncoderFeatures(
                encoder,
                self.mean,
                self.std,
                feature=feature,
                last_blocks=last_blocks,
                layer=layer,
                device=self.device,
                precision=self.precision,
            )

        found = {"encoder": features_of(self.encoder)}
        found |= {role: features_of(other) for role, other in self.others.items()}
        if self.random_encoder is not None:
            found["random_init"] = features_of(self.random_encoder())
        return {**found, "raw_pixels": RawPixels()}

"""A classifier: an encoder, one vector per image, a linear head. Built from a pre-trained encoder, kept for timm."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.beit import BeitEncoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.viny import ViNyEncoder
from halfseen.backbones.vit import ViTEncoder
from halfseen.backbones.weights import export_classifier, fit_state, read_exported
from halfseen.errors import WeightsError
from halfseen.evaluation.finetuning.config import PooledFeature, check_blocks, check_feature
from halfseen.ops.layer_decay import swin_finetune_group, vit_finetune_group
from halfseen.types import GroupKey

NEW_NORMS = frozenset({"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"})


class Classifier(nn.Module):
    """An encoder with a linear head.

    Args:
        encoder: as `classifier_from` builds it for this feature.
        feature: what the head sees.
        num_classes: outputs of the head.
    """

    def __init__(self, encoder: Encoder, feature: PooledFeature, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature: PooledFeature = feature
        self.head = nn.Linear(encoder.embed_dim, num_classes)

    def pooled(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The vector that the head sees, of normalised images."""
        if self.feature == "mean-then-norm":
            norm = getattr(self.encoder.trunk, "fc_norm", None)
            if isinstance(norm, nn.LayerNorm):  # A trunk that keeps its tokens raw for it.
                patches = self.encoder.encode(images).patches
            else:
                norm = self.encoder.final_norm
                patches = self.encoder.encode_layers(images, [self.encoder.num_layers])[0].patches
            pooled: Tensor = norm(patches.mean(dim=1))
            return pooled
        features = self.encoder.encode(images)
        return features.prefix[:, 0] if self.feature == "cls" else features.patches.mean(dim=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Logits of normalised images."""
        logits: Tensor = self.head(self.pooled(images))
        return logits

    def parameter_group(
        self, name: str, parameter: nn.Parameter, layer_decay: float, decay_bias_tables: bool = False
    ) -> GroupKey:
        """Weight decay and lr scale of a parameter by layer-wise decay; `name` as in this module."""
        own = name.removeprefix("encoder.trunk.")
        if isinstance(self.encoder, SwinEncoder):
            depths = [len(stage.blocks) for stage in self.encoder.trunk.layers]
            return swin_finetune_group(
                own, parameter.ndim, depths=depths, layer_decay=layer_decay, decay_bias_tables=decay_bias_tables
            )
        return vit_finetune_group(own, parameter.ndim, depth=self.encoder.num_layers, layer_decay=layer_decay)


def classifier_from(
    encoder: Encoder,
    feature: PooledFeature,
    num_classes: int,
    generator: torch.Generator,
    *,
    image_size: int | None = None,
    window_size: int | None = None,
    drop_path: float = 0.0,
    head_std: float | None = 2e-5,
    fresh_norm: bool = False,
    dropped_blocks: int = 0,
    fresh_blocks: int = 0,
    anew: Encoder | None = None,
) -> Classifier:
    """A classifier that begins with the weights of `encoder`, which is left as it is.

    Learned positions and bias tables are resized to `image_size`; a fixed sine-cosine table becomes trainable; a table
    that blocks share becomes one in each. A norm that the encoder has not begins as 1 and 0, and so do all parts of the
    final norm with `fresh_norm`.

    Args:
        feature, window_size, drop_path, head_std, fresh_norm, dropped_blocks, fresh_blocks: as in `FinetuneConfig`.
        generator: draws the head's first weights; its bias is 0 (torch's rule, bias too, with `head_std` None).
        image_size: side in pixels; None = the encoder's.
        anew: the same network at random initialisation, whose blocks fresh ones begin as; None = as timm would draw
            them, from torch's own generator.
    Raises:
        ConfigError: more blocks to drop or to begin anew than there are, or a network whose depth is fixed.
        WeightsError: weights that don't fit the classifier's network.
        ShapeError: an image side that the encoder can't cut; a class token that it has not.
    """
    check_feature(feature, encoder)
    check_blocks(dropped_blocks, fresh_blocks, encoder)
    config = _network(encoder, feature, window_size, drop_path, dropped_blocks)
    network = build_encoder(config, image_size or encoder.image_size)
    state = _begun(encoder, network, config, fresh_norm)
    if fresh_blocks:
        random = _begun(anew or network, network, config, fresh_norm)
        state |= {name: random[name] for name in _names_from(network, network.num_layers - fresh_blocks)}
    network.trunk.load_state_dict(state)
    classifier = Classifier(network, feature, num_classes)
    _begin_head(classifier.head, head_std, generator)
    return classifier


def _begun(encoder: Encoder, network: Encoder, config: ModelConfig, fresh_norm: bool) -> dict[str, Tensor]:
    """All tensors of the network's trunk as they begin with the weights of an encoder, which may have more blocks."""
    gone = _names_from(encoder, network.num_layers) | (NEW_NORMS if fresh_norm else set())
    state = {name: tensor.detach() for name, tensor in encoder.trunk.state_dict().items() if name not in gone}
    fitted, report = fit_state(state, network.trunk, config.position_rule)
    wrong = (set(report.missing) | set(report.unexpected)) - NEW_NORMS - {"rel_pos_bias.relative_position_bias_table"}
    if wrong:
        raise WeightsError(f"encoder: its weights don't fit a classifier. {report}")
    own = network.trunk.state_dict()
    norms = {name: torch.full_like(own[name], float(name.endswith("weight"))) for name in report.missing}
    return fitted | norms


def _names_from(encoder: Encoder, first: int) -> set[str]:
    """Names in the trunk's state of the blocks from number `first` on, counted from 0 over all stages."""
    later = {id(tensor) for block in encoder.blocks[first:] for tensor in block.state_dict(keep_vars=True).values()}
    return {name for name, tensor in encoder.trunk.state_dict(keep_vars=True).items() if id(tensor) in later}


def _network(
    encoder: Encoder, feature: PooledFeature, window_size: int | None, drop_path: float, dropped_blocks: int
) -> ModelConfig:
    """The encoder's network as a classifier with this feature has it."""
    changes: dict[str, object] = {"drop_path": drop_path}
    if isinstance(encoder, ViTEncoder | BeitEncoder):
        changes["final_norm"] = "pooled" if feature == "mean-then-norm" else "tokens"
    if isinstance(encoder, BeitEncoder) and encoder.trunk.rel_pos_bias is not None:
        changes["relative_positions"] = "per_block"
    if isinstance(encoder, ViNyEncoder) and feature == "cls":
        changes["class_token"] = True
    if dropped_blocks:
        changes["depth"] = encoder.num_layers - dropped_blocks
    if window_size is not None:
        changes["window_size"] = window_size
    kept = {name: getattr(encoder.config, name) for name in encoder.config.model_fields_set}
    return ModelConfig.model_validate({**kept, **changes})


def _begin_head(head: nn.Linear, std: float | None, generator: torch.Generator) -> None:
    if std is None:
        nn.init.kaiming_uniform_(head.weight, a=5**0.5, generator=generator)
        bound = head.in_features**-0.5
        nn.init.uniform_(head.bias, -bound, bound, generator=generator)
    else:
        nn.init.trunc_normal_(head.weight, std=std, a=-2.0, b=2.0, generator=generator)
        nn.init.zeros_(head.bias)


def write_classifier(
    classifier: Classifier,
    folder: Path,
    stem: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    extra: dict[str, object],
) -> Path:
    """Write `<stem>.safetensors` with encoder and head under timm's names, and `<stem>.json` that says what it is."""
    return export_classifier(
        classifier.encoder,
        classifier.head,
        classifier.feature,
        folder,
        stem=stem,
        mean=mean,
        std=std,
        extra={**extra, "class_names": list(class_names)},
    )


def load_classifier(path: str | Path) -> Classifier:
    """A classifier that fine-tuning wrote: the path of its .safetensors or .json file.

    Raises:
        WeightsError: not such a file, or one that was changed since.
    """
    about, state = read_exported(Path(path).with_suffix(".json"))
    if "feature" not in about:
        raise WeightsError(f"classifier: {str(path)!r} is an encoder without a head. Give a classifier.safetensors.")
    head = {name.split(".")[-1]: state.pop(name) for name in list(state) if name.startswith("head.")}
    encoder = build_encoder(ModelConfig.model_validate(about["model"]), int(str(about["image_size"])))
    feature: PooledFeature = about["feature"]  # type: ignore[assignment]
    classifier = Classifier(encoder, feature, len(head["bias"]))
    encoder.trunk.load_state_dict(state)
    classifier.head.load_state_dict(head)
    return classifier

"""The initialisation of each method, as its authors wrote it.

Every function draws all random weights again from the generator it is given, also those that a paper leaves at the
framework's default, so a network's weights are a function of the seed alone.
"""

import math

from torch import Generator, Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.batch_norm import CrossProcessBatchNorm
from halfseen.backbones.beit import BeitEncoder
from halfseen.backbones.conv_stem import ConvStem
from halfseen.backbones.heads import WeightNormLinear
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.viny import ViNyEncoder
from halfseen.backbones.vit import ViTEncoder
from halfseen.errors import ConfigError


def init_mae(encoder: Encoder, decoder: nn.Module, generator: Generator) -> None:
    """MAE: Xavier-uniform linear layers and patch projection, class and mask token N(0, 0.02).

    The encoder's positions become the fixed sine-cosine table. The patch projection's bias keeps the framework's
    default.

    Raises:
        ConfigError: for encoders without absolute positions, or with a convolutional stem.
    Source: arXiv 2111.06377, official code.
    """
    if not isinstance(encoder, ViTEncoder):
        raise ConfigError(
            "model.name: MAE drops patches and needs a plain ViT (vit_*), this model has none of its positions."
        )
    _fix_positions(encoder, "MAE")
    for module in (encoder, decoder):
        _xavier_linear(module, generator)
    _xavier_projection(encoder.trunk.patch_embed.proj, generator)
    for token in (encoder.trunk.cls_token, encoder.trunk.reg_token, getattr(decoder, "mask_token", None)):
        if token is not None:
            nn.init.normal_(token, std=0.02, generator=generator)


def init_localmim(
    encoder: ViTEncoder | SwinEncoder, norms: nn.ModuleList, decoders: nn.ModuleList, generator: Generator
) -> None:
    """LocalMIM: as MAE, for a ViT or a Swin; a Swin's bias tables are truncated normal 0.02.

    The convolutions of the decoders' heads keep the framework's default.

    Raises:
        ConfigError: for ViTs without absolute positions or with a convolutional stem.
    Source: arXiv 2303.05251, official code.
    """
    if isinstance(encoder, ViTEncoder):
        _fix_positions(encoder, "LocalMIM")
    for module in (encoder, norms, decoders):
        _xavier_linear(module, generator)
    _xavier_projection(encoder.trunk.patch_embed.proj, generator)
    for part in decoders.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            _default(part, generator)
    for module in (encoder, decoders):
        for name, parameter in module.named_parameters():
            if name.endswith(("cls_token", "reg_token", "mask_token")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("relative_position_bias_table"):
                _trunc_normal(parameter, generator)


def init_simmim(encoder: Encoder, mask_token: Tensor, decoder: nn.Module, generator: Generator) -> None:
    """SimMIM, by the kind of encoder: official ViT, Swin, ViNy; a plain ViT gets KAMIM's rule."""
    if isinstance(encoder, BeitEncoder):
        init_simmim_vit(encoder, mask_token, decoder, generator)
    elif isinstance(encoder, SwinEncoder):
        init_simmim_swin(encoder, mask_token, decoder, generator)
    elif isinstance(encoder, ViNyEncoder):
        init_viny(encoder, mask_token, decoder, generator)
    else:
        init_kamim(encoder, mask_token, decoder, generator)


def init_simmim_vit(encoder: BeitEncoder, mask_token: Tensor, decoder: nn.Module, generator: Generator) -> None:
    """Official SimMIM ViT: truncated normal 0.02 cut at one standard deviation, residual branches scaled down.

    attn.proj and mlp.fc2 of block l (from 1) are divided by sqrt(2 l); bias tables are zero, layer scale constant.
    Source: arXiv 2111.09886, official code.
    """
    trunk = encoder.trunk
    for part in trunk.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            _trunc_normal(part.weight, generator, cut=0.02)
            _zero(part.bias)
        _reset_norm(part)
    for name, parameter in trunk.named_parameters():
        if name.endswith(("q_bias", "v_bias", "relative_position_bias_table")):
            nn.init.zeros_(parameter)
    for number, block in enumerate(trunk.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            weight.detach().div_(math.sqrt(2.0 * number))
        if block.gamma_1 is not None:
            nn.init.constant_(block.gamma_1, block.init_values)
            nn.init.constant_(block.gamma_2, block.init_values)
    for token in (trunk.cls_token, trunk.pos_embed, mask_token):
        if token is not None:
            _trunc_normal(token, generator, cut=0.02)
    _default_all(decoder, generator)


def init_simmim_swin(encoder: SwinEncoder, mask_token: Tensor, decoder: nn.Module, generator: Generator) -> None:
    """Official SimMIM Swin: truncated normal 0.02 for linear layers, bias tables and mask token.

    The patch projection and the decoder keep the framework's default.
    Source: arXiv 2111.09886, official code.
    """
    for part in encoder.trunk.modules():
        if isinstance(part, nn.Linear):
            _trunc_normal(part.weight, generator)
            _zero(part.bias)
        _reset_norm(part)
    for name, parameter in encoder.trunk.named_parameters():
        if name.endswith("relative_position_bias_table"):
            _trunc_normal(parameter, generator)
    _default(encoder.trunk.patch_embed.proj, generator)
    _trunc_normal(mask_token, generator)
    _default_all(decoder, generator)


def init_kamim(encoder: Encoder, mask_token: Tensor, decoder: nn.Module, generator: Generator) -> None:
    """KAMIM: truncated normal 0.02 for linear and convolution weights, positions and class token; zeros elsewhere.

    Biases, mask token and (Swin) bias tables are zero; the decoder follows the same rule.
    Source: arXiv 2407.13873, official code; for the Swin's tables the page is silent and zero is ours.
    """
    for module in (encoder, decoder):
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                _trunc_normal(part.weight, generator)
                _zero(part.bias)
            _reset_norm(part)
    for name, parameter in encoder.named_parameters():
        if name.endswith(("cls_token", "reg_token", "pos_embed")):
            _trunc_normal(parameter, generator)
        elif name.endswith(("relative_position_bias_table", "q_bias", "v_bias")):
            nn.init.zeros_(parameter)
    nn.init.zeros_(mask_token)


def init_viny(encoder: ViNyEncoder, mask_token: Tensor, decoder: nn.Module, generator: Generator) -> None:
    """ViNy: N(0, 1) for positions, class and mask token; the framework's default for every layer.

    Source: arXiv 2512.03862, official code.
    """
    _default_all(encoder.trunk, generator)
    _default_all(decoder, generator)
    for token in (encoder.trunk.pos_embed, encoder.trunk.cls_token, mask_token):
        nn.init.normal_(token, std=1.0, generator=generator)


def _fix_positions(encoder: ViTEncoder, method: str) -> None:
    """Put the fixed sine-cosine table into an encoder whose patches `method` drops."""
    if isinstance(encoder.trunk.patch_embed, ConvStem):
        raise ConfigError(
            f"model.name: a convolutional stem looks beyond its patch, so {method}'s hidden patches would be seen. Use "
            "a vit_* model with a plain patch projection, e.g. vit_small."
        )
    if encoder.trunk.pos_embed is None:
        raise ConfigError(
            f"model.absolute_positions: got false, but {method} always puts its sine-cosine positions there. Leave it "
            "out."
        )
    encoder.use_sincos_positions()


def _xavier_linear(module: nn.Module, generator: Generator) -> None:
    """Xavier-uniform linear layers with zero biases, and norms as they begin."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            _zero(part.bias)
        _reset_norm(part)


def _xavier_projection(projection: nn.Conv2d, generator: Generator) -> None:
    """Xavier-uniform as if a patch projection were a linear layer; the framework's default for its bias."""
    _default(projection, generator)
    nn.init.xavier_uniform_(projection.weight.detach().view(projection.out_channels, -1), generator=generator)


def _trunc_normal(tensor: Tensor, generator: Generator, std: float = 0.02, cut: float = 2.0) -> None:
    """Normal with mean 0, cut at the *absolute* values -cut and cut."""
    nn.init.trunc_normal_(tensor, std=std, a=-cut, b=cut, generator=generator)


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


def _reset_norm(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | CrossProcessBatchNorm):
        module.reset_parameters()


def _default(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, generator: Generator) -> None:
    """PyTorch's own rule for linear and (transposed) convolution layers, from the given generator."""
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _default_all(module: nn.Module, generator: Generator) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            _default(part, generator)
        _reset_norm(part)


def init_ibot(encoder: Encoder, head: nn.Module, mask_token: Tensor | None, generator: Generator) -> None:
    """iBOT and DINO: truncated normal 0.02 for linear layers, positions, class token and (Swin) bias tables.

    Biases and mask token are zero; the patch projection keeps the framework's default, and so do the directions of the
    head's last layers, which the original builds after this rule; their lengths are 1.
    Source: arXiv 2111.07832, official code.
    """
    for module in (encoder, head):
        for part in module.modules():
            if isinstance(part, nn.Linear):
                _trunc_normal(part.weight, generator)
                _zero(part.bias)
            elif isinstance(part, WeightNormLinear):
                nn.init.ones_(part.weight_g)
                bound = 1 / math.sqrt(part.weight_v.shape[1])
                nn.init.uniform_(part.weight_v, -bound, bound, generator=generator)
            _reset_norm(part)
    for name, parameter in encoder.named_parameters():
        if name.endswith(("cls_token", "reg_token", "pos_embed", "relative_position_bias_table")):
            _trunc_normal(parameter, generator)
    for part in encoder.modules():
        if isinstance(part, nn.Conv2d):
            _default(part, generator)
    if mask_token is not None:
        nn.init.zeros_(mask_token)


def init_msn(encoder: Encoder, head: nn.Module, prototypes: Tensor, generator: Generator) -> None:
    """MSN: truncated normal 0.02 for linear layers, positions and class token; zero biases.

    Convolutions (the patch projection, a convolutional stem) are Kaiming-normal by their inputs, with the gain of a
    ReLU; prototypes uniform in -1 / sqrt(d) .. 1 / sqrt(d).
    Source: arXiv 2204.07141, official code.
    """
    for module in (encoder, head):
        for part in module.modules():
            if isinstance(part, nn.Linear):
                _trunc_normal(part.weight, generator)
                _zero(part.bias)
            elif isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
                _zero(part.bias)
            _reset_norm(part)
    for name, parameter in encoder.named_parameters():
        if name.endswith(("cls_token", "reg_token", "pos_embed")):
            _trunc_normal(parameter, generator)
    bound = 1 / math.sqrt(prototypes.shape[1])
    nn.init.uniform_(prototypes, -bound, bound, generator=generator)

"""All methods by name, written by hand."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field

from halfseen.backbones.base import Encoder
from halfseen.methods.base import Method
from halfseen.methods.ibot import IBOT, IBOTConfig
from halfseen.methods.kamim import KAMIM, KAMIMConfig
from halfseen.methods.localmim import LocalMIM, LocalMIMConfig
from halfseen.methods.mae import MAE, MAEConfig
from halfseen.methods.msn import MSN, MSNConfig
from halfseen.methods.simmim import SimMIM, SimMIMConfig
from halfseen.ops.pixels import Channels

AnyMethodConfig = SimMIMConfig | MAEConfig | KAMIMConfig | LocalMIMConfig | IBOTConfig | MSNConfig
MethodConfig = Annotated[AnyMethodConfig, Field(discriminator="name")]
"""The settings of one method; `name` says of which."""


class MethodEntry(NamedTuple):
    """A method's settings and the method itself."""

    config_class: type[BaseModel]
    method_class: Callable[..., Method]


METHODS: dict[str, MethodEntry] = {
    "simmim": MethodEntry(SimMIMConfig, SimMIM),
    "mae": MethodEntry(MAEConfig, MAE),
    "kamim": MethodEntry(KAMIMConfig, KAMIM),
    "localmim": MethodEntry(LocalMIMConfig, LocalMIM),
    "ibot": MethodEntry(IBOTConfig, IBOT),
    "msn": MethodEntry(MSNConfig, MSN),
}


def build_method(
    config: AnyMethodConfig,
    encoder: Encoder,
    image_size: int,
    mean: Channels,
    std: Channels,
    seed: int = 0,
) -> Method:
    """The method that `config` describes, around `encoder`, with initial weights that are a function of the seed.

    Raises:
        ConfigError, ShapeError: settings and sizes that don't go together.
    """
    return METHODS[config.name].method_class(config, encoder, image_size, mean, std, seed)

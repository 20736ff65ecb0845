"""halfseen teaches vision transformers to see from half-seen images.

`pretrain(...)` trains an encoder, `load_encoder(...)` opens one. Both load torch only when they are first asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfseen.backbones.weights import load_encoder
    from halfseen.pretraining.run import pretrain

__all__ = ["load_encoder", "pretrain"]

_HOMES = {"load_encoder": "halfseen.backbones.weights", "pretrain": "halfseen.pretraining.run"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'halfseen' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

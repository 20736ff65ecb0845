"""halfseen teaches vision transformers to see from half-seen images.

`pretrain(...)` trains an encoder, `load_encoder(...)` opens one, `evaluate.knn(...)` and its like measure one. All load
torch only when they are first asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfseen import evaluate
    from halfseen.backbones.weights import load_encoder
    from halfseen.pretraining.run import pretrain

__all__ = ["evaluate", "load_encoder", "pretrain"]

_HOMES = {"load_encoder": "halfseen.backbones.weights", "pretrain": "halfseen.pretraining.run"}
_MODULES = {"evaluate": "halfseen.evaluate"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'halfseen' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    import importlib

    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    return getattr(importlib.import_module(_HOMES[name]), name)

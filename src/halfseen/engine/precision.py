"""The device of a process, and the loss scaler that fp16 needs.

Weights and moments stay float32; softmax, norms and losses are kept in float32 by the modules that compute them.
"""

import torch

from halfseen.engine.config import DeviceName
from halfseen.engine.state import TrainState
from halfseen.errors import ConfigError
from halfseen.ops.precision import Precision


def open_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """The device that this process trains on.

    Raises:
        ConfigError: if the machine doesn't have it.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "xla":
        return _open_xla()
    if not available[name]:
        offered = ", ".join(device for device, there in available.items() if there)
        raise ConfigError(f"runtime.device: got '{name}', but this machine offers {offered}. Choose one of them.")
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"--devices: process {local_rank} finds no GPU, there are {torch.cuda.device_count()}. Start fewer "
            "processes."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def open_scaler(device: torch.device, precision: Precision, state: TrainState) -> torch.amp.GradScaler:
    """The loss scaler, where it stood in `state`; it passes everything through unless the precision is fp16."""
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if scaler.is_enabled() and state.scaler:
        scaler.load_state_dict(dict(state.scaler))
    return scaler


def _open_xla() -> torch.device:
    try:
        import torch_xla  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError("runtime.device: got 'xla', but torch_xla is not installed. Install it first.") from error
    device: torch.device = torch_xla.device()
    return device

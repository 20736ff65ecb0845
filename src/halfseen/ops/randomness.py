"""Random numbers as functions of where a run stands, never of hidden state.

Every stream is named by integers and a word, hashed into one seed. Device-independent: numbers are drawn on the CPU.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from halfseen.types import Progress


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed that is a fixed function of the key, the same on every platform and Python."""
    digest = hashlib.blake2b("/".join(str(part) for part in key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(*key: int | str) -> torch.Generator:
    """A CPU generator for the stream named by `key`."""
    return torch.Generator().manual_seed(stream_seed(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator for the stream named by `key`."""
    return np.random.Generator(np.random.PCG64(stream_seed(*key)))


def step_noise(progress: Progress, rows: int, columns: int, stream: str) -> Tensor:
    """Uniform noise for one micro-batch: float32 [rows, columns] in [0, 1), on the CPU.

    It is drawn for the whole global batch of the step and cut to this micro-batch's rows, so a sample gets the same
    numbers however many processes or micro-batches share the step.
    """
    generator = torch_generator(progress.seed, progress.step, stream)
    whole = torch.rand(progress.global_batch_size, columns, generator=generator)
    return whole[progress.row_start : progress.row_start + rows]

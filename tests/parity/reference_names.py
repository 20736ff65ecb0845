"""Reads a method's parameters (or their gradients) under the names and shapes of the original code.

The mapping is not written down a second time: a copy of the original state dict in which every entry is a number of
its own goes through the public importer, and shows where each entry of a reference tensor ends up.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from halfseen.backbones.weights import Imported
from halfseen.backbones.weights_names import take_apart
from halfseen.methods.base import Method


def load_method(method: Method, found: Imported) -> None:
    """Put an imported checkpoint's encoder, mask token and decoder into a method."""
    found.load_into(method.encoder)
    if found.mask_token is not None:
        with torch.no_grad():
            method.mask_token.copy_(found.mask_token.reshape(method.mask_token.shape))
    method.decoder.load_state_dict(found.decoder_state)


class ReferenceNames:
    """Looks up tensors of a method by reference name.

    Args:
        found: what the importer made of the reference file.
        state: the reference state dict.
    """

    def __init__(self, found: Imported, state: dict[str, Tensor]) -> None:
        self.shapes = {name: tensor.shape for name, tensor in state.items()}
        sizes = [tensor.numel() for tensor in state.values()]
        starts = torch.tensor([0, *sizes]).cumsum(0)
        self.starts = dict(zip(state, starts.tolist(), strict=False))
        numbers = {
            name: torch.arange(start, start + size).reshape(state[name].shape)
            for (name, start), size in zip(self.starts.items(), sizes, strict=True)
        }
        parts = take_apart(numbers, found.kind)
        self.ours = {f"encoder.trunk.{name}": tensor for name, tensor in parts.encoder.items()}
        self.ours |= {f"decoder.{name}": tensor for name, tensor in parts.decoder.items()}
        if parts.mask_token is not None:
            self.ours["mask_token"] = parts.mask_token

    def names_of(self, our_name: str) -> Iterator[str]:
        """The reference tensors that make up a parameter of ours."""
        numbers = self.ours[our_name]
        for name, shape in self.shapes.items():
            start = self.starts[name]
            if ((numbers >= start) & (numbers < start + shape.numel())).any():
                yield name

    def value(self, name: str, values: dict[str, Tensor]) -> Tensor:
        """The tensor that the reference calls `name`, out of `values` under our names."""
        start, shape = self.starts[name], self.shapes[name]
        for our_name, numbers in self.ours.items():
            inside = (numbers >= start) & (numbers < start + shape.numel())
            if inside.any():
                return values[our_name].reshape(-1)[inside.reshape(-1)].reshape(shape)
        raise KeyError(f"the importer put {name!r} nowhere")


def gradients(method: Method) -> dict[str, Tensor]:
    """The gradients that are there, by our names."""
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def global_norm(values: dict[str, Tensor]) -> float:
    """L2 norm over all tensors."""
    return float(torch.stack([value.double().norm() for value in values.values()]).norm())

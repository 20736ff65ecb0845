"""iBOT's projection head against recorded outputs: shared and separate last layers, learned and fixed lengths."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfseen.backbones.heads import DistillationHead
from halfseen.backbones.weights_names import take_apart
from parity.discovery import load_arrays, parity_files


def weights_beside(path: Path) -> dict[str, Tensor]:
    rest = path.stem.removeprefix("head")
    names = (f"head_weights{rest}.safetensors", f"{path.stem}_weights.safetensors")
    found = [path.with_name(name) for name in names if path.with_name(name).is_file()]
    if not found:
        pytest.fail(f"{path.name} needs {' or '.join(names)} beside it")
    return load_file(found[0])


@pytest.mark.parametrize("path", parity_files("ibot", "head"))
def test_outputs_and_trainable_parameters(path: Path) -> None:
    arrays, weights = load_arrays(path), weights_beside(path)
    flavours = sorted({name.split(".")[0] for name in weights})
    assert flavours
    for flavour in flavours:
        prefix = f"{flavour}."
        own = {f"head.{name.removeprefix(prefix)}": w for name, w in weights.items() if name.startswith(prefix)}
        state = take_apart(own, "ibot").projection
        trainable = arrays[f"{flavour}_trainable"].tolist()
        separate = "last_layer2.weight_v" in state
        assert separate == any(name.startswith("last_layer2") for name in trainable)
        hidden, embed_dim = state["mlp.0.weight"].shape
        head = DistillationHead(
            embed_dim,
            len(state["last_layer.weight_v"]),
            len(state["last_layer2.weight_v"]) if separate else None,
            hidden_dim=hidden,
            bottleneck_dim=state["last_layer.weight_v"].shape[1],
            num_layers=sum(name.startswith("mlp.") and name.endswith(".weight") for name in state),
            norm_last_layer="last_layer.weight_g" not in trainable,
        )
        head.load_state_dict(state)
        assert [name for name, parameter in head.named_parameters() if parameter.requires_grad] == trainable

        def equal(found: Tensor, name: str, flavour: str = flavour) -> None:
            expected = arrays[f"{flavour}_{name}"]
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5, err_msg=name)

        narrow = head.bottleneck(torch.from_numpy(arrays[f"{flavour}_tokens"]))
        equal(head.logits(narrow[:, 0]), "out_cls")
        equal(head.patch_logits(narrow[:, 1:]), "out_patch")
        alone = head.bottleneck(torch.from_numpy(arrays[f"{flavour}_cls_in"]))
        equal(head.logits(alone), "out_cls_only")
        equal(head.last_layer.weight, "last_weight")

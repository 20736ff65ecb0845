"""Checkpoints of iBOT, AttMask, DINO and MSN in their genuine layouts: both networks, heads, wrappers, aliases."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.heads import DistillationHead, MSNHead
from halfseen.backbones.weights import import_checkpoint, load_encoder
from halfseen.errors import WeightsError
from halfseen.methods.ibot import IBOT, IBOTConfig
from halfseen.methods.msn import MSN, MSNConfig
from halfseen.pretraining.initial_weights import load_initial_weights

MEAN = STD = (0.5, 0.5, 0.5)
VIT = ModelConfig(name="vit_tiny", patch_size=8, embed_dim=192, depth=2, num_heads=3)
SWIN = ModelConfig(name="swin_tiny", embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=2, patch_size=4)


def trunk_state(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = build_encoder(config, 32).trunk.state_dict()
    return {name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def head_state(embed_dim: int, shared: bool = True, newer: bool = False) -> dict[str, Tensor]:
    head = DistillationHead(embed_dim, 12, None if shared else 10, hidden_dim=16, bottleneck_dim=6)
    state = {name: torch.randn_like(tensor) for name, tensor in head.state_dict().items()}
    if shared:
        state |= {name.replace("last_layer", "last_layer2"): t for name, t in state.items() if "last_layer" in name}
    if newer:
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            state = {name.replace(f".{old}", f".parametrizations.weight.{new}"): t for name, t in state.items()}
    return state


def ibot_file(path: Path, config: ModelConfig = VIT, newer: bool = False, shared: bool = True) -> dict[str, dict]:
    """A full training checkpoint: DDP's wrapper around the student, none around the teacher, settings beside them."""
    found = {}
    for seed, role in enumerate(("student", "teacher")):
        trunk = trunk_state(config, seed)
        wrapped = {f"backbone.{name}": tensor for name, tensor in trunk.items()}
        heads = head_state(192, shared, newer)
        wrapped |= {f"head.{name}": tensor for name, tensor in heads.items()}
        if role == "student":
            wrapped["backbone.masked_embed"] = torch.randn(1, 192)
            wrapped = {f"module.{name}": tensor for name, tensor in wrapped.items()}
        found[role] = {"trunk": trunk, "head": heads, "file": wrapped}
    content = {role: parts["file"] for role, parts in found.items()}
    args = argparse.Namespace(arch="vit_tiny", lr=5e-4)
    torch.save(content | {"epoch": 3, "args": args, "ibot_loss": {"center": torch.zeros(1, 12)}}, path)
    return found


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("role", [None, "teacher", "student"])
def test_both_networks_of_ibot(tmp_path: Path, role: str | None, newer: bool) -> None:
    written = ibot_file(tmp_path / "checkpoint.pth", newer=newer)[role or "teacher"]
    found = import_checkpoint(tmp_path / "checkpoint.pth", role=role)
    assert (found.kind, found.config.position_rule, found.image_size) == ("ibot", "scale_offset", 32)
    assert found.report.missing == found.report.unexpected == ()
    encoder = found.build()
    for name, tensor in written["trunk"].items():
        assert torch.equal(encoder.trunk.state_dict()[name], tensor), name
    assert set(found.projection_state) == {
        *(f"mlp.{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")),
        "last_layer.weight_g", "last_layer.weight_v",
    }  # fmt: skip
    assert any("last_layer2" in name for name in found.report.ignored), "the alias of a shared last layer"
    assert (found.mask_token is not None) == (role == "student")


def test_separate_last_layers_stay_separate(tmp_path: Path) -> None:
    ibot_file(tmp_path / "checkpoint.pth", shared=False)
    found = import_checkpoint(tmp_path / "checkpoint.pth", role="student")
    assert found.projection_state["last_layer2.weight_v"].shape == (10, 6)


def test_a_backbone_file_with_its_mask_embedding_and_layer_scale(tmp_path: Path) -> None:
    state = trunk_state(VIT, 0) | {"masked_embed": torch.ones(1, 192)}
    for block in range(2):
        state |= {f"blocks.{block}.gamma_{number}": torch.full((192,), 0.5) for number in (1, 2)}
    torch.save({"state_dict": state}, tmp_path / "checkpoint_student.pth")
    found = import_checkpoint(tmp_path / "checkpoint_student.pth")
    assert found.kind == "ibot" and found.config.layer_scale is not None
    assert torch.equal(found.build().trunk.blocks[1].ls2.gamma, torch.full((192,), 0.5))
    assert torch.equal(found.mask_token, torch.ones(1, 192))


def test_a_bare_dino_file_is_told_by_hand(tmp_path: Path) -> None:
    torch.save(trunk_state(VIT, 0), tmp_path / "dino_deitsmall16_pretrain.pth")
    assert import_checkpoint(tmp_path / "dino_deitsmall16_pretrain.pth").kind == "timm"
    found = import_checkpoint(tmp_path / "dino_deitsmall16_pretrain.pth", "ibot")
    assert found.config.position_rule == "scale_offset"


def test_swin_of_ibot(tmp_path: Path) -> None:
    state = trunk_state(SWIN, 0)
    # In the original, merging ends a stage; in timm it begins the next one.
    official = {name.replace("layers.1.downsample", "layers.0.downsample"): tensor for name, tensor in state.items()}
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, dtype=torch.int64)
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in official.items()}
    wrapped |= {f"module.head.{name}": tensor for name, tensor in head_state(32).items()}
    torch.save({"teacher": wrapped, "student": wrapped}, tmp_path / "checkpoint.pth")
    found = import_checkpoint(tmp_path / "checkpoint.pth", model=SWIN.model_copy(update={"norm_eps": 1e-6}),
                              image_size=32)  # fmt: skip
    trunk = found.build().trunk
    assert torch.equal(trunk.layers[1].downsample.reduction.weight, state["layers.1.downsample.reduction.weight"])
    assert import_checkpoint(tmp_path / "checkpoint.pth").config.norm_eps == 1e-6


def msn_file(path: Path) -> dict[str, dict[str, Tensor]]:
    states = {}
    for seed, entry in enumerate(("encoder", "target_encoder")):
        fc = MSNHead(192, 16, 4).state_dict()
        state = trunk_state(VIT, seed) | {f"fc.{name}": tensor for name, tensor in fc.items()}
        states[entry] = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(states | {"prototypes": torch.randn(10, 4), "opt": {}, "epoch": 1, "lr": 1e-3}, path)
    return states


def test_both_networks_of_msn(tmp_path: Path) -> None:
    written = msn_file(tmp_path / "vits16_800ep.pth.tar")
    for role, entry in ((None, "target_encoder"), ("student", "encoder")):
        found = import_checkpoint(tmp_path / "vits16_800ep.pth.tar", role=role)
        assert (found.kind, found.config.position_rule) == ("msn", "scale")
        trunk = found.build().trunk.state_dict()
        assert all(torch.equal(trunk[n], written[entry][f"module.{n}"]) for n in trunk)
        assert found.projection_state["prototypes"].shape == (10, 4)
        assert "fc3.weight" in found.projection_state and "bn1.running_var" in found.projection_state
    loaded = load_encoder(tmp_path / "vits16_800ep.pth.tar", role="student")
    assert torch.equal(loaded.encoder.trunk.cls_token, written["encoder"]["module.cls_token"])


def test_a_role_that_the_file_has_not(tmp_path: Path) -> None:
    torch.save({"student": {f"module.backbone.{n}": t for n, t in trunk_state(VIT, 0).items()}}, tmp_path / "s.pth")
    with pytest.raises(WeightsError, match="no teacher"):
        import_checkpoint(tmp_path / "s.pth", role="teacher")


def test_a_run_starts_from_encoder_head_and_prototypes(tmp_path: Path) -> None:
    written = ibot_file(tmp_path / "ibot.pth")["teacher"]
    config = IBOTConfig(out_dim=12, shared_head=True, head_hidden_dim=16, head_bottleneck_dim=6)
    method = IBOT(config, build_encoder(VIT, 32), 32, MEAN, STD)
    load_initial_weights(method, str(tmp_path / "ibot.pth"))
    for head in (method.head, method.teacher_head):
        assert torch.equal(head.last_layer.weight_v, written["head"]["last_layer.weight_v"])
    assert torch.equal(method.teacher.trunk.pos_embed, written["trunk"]["pos_embed"])

    msn_file(tmp_path / "msn.pth.tar")
    msn = MSN(MSNConfig(num_prototypes=10, hidden_dim=16, output_dim=4, focal_views=0), build_encoder(VIT, 32), 32,
              MEAN, STD)  # fmt: skip
    load_initial_weights(msn, str(tmp_path / "msn.pth.tar"))
    found = import_checkpoint(tmp_path / "msn.pth.tar").projection_state
    assert torch.equal(msn.prototypes, found["prototypes"]) and torch.equal(msn.head.fc3.bias, found["fc3.bias"])
    assert torch.equal(msn.teacher_head.fc3.bias, found["fc3.bias"])

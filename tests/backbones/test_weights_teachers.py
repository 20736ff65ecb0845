"""Checkpoints of iBOT, AttMask, DINO and MSN in their genuine layouts: both networks, heads, wrappers, aliases."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.heads import DistillationHead, MSNHead
from halfseen.backbones.weights import Imported, import_checkpoint, load_encoder
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
    """A full training checkpoint: DDP's wrapper around the student, none around the teacher, settings beside them.

    The optimizer's learning rate is a number of numpy's, as an original run leaves it there.
    """
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
    args = argparse.Namespace(arch="vit_tiny", lr=5e-4, global_crops_scale=(0.25, 1.0), data_path=Path("train"))
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": np.float64(1e-3), "params": [0]}]}
    loss = {"center": torch.zeros(1, 12)}
    torch.save(content | {"optimizer": optimizer, "epoch": 3, "args": args, "ibot_loss": loss}, path)
    return found


def equal_trunk(found: Imported, trunk: dict[str, Tensor]) -> bool:
    own = found.build().trunk.state_dict()
    return own.keys() == trunk.keys() and all(torch.equal(own[name], trunk[name]) for name in trunk)


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("role", [None, "teacher", "student"])
def test_both_networks_of_ibot(tmp_path: Path, role: str | None, newer: bool) -> None:
    written = ibot_file(tmp_path / "checkpoint.pth", newer=newer)[role or "teacher"]
    found = import_checkpoint(tmp_path / "checkpoint.pth", role=role)
    assert (found.kind, found.config.position_rule, found.image_size) == ("ibot", "scale_offset", 32)
    assert (found.role, found.roles) == (role or "teacher", ("teacher", "student"))
    assert found.report.missing == found.report.unexpected == () and equal_trunk(found, written["trunk"])
    for name in ("mlp.4.bias", "last_layer.weight_g", "last_layer.weight_v"):
        official = name.replace("weight_g", "parametrizations.weight.original0") if newer else name
        official = official.replace("weight_v", "parametrizations.weight.original1") if newer else official
        assert torch.equal(found.projection_state[name], written["head"][official])
    assert set(found.projection_state) == {
        *(f"mlp.{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")),
        "last_layer.weight_g", "last_layer.weight_v",
    }  # fmt: skip
    assert any("last_layer2" in name for name in found.report.ignored), "the alias of a shared last layer"
    assert (found.mask_token is not None) == (role == "student")


def test_numbers_of_an_older_numpy(tmp_path: Path) -> None:
    written = ibot_file(tmp_path / "new.pth")["teacher"]
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            old.writestr(name, content)
    assert equal_trunk(import_checkpoint(tmp_path / "old.pth"), written["trunk"])


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["args", "optimizer", "beside", "teacher"])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_would_run_code_is_refused_wherever_it_stands(tmp_path: Path, place: str, legacy: bool) -> None:
    evil = Evil(tmp_path / "was_here")
    content: dict[str, object] = {"teacher": dict(trunk_state(VIT, 0)), "student": dict(trunk_state(VIT, 1))}
    if place == "args":
        content["args"] = argparse.Namespace(lr=0.1, hidden=evil)
    elif place == "optimizer":
        content["optimizer"] = {"param_groups": [{"lr": np.array([evil], dtype=object)}]}
    elif place == "beside":
        content["fp16_scaler"] = evil
    else:
        content["teacher"]["norm.weight"] = evil
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"is refused: reading it would run code.*safetensors"):
        import_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "was_here").exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save({"teacher": build_encoder(VIT, 32).trunk}, tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="is refused"):
        import_checkpoint(tmp_path / "module.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"teacher": nn.Linear(1, 1)}))
    with pytest.raises(WeightsError, match="is refused"):
        import_checkpoint(tmp_path / "plain.pth")


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


def test_mean_pooling_shows_in_the_norm(tmp_path: Path) -> None:
    pooled = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: tensor
              for name, tensor in trunk_state(VIT, 0).items()}  # fmt: skip
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in pooled.items()}}, tmp_path / "t.pth")
    found = import_checkpoint(tmp_path / "t.pth")
    assert found.config.final_norm == "pooled" and equal_trunk(found, pooled)


def test_two_networks_are_known_without_heads_and_mask_embedding(tmp_path: Path) -> None:
    first, second = trunk_state(VIT, 0), trunk_state(VIT, 1)
    cases = {
        "plain names": ({"student": first, "teacher": second}, "ibot", "teacher", second),
        "one network": ({"student": first}, "ibot", "student", first),
        "msn": ({"encoder": first, "target_encoder": second}, "msn", "teacher", second),
        "msn's target alone": ({"target_encoder": second}, "msn", "teacher", second),
        "wrapper": ({"state_dict": {f"backbone.{n}": t for n, t in first.items()}}, "ibot", None, first),
        "anybody's encoder": ({"encoder": first}, "timm", None, first),
    }
    for name, (content, kind, role, trunk) in cases.items():
        torch.save(content, tmp_path / "w.pth")
        found = import_checkpoint(tmp_path / "w.pth")
        assert (found.kind, found.role) == (kind, role) and equal_trunk(found, trunk), name


def test_flat_files_are_read_like_the_checkpoints_they_were_made_from(tmp_path: Path) -> None:
    nested = ibot_file(tmp_path / "checkpoint.pth")
    flat = {f"{role}.{name}": t.clone() for role, parts in nested.items() for name, t in parts["file"].items()}
    save_file(flat, tmp_path / "flat.safetensors")
    msn = msn_file(tmp_path / "msn.pth.tar")
    flat = {f"{entry}.{name}": t.clone() for entry, state in msn.items() for name, t in state.items()}
    save_file(flat | {"prototypes": torch.ones(10, 4)}, tmp_path / "msn.safetensors")
    for one, two in (("checkpoint.pth", "flat.safetensors"), ("msn.pth.tar", "msn.safetensors")):
        for role in ("student", "teacher"):
            nested_found = import_checkpoint(tmp_path / one, role=role)
            found = import_checkpoint(tmp_path / two, role=role)
            assert (found.kind, found.roles) == (nested_found.kind, ("teacher", "student"))
            assert equal_trunk(found, nested_found.encoder_state)
            assert found.projection_state.keys() == nested_found.projection_state.keys()


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


def test_bare_swins_of_ibot_and_of_simmim_differ_in_what_they_store_beside_the_weights(tmp_path: Path) -> None:
    config = SWIN.model_copy(update={"depths": (2, 1)})
    state = {name.replace("layers.1.downsample", "layers.0.downsample"): tensor
             for name, tensor in trunk_state(config, 0).items()}  # fmt: skip
    state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    torch.save({"state_dict": state}, tmp_path / "checkpoint_teacher.pth")
    found = import_checkpoint(tmp_path / "checkpoint_teacher.pth")
    assert (found.kind, found.config.norm_eps, found.config.pad_windows) == ("ibot", 1e-6, True)
    torch.save({"model": state | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 4, 4)}}, tmp_path / "simmim.pth")
    assert import_checkpoint(tmp_path / "simmim.pth").kind == "simmim_swin"


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
        assert found.config.crop_to_patches and found.report.missing == found.report.unexpected == ()
        assert found.projection_state["prototypes"].shape == (10, 4)
        assert "fc3.weight" in found.projection_state and "bn1.running_var" in found.projection_state
    loaded = load_encoder(tmp_path / "vits16_800ep.pth.tar", role="student")
    assert loaded.role == "student" and load_encoder(tmp_path / "vits16_800ep.pth.tar").role == "teacher"
    assert torch.equal(loaded.encoder.trunk.cls_token, written["encoder"]["module.cls_token"])


def test_a_role_that_the_file_has_not(tmp_path: Path) -> None:
    torch.save({"student": {f"module.backbone.{n}": t for n, t in trunk_state(VIT, 0).items()}}, tmp_path / "s.pth")
    with pytest.raises(WeightsError, match="no teacher"):
        import_checkpoint(tmp_path / "s.pth", role="teacher")
    torch.save({"model": trunk_state(VIT, 0)}, tmp_path / "one.pth")
    with pytest.raises(WeightsError, match="one network only"):
        load_encoder(tmp_path / "one.pth", role="student")
    with pytest.raises(WeightsError, match="unknown 'momentum'"):
        import_checkpoint(tmp_path / "one.pth", role="momentum")


def test_both_networks_of_a_runs_own_checkpoint(tmp_path: Path) -> None:
    method = IBOT(IBOTConfig(out_dim=12, shared_head=True, head_hidden_dim=16, head_bottleneck_dim=6),
                  build_encoder(VIT, 32), 32, MEAN, STD)  # fmt: skip
    with torch.no_grad():
        for parameter in (*method.encoder.parameters(), *method.head.parameters()):
            parameter.add_(1)
    save_file({name: t.clone() for name, t in method.state_dict().items()}, tmp_path / "model.safetensors")
    for role, encoder, head in ((None, method.teacher, method.teacher_head), ("student", method.encoder, method.head)):
        found = import_checkpoint(tmp_path / "model.safetensors", role=role)
        assert (found.kind, found.role) == ("halfseen", role or "teacher")
        assert equal_trunk(found, encoder.trunk.state_dict())
        assert all(torch.equal(found.projection_state[name], t) for name, t in head.state_dict().items())


def test_a_run_starts_from_encoder_head_and_prototypes(tmp_path: Path) -> None:
    both = ibot_file(tmp_path / "ibot.pth")
    written = both["teacher"]
    config = IBOTConfig(out_dim=12, shared_head=True, head_hidden_dim=16, head_bottleneck_dim=6)
    method = IBOT(config, build_encoder(VIT, 32), 32, MEAN, STD)
    load_initial_weights(method, str(tmp_path / "ibot.pth"))
    for head in (method.head, method.teacher_head):
        assert torch.equal(head.last_layer.weight_v, written["head"]["last_layer.weight_v"])
    assert torch.equal(method.teacher.trunk.pos_embed, written["trunk"]["pos_embed"])
    assert torch.equal(method.encoder.trunk.pos_embed, written["trunk"]["pos_embed"])
    mask_token = both["student"]["file"]["module.backbone.masked_embed"]
    assert torch.equal(method.mask_token, mask_token), "a teacher has none, so it is its student's"

    msn_file(tmp_path / "msn.pth.tar")
    msn = MSN(MSNConfig(num_prototypes=10, hidden_dim=16, output_dim=4, focal_views=0), build_encoder(VIT, 32), 32,
              MEAN, STD)  # fmt: skip
    load_initial_weights(msn, str(tmp_path / "msn.pth.tar"))
    found = import_checkpoint(tmp_path / "msn.pth.tar").projection_state
    assert torch.equal(msn.prototypes, found["prototypes"]) and torch.equal(msn.head.fc3.bias, found["fc3.bias"])
    assert torch.equal(msn.teacher_head.fc3.bias, found["fc3.bias"])

"""Weights in and out: export for timm, loading back, import with resizing, refusals."""

import argparse
import json
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import export_encoder, fit_state, import_checkpoint, load_encoder
from halfseen.errors import WeightsError
from halfseen.ops.bias_tables import resize_bias_table
from halfseen.ops.positions import resize_positions_to_size

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
EXPORTS: dict[str, tuple[dict[str, object], int]] = {
    "vit": ({"name": "vit_tiny", "patch_size": 4, "embed_dim": 192, "depth": 4}, 28),
    "vit_no_class": (
        {"name": "vit_tiny", "patch_size": 7, "embed_dim": 48, "depth": 2, "num_heads": 2, "class_token": False},
        28,
    ),
    "vit_pooled": ({"name": "vit_tiny", "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
                    "final_norm": "pooled", "layer_scale": 1e-3}, 32),
    "swin": ({"name": "swin_tiny", "embed_dim": 16, "depths": (2, 2, 2), "num_heads": 1}, 96),
    "beit": ({"name": "simmim_vit_tiny", "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4}, 35),
    "viny": ({"name": "viny_4m", "embed_dim": 32, "depth": 2, "num_heads": 2, "head_dim": 16}, 48),
    "timm_name": ({"name": "vit_small_patch14_reg4_dinov2"}, 28),
}  # fmt: skip


def random_encoder(case: str) -> Encoder:
    settings, image_size = EXPORTS[case]
    encoder = build_encoder(ModelConfig.model_validate(settings), image_size)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return encoder.eval()


def images_for(encoder: Encoder) -> torch.Tensor:
    return torch.randn(2, 3, encoder.image_size, encoder.image_size)


@pytest.mark.parametrize("case", EXPORTS)
def test_an_exported_encoder_comes_back_the_same(case: str, tmp_path: Path) -> None:
    encoder = random_encoder(case)
    path = export_encoder(encoder, tmp_path, mean=MEAN, std=STD, role="teacher", extra={"step": 7})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]
    images = images_for(encoder)
    for source in (tmp_path, path, str(tmp_path / "encoder.json")):
        loaded = load_encoder(source)
        assert (loaded.mean, loaded.std, loaded.role) == (MEAN, STD, "teacher")
        assert loaded.image_size == encoder.image_size and loaded.report is None
        assert torch.equal(loaded.encoder.eval()(images).patches, encoder(images).patches)
    assert json.loads((tmp_path / "encoder.json").read_text())["step"] == 7


@pytest.mark.parametrize("case", [case for case in EXPORTS if case != "viny"])
def test_timm_alone_loads_an_exported_encoder_strictly_with_equal_features(case: str, tmp_path: Path) -> None:
    encoder = random_encoder(case)
    export_encoder(encoder, tmp_path, mean=MEAN, std=STD)
    about = json.loads((tmp_path / "encoder.json").read_text())
    model = timm.create_model(about["timm"]["model_name"], **about["timm"]["kwargs"]).eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    images = images_for(encoder)
    with torch.no_grad():
        theirs = model.forward_features(images)
        ours = encoder(images)
    theirs = theirs.flatten(1, 2) if case == "swin" else theirs
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], 1), theirs, rtol=0, atol=1e-5)
    assert about["normalisation"] == {"mean": list(MEAN), "std": list(STD)} and about["role"] == "student"
    assert about["notes"] == [] or case == "beit"


def test_the_json_says_what_timm_cannot_be_told(tmp_path: Path) -> None:
    export_encoder(random_encoder("viny"), tmp_path, mean=MEAN, std=STD)
    about = json.loads((tmp_path / "encoder.json").read_text())
    assert about["timm"] is None and "load_encoder" in about["notes"][0]
    kamim = build_encoder(ModelConfig(name="vit_tiny", embed_dim=12, depth=1, norm_eps=1e-12), 32)
    export_encoder(kamim, tmp_path, mean=MEAN, std=STD)
    about = json.loads((tmp_path / "encoder.json").read_text())
    assert about["layer_norm_eps"] == 1e-12 and "1e-12" in about["notes"][0]


def test_roles_of_one_folder(tmp_path: Path) -> None:
    student, teacher = random_encoder("vit"), random_encoder("vit")
    export_encoder(teacher, tmp_path, mean=MEAN, std=STD, role="teacher")
    export_encoder(student, tmp_path, mean=MEAN, std=STD, role="student", stem="encoder-student")
    images = images_for(student)
    assert load_encoder(tmp_path).role == "teacher"
    assert torch.equal(load_encoder(tmp_path, "student").encoder.eval()(images).patches, student(images).patches)
    with pytest.raises(WeightsError, match=r"has no 'momentum' encoder. It has: teacher, student"):
        load_encoder(tmp_path, "momentum")


def test_an_unfinished_run_is_read_from_its_newest_checkpoint(tmp_path: Path) -> None:
    encoder = random_encoder("vit")
    settings, image_size = EXPORTS["vit"]
    config = {"model": settings, "data": {"image_size": image_size, "mean": list(MEAN), "std": list(STD)}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for step, scale in ((3, 2.0), (12, 1.0)):
        place = tmp_path / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        state = {f"encoder.{name}": value * scale for name, value in encoder.state_dict().items()}
        save_file({**state, "mask_token": torch.zeros(3)}, place / "model.safetensors")
    loaded = load_encoder(tmp_path)
    images = images_for(encoder)
    assert torch.equal(loaded.encoder.eval()(images).patches, encoder(images).patches)
    assert loaded.mean == MEAN and loaded.origin.endswith("step-00000012")
    with pytest.raises(WeightsError, match="'teacher'"):
        load_encoder(tmp_path, "teacher")


def test_loading_at_another_size_resizes_positions_and_tables(tmp_path: Path) -> None:
    vit, beit = random_encoder("vit"), random_encoder("beit")
    export_encoder(vit, tmp_path / "vit", mean=MEAN, std=STD)
    larger = load_encoder(tmp_path / "vit", image_size=40).encoder
    assert torch.equal(larger.trunk.pos_embed, resize_positions_to_size(vit.trunk.pos_embed.detach(), 10, 10, 1))
    export_encoder(beit, tmp_path / "beit", mean=MEAN, std=STD)
    larger = load_encoder(tmp_path / "beit", image_size=49).encoder
    table = beit.trunk.rel_pos_bias.relative_position_bias_table.detach()
    assert torch.equal(larger.trunk.rel_pos_bias.relative_position_bias_table, resize_bias_table(table, 13, 3))


def test_swin_tables_are_compared_stage_by_stage() -> None:
    small = build_encoder(ModelConfig(name="swin_tiny", embed_dim=8, num_heads=1, window_size=12), 192)
    large = build_encoder(ModelConfig(name="swin_tiny", embed_dim=8, num_heads=1, window_size=14), 224)
    fitted, report = fit_state(small.trunk.state_dict(), large.trunk)
    tables = [name for name in fitted if name.endswith("relative_position_bias_table")]
    assert set(report.reshaped) == set(tables) and not report.missing and not report.unexpected
    sides = {name.split(".")[1]: len(fitted[name]) for name in tables}
    assert sides == {"0": 27**2, "1": 27**2, "2": 27**2, "3": 13**2}  # stage 4: one window of 7 tokens a side


def official_swin_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        renamed["encoder." + ".".join(parts)] = value
    return renamed


def test_the_importer_tells_kinds_apart_by_names(tmp_path: Path) -> None:
    def kind(state: dict[str, torch.Tensor], **settings: int) -> str:
        save_file({name: value.contiguous().clone() for name, value in state.items()}, tmp_path / "w.safetensors")
        return import_checkpoint(tmp_path / "w.safetensors", **settings).kind

    vit = random_encoder("vit").trunk.state_dict()
    swin = random_encoder("swin").trunk.state_dict()
    beit = random_encoder("beit").trunk.state_dict()
    assert kind(vit) == "timm" and kind(swin) == "timm" and kind(beit) == "simmim_vit"
    assert kind(official_swin_names(swin)) == "simmim_swin"
    assert kind({f"encoder.trunk.{name}": value for name, value in vit.items()}) == "halfseen"
    with pytest.raises(WeightsError, match="no known layout"):
        kind({"conv1.weight": torch.zeros(2)})


def test_swins_image_size_shows_in_a_clipped_window(tmp_path: Path) -> None:
    swin = build_encoder(ModelConfig(name="swin_tiny", embed_dim=8, num_heads=1, window_size=12), 192)
    save_file(official_swin_names(swin.trunk.state_dict()), tmp_path / "w.safetensors")
    found = import_checkpoint(tmp_path / "w.safetensors")
    assert found.image_size == 192 and found.config.window_size == 12
    assert found.report.missing == () and found.report.unexpected == ()
    assert torch.equal(found.build().trunk.norm.weight, swin.trunk.norm.weight)


def test_the_report_names_what_is_missing_and_unexpected(tmp_path: Path) -> None:
    state = random_encoder("vit").trunk.state_dict()
    del state["norm.weight"]
    state["blocks.0.extra.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    found = import_checkpoint(tmp_path / "w.safetensors")
    assert found.report.missing == ("norm.weight",)
    assert found.report.unexpected == ("blocks.0.extra.weight",)
    assert str(found.report).startswith("1 missing: norm.weight; 1 unexpected: blocks.0.extra.weight; 0 reshaped")
    with pytest.raises(WeightsError, match=r"doesn't fit this model.*norm\.weight"):
        found.build()
    encoder = build_encoder(found.config, found.image_size)
    assert found.load_into(encoder, partial=True).missing == ("norm.weight",)


def test_weights_of_another_width_are_refused_by_name() -> None:
    narrow = build_encoder(ModelConfig(name="vit_tiny", embed_dim=24, depth=2), 32)
    with pytest.raises(WeightsError, match=r"other shapes than the model: cls_token \(1, 1, 192\)"):
        fit_state(build_encoder(ModelConfig(name="vit_tiny", depth=2), 32).trunk.state_dict(), narrow.trunk)
    heads = build_encoder(ModelConfig(name="simmim_vit_tiny", embed_dim=24, depth=1, num_heads=2), 64)
    other = build_encoder(ModelConfig(name="simmim_vit_tiny", embed_dim=24, depth=1, num_heads=4), 32)
    with pytest.raises(WeightsError, match="2 heads, the model has 4"):
        fit_state(heads.trunk.state_dict(), other.trunk)


def test_tables_of_every_block_load_but_do_not_become_one() -> None:
    config = {"name": "simmim_vit_tiny", "embed_dim": 24, "depth": 2, "num_heads": 2}
    shared = build_encoder(ModelConfig.model_validate(config), 64)
    torch.nn.init.normal_(shared.trunk.rel_pos_bias.relative_position_bias_table)
    blocks = build_encoder(ModelConfig.model_validate({**config, "relative_positions": "per_block"}), 96)
    fitted, report = fit_state(shared.trunk.state_dict(), blocks.trunk)
    table = resize_bias_table(shared.trunk.rel_pos_bias.relative_position_bias_table.detach(), 11, 3)
    for block in range(2):
        assert torch.equal(fitted[f"blocks.{block}.attn.relative_position_bias_table"], table)
    assert not report.missing and len(report.reshaped) == 2
    again, report = fit_state(blocks.trunk.state_dict(), blocks.trunk)  # already per block: accepted
    assert not report.missing and not report.reshaped and len(again) == len(blocks.trunk.state_dict())
    with pytest.raises(WeightsError, match="relative_positions=per_block"):
        fit_state(blocks.trunk.state_dict(), shared.trunk)


def test_heads_that_do_not_show_must_be_said(tmp_path: Path) -> None:
    save_file(random_encoder("vit_no_class").trunk.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="say num_heads"):
        import_checkpoint(tmp_path / "w.safetensors")
    assert import_checkpoint(tmp_path / "w.safetensors", num_heads=2).config.num_heads == 2


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    state = random_encoder("vit").trunk.state_dict()
    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        write({"model": state, "config": Evil(marker)}, tmp_path / "evil.pth")
        with pytest.raises(WeightsError, match="is refused: reading it would run code") as caught:
            load_encoder(tmp_path / "evil.pth")
        assert "\n" not in str(caught.value) and not marker.exists()


def test_settings_objects_of_official_checkpoints_are_read_as_nothing(tmp_path: Path) -> None:
    import sys
    import types

    module = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module.CfgNode = node  # type: ignore[attr-defined]
    state = random_encoder("vit").trunk.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        settings = node(MODEL=node(TYPE="vit"), DEPTHS=[2, 2])
        settings.__dict__["__immutable__"] = True
        content = {"model": state, "config": settings, "args": argparse.Namespace(lr=0.1, out=tmp_path), "epoch": 3}
        torch.save(content, tmp_path / "official.pth")
    found = import_checkpoint(tmp_path / "official.pth")
    assert torch.equal(found.encoder_state["norm.weight"], state["norm.weight"])


@pytest.mark.parametrize("wrap", ["model", "model_state_dict", "state_dict", None])
def test_wrappers_and_data_parallel_prefixes(wrap: str | None, tmp_path: Path) -> None:
    state = OrderedDict((f"module.{name}", value) for name, value in random_encoder("vit").trunk.state_dict().items())
    torch.save({wrap: state, "epoch": 1} if wrap else state, tmp_path / "w.pth")
    assert import_checkpoint(tmp_path / "w.pth").report == ((), (), (), ())


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    encoder = random_encoder("vit")
    torch.save(encoder.trunk.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    cases = {
        "truncated.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pt": b"not a checkpoint at all",
        "broken.safetensors": b"\xff" * 64,
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name) as caught:
            load_encoder(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_encoder(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"neither an encoder.json"):
        load_encoder(tmp_path)
    with pytest.raises(WeightsError, match=r"write 'timm:vit_small_patch16_224'"):
        load_encoder("vit_small_patch16_224")
    with pytest.raises(WeightsError, match=r"unknown 'mea'.*mae"):
        import_checkpoint(tmp_path / "whole.pth", kind="mea")


def test_a_changed_weights_file_is_noticed(tmp_path: Path) -> None:
    path = export_encoder(random_encoder("vit"), tmp_path, mean=MEAN, std=STD)
    state = load_file(path)
    state["norm.weight"] += 1
    save_file(state, path)
    with pytest.raises(WeightsError, match="sha256 differs"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(WeightsError, match="was not written by"):
        load_encoder(path)


def test_timm_names_give_random_weights_without_a_network() -> None:
    loaded = load_encoder("timm:vit_tiny_patch16_224", image_size=32)
    assert loaded.role == "random" and loaded.image_size == 32
    with pytest.raises(WeightsError, match="Did you mean 'vit_tiny_patch16_224'"):
        load_encoder("timm:vit_tiny_patch16_242")

"""Checkpoints in LocalMIM's layout: branches that freezing numbered anew, patch merging, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.scale_decoders import scale_head
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.backbones.weights_names import by_columns
from halfseen.errors import WeightsError

VIT = ModelConfig(name="vit_tiny", patch_size=8, depth=2)
SWIN = ModelConfig(name="swin_tiny", embed_dim=8, depths=(2, 1), num_heads=1, window_size=4, norm_eps=1e-6)
EVERY_STAGE = (8.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 0.5)


def branches(scales: tuple[float, ...], width: int = 192) -> dict[str, Tensor]:
    """Tap norms, decoders reduced to their heads and HOG constants, numbered from 0."""
    state = {}
    for number, scale in enumerate(scales):
        state |= {f"norm.{number}.{name}": torch.randn(width) for name in ("weight", "bias")}
        head = scale_head(16, scale, 27).state_dict()
        state |= {f"decoder.{number}.pred.{name}": torch.randn_like(tensor) for name, tensor in head.items()}
        state |= {f"hog_enc.{number}.conv.weight": torch.ones(2, 1, 3, 3), f"hog_enc.{number}.conv.bias": torch.ones(2)}
    return state


def vit_file(path: Path, scales: tuple[float, ...]) -> tuple[dict[str, Tensor], Imported]:
    trunk = build_encoder(VIT, 32).trunk.state_dict()
    state = {name: tensor for name, tensor in trunk.items() if not name.startswith("norm.")} | branches(scales)
    save_file(state, path)
    return state, import_checkpoint(path)


@pytest.mark.parametrize(
    ("scales", "numbers"),
    [
        ((4.0, 2.0, 1.0, 0.5), [0, 1, 2, 3]),
        ((2.0, 1.0, 0.5), [1, 2, 3]),
        ((1.0, 0.5), [2, 3]),
        ((0.5,), [3]),
        (EVERY_STAGE, list(range(12))),
        (EVERY_STAGE[1:], list(range(1, 12))),
        (EVERY_STAGE[5:], list(range(5, 12))),
        (EVERY_STAGE[9:], [9, 10, 11]),
        ((1.0, 1.0), [0, 1]),
        ((8.0, 4.0, 0.5), [0, 1, 2]),
    ],
)
def test_heads_tell_which_branches_are_left(scales: tuple[float, ...], numbers: list[int], tmp_path: Path) -> None:
    state, found = vit_file(tmp_path / "w.safetensors", scales)
    last = len(scales) - 1
    assert found.kind == "localmim_vit"
    assert dict(found.scales) == dict(zip(numbers, scales, strict=True))
    assert found.report.missing == found.report.unexpected == ()
    assert torch.equal(found.build().trunk.norm.weight, state[f"norm.{last}.weight"])
    expected = {f"hog_bias.{number}" for number in numbers}
    expected |= {f"norm.{number}.{name}" for number in numbers[:-1] for name in ("weight", "bias")}
    assert found.branch_state.keys() == expected
    for place, number in enumerate(numbers[:-1]):
        assert torch.equal(found.branch_state[f"norm.{number}.bias"], state[f"norm.{place}.bias"])


def test_a_file_without_decoders_is_an_encoder(tmp_path: Path) -> None:
    state, _ = vit_file(tmp_path / "w.safetensors", (4.0, 2.0, 1.0, 0.5))
    bare = {name: tensor for name, tensor in state.items() if not name.startswith(("decoder.", "hog_enc."))}
    save_file(bare, tmp_path / "bare.safetensors")
    found = import_checkpoint(tmp_path / "bare.safetensors")
    assert (found.kind, dict(found.scales), found.decoder_state) == ("localmim_vit", {}, {})
    assert torch.equal(found.build().trunk.norm.bias, state["norm.3.bias"])
    assert len(found.branch_state) == 6


def test_other_heads_are_refused(tmp_path: Path) -> None:
    state, _ = vit_file(tmp_path / "w.safetensors", (4.0, 2.0, 1.0, 0.5))
    del state["decoder.0.pred.1.weight"]
    save_file(state, tmp_path / "torn.safetensors")
    with pytest.raises(WeightsError, match=r"decoder\.0\.pred has layers 0, 3, 4, which is none of LocalMIM's"):
        import_checkpoint(tmp_path / "torn.safetensors")


def swin_file(path: Path) -> SwinEncoder:
    """A Swin's weights as LocalMIM would have stored them, with the merging's inputs in row order."""
    encoder = build_encoder(SWIN, 32)
    assert isinstance(encoder, SwinEncoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    state = {}
    for name, tensor in encoder.trunk.state_dict().items():
        if name.startswith("layers.1.downsample."):
            state["encoder." + name.replace("layers.1.", "layers.0.")] = by_columns(tensor)
        elif name.startswith("norm."):
            state |= {f"encoder.norm.0.{name[5:]}": tensor + 1, f"encoder.norm.1.{name[5:]}": tensor}
        else:
            state[f"encoder.{name}"] = tensor
    state |= {f"decoder.{number}.pred.weight": torch.zeros(6, 8) for number in (0, 1)}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return encoder.eval()


def test_a_swins_features_survive_unless_asked_otherwise(tmp_path: Path) -> None:
    encoder = swin_file(tmp_path / "w.safetensors")
    images = torch.randn(2, 3, 32, 32)
    expected = encoder(images).patches
    for order, same in ((None, True), ("pretrain", True), ("as_published", False)):
        found = import_checkpoint(tmp_path / "w.safetensors", patch_merge_order=order)
        assert (found.kind, dict(found.scales), found.image_size) == ("localmim_swin", {0: 1.0, 1: 1.0}, 32)
        assert found.report.missing == found.report.unexpected == ()
        assert found.branch_state.keys() == {"norm.0.weight", "norm.0.bias"}
        with torch.no_grad():
            assert torch.equal(found.build().eval()(images).patches, expected) == same


def test_the_order_of_patch_merging_belongs_to_localmims_swin(tmp_path: Path) -> None:
    swin_file(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"unknown 'rows'\. Known: pretrain, as_published"):
        import_checkpoint(tmp_path / "w.safetensors", patch_merge_order="rows")
    vit_file(tmp_path / "vit.safetensors", (0.5,))
    with pytest.raises(WeightsError, match=r"has an effect on a Swin of LocalMIM only, .* is localmim_vit\. Leave it"):
        import_checkpoint(tmp_path / "vit.safetensors", patch_merge_order="as_published")


def test_joining_tokens_by_columns_is_its_own_inverse() -> None:
    tensor = torch.arange(24.0).reshape(2, 12)
    assert by_columns(tensor)[0].tolist() == [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]
    assert torch.equal(by_columns(by_columns(tensor)), tensor)

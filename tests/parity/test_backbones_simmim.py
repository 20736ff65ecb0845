"""Encoders of SimMIM (official ViT and Swin, ViNy) against the original's recorded outputs, through the importer."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from halfseen.backbones.build import build_encoder, timm_call
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.decoders import LinearPatchDecoder, PixelShuffleDecoder
from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.ops.bias_tables import resize_bias_table
from parity.discovery import companion, load_arrays, parity_files, state_under


def imported(state: dict[str, Tensor], folder: Path, **settings: int) -> Imported:
    """What the public importer makes of a reference state dict, written as the official files are."""
    path = folder / "checkpoint.pth"
    torch.save({"model": state, "epoch": 3}, path)
    return import_checkpoint(path, **settings)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("path", parity_files("simmim", "rpb_resize"))
def test_bias_tables_are_remapped_like_the_original(path: Path) -> None:
    arrays = load_arrays(path)
    tags = sorted({name.split("/")[0] for name in arrays})
    assert tags
    for tag in tags:
        family, _, new = re.fullmatch(r"(\w+?)_(\d+)_to_(\d+)", tag).groups()
        class_rows = 3 if family == "vit" else 0
        resized = resize_bias_table(tensor(arrays[f"{tag}/src"]), 2 * int(new) - 1, class_rows)
        np.testing.assert_allclose(resized.numpy(), arrays[f"{tag}/dst"], rtol=0, atol=1e-4, err_msg=tag)
        if class_rows:
            np.testing.assert_array_equal(resized[-3:].numpy(), arrays[f"{tag}/src"][-3:])


@pytest.mark.parametrize("path", parity_files("simmim", "vit_official") + parity_files("simmim", "swin_official"))
def test_masked_forward_and_picture(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images, mask = tensor(arrays["in/img"]), tensor(arrays["in/mask"]).flatten(1).bool()
    found = imported(state_under(arrays, "sd/"), tmp_path, image_size=images.shape[-1])
    assert found.kind == ("simmim_swin" if path.name.startswith("swin") else "simmim_vit")
    assert not found.report.missing and not found.report.unexpected and not found.report.reshaped
    assert all(name.endswith(("relative_position_index", "attn_mask")) for name in found.report.ignored)
    encoder = found.build().eval()
    decoder = PixelShuffleDecoder(encoder.embed_dim, encoder.stride)
    decoder.load_state_dict(found.decoder_state)
    with torch.no_grad():
        features = encoder(images, mask=mask, mask_token=found.mask_token)
        picture = decoder.picture(features.patches, features.grid)
    z = features.patches.transpose(1, 2).unflatten(2, features.grid)
    np.testing.assert_allclose(z.numpy(), arrays["out/z"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(picture.numpy(), arrays["out/rec"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("simmim", "vit_official_finetune_from_pretrain"))
def test_classifier_made_from_the_pretrained_encoder(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    pretrained = load_arrays(companion(path, "vit_official_finetune_from_pretrain", "vit_official_tiny"))
    images, head = tensor(arrays["in/img"]), state_under(arrays, "sd/")
    found = imported(state_under(pretrained, "sd/"), tmp_path)
    per_block = {**found.config.model_dump(), "relative_positions": "per_block", "final_norm": "pooled"}
    call = timm_call(ModelConfig.model_validate(per_block), images.shape[-1])
    model = timm.create_model(call.model_name, **{**call.kwargs, "num_classes": len(head["head.bias"])}).eval()
    report = found.load_into(model, partial=True)
    for names, key in ((report.missing, "meta/missing_keys"), (report.unexpected, "meta/unexpected_keys")):
        expected = {str(name) for name in arrays[key] if not str(name).endswith("relative_position_index")}
        assert set(names) == expected
    model.load_state_dict(head, strict=False)
    with torch.no_grad():
        tokens = model.forward_features(images)
        np.testing.assert_allclose(
            model.forward_head(tokens, pre_logits=True).numpy(), arrays["out/features"], rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(model(images).numpy(), arrays["out/logits"], rtol=0, atol=1e-5)
        # The same feature through our encoder, which keeps the last norm for the pooled tokens.
        encoder = build_encoder(ModelConfig.model_validate(per_block), images.shape[-1]).eval()
        found.load_into(encoder, partial=True)
        encoder.trunk.load_state_dict(head, strict=False)
        feature = encoder.trunk.fc_norm(encoder(images).patches.mean(dim=1))
        np.testing.assert_allclose(feature.numpy(), arrays["out/features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("simmim", "vit_seed_encoder"))
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_viny_patch_tokens_and_class_logits(path: Path, prefix: str, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images = tensor(arrays["in/img"])
    state = {prefix + name: value for name, value in state_under(arrays, "sd/").items()}
    found = imported(state, tmp_path, num_heads=int(arrays["meta/heads"]))
    assert found.kind == "viny" and found.image_size == int(arrays["meta/image_size"])
    assert not found.report.missing and not found.report.unexpected
    with torch.no_grad():
        tokens = found.build().eval()(images).patches
        np.testing.assert_allclose(tokens.numpy(), arrays["out/patch_tokens"], rtol=0, atol=1e-5)
        with_class = ModelConfig.model_validate({**found.config.model_dump(), "class_token": True})
        encoder = build_encoder(with_class, found.image_size).eval()
        assert found.load_into(encoder).missing == ()
        feature = encoder(images).prefix[:, 0]
        logits = torch.nn.functional.linear(feature, found.head_state["head.weight"], found.head_state["head.bias"])
    np.testing.assert_allclose(logits.numpy(), arrays["out/cls_logits"], rtol=0, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits, tensor(arrays["in/labels"]))
    assert abs(float(loss) - float(arrays["out/cls_loss"])) < 1e-5


@pytest.mark.parametrize("path", parity_files("simmim", "vit_seed_simmim"))
def test_viny_predictions_of_hidden_patches(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images, hidden = tensor(arrays["in/img"]), tensor(arrays["out/masked_indices"])
    state = state_under(arrays, "sd/")
    found = imported(state, tmp_path, num_heads=int(arrays["meta/heads"]))
    assert set(found.report.ignored) == {name for name in state if name.startswith("get_patch_embedding.")}
    encoder = found.build().eval()
    decoder = LinearPatchDecoder(encoder.embed_dim, encoder.patch_size)
    decoder.load_state_dict(found.decoder_state)
    mask = torch.zeros(len(images), encoder.image_size**2 // encoder.patch_size**2, dtype=torch.bool)
    mask.scatter_(1, hidden, True)
    with torch.no_grad():
        tokens = encoder(images, mask=mask, mask_token=found.mask_token).patches
        predicted = decoder(tokens.gather(1, hidden.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])))
    np.testing.assert_allclose(predicted.numpy(), arrays["out/pred_patches"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("simmim", "vit_seed_simmim"))
def test_a_safetensors_copy_reads_the_same(path: Path, tmp_path: Path) -> None:
    state = state_under(load_arrays(path), "sd/")
    heads = int(load_arrays(path)["meta/heads"])
    save_file(state, tmp_path / "copy.safetensors")
    copy = import_checkpoint(tmp_path / "copy.safetensors", num_heads=heads)
    original = imported(state, tmp_path, num_heads=heads)
    assert copy.config == original.config and copy.report == original.report
    assert all(torch.equal(copy.encoder_state[name], value) for name, value in original.encoder_state.items())

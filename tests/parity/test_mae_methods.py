"""MAE as a whole against recorded masks, losses and gradients of the original."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.backbones.weights import import_checkpoint
from halfseen.masking.random import count_visible, random_visible_ids
from halfseen.methods.mae import MAE, MAEConfig
from halfseen.ops.patches import patchify, unpatchify
from parity.discovery import load_arrays, parity_files, state_under
from parity.reference_names import ReferenceNames, gradients, load_method

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("path", parity_files("mae", "tiny_mae"))
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_masks_losses_and_gradients(path: Path, norm_pix_loss: bool, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    setting = json.loads(str(arrays["cfg_json"]))
    state, images = state_under(arrays, "state."), torch.from_numpy(arrays["images"])
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    found = import_checkpoint(tmp_path / "checkpoint.pth", num_heads=setting["num_heads"])
    names = ReferenceNames(found, state)

    patches = patchify(images, setting["patch"])
    np.testing.assert_array_equal(patches.numpy(), arrays["patchified"])
    side = setting["img"] // setting["patch"]
    assert torch.equal(unpatchify(patches, (side, side), setting["patch"]), images)

    cases = sorted({name.split(".")[0] for name in arrays if re.match(r"case\d+\.", name)})
    assert cases
    for case in cases:
        ratio = float(arrays[f"{case}.mask_ratio"])
        config = MAEConfig(
            mask_ratio=ratio,
            norm_pix_loss=norm_pix_loss,
            decoder_embed_dim=setting["decoder_embed_dim"],
            decoder_depth=setting["decoder_depth"],
            decoder_num_heads=setting["decoder_num_heads"],
            decoder_mlp_ratio=setting["mlp_ratio"],
            decoder_norm_eps=setting["ln_eps"],
        )
        method = MAE(config, found.build(), setting["img"], MEAN, STD)
        # The fixed tables come with the method; the recorded ones are the same, so loading changes nothing.
        np.testing.assert_array_equal(method.encoder.trunk.pos_embed.numpy(force=True), arrays["state.pos_embed"])
        load_method(method, found)

        split = random_visible_ids(torch.from_numpy(arrays[f"{case}.noise"]), count_visible(side**2, ratio))
        np.testing.assert_array_equal(split.mask.float().numpy(), arrays[f"{case}.mask"])
        np.testing.assert_array_equal(split.ids_restore.numpy(), arrays[f"{case}.ids_restore"])
        assert split.visible_ids.shape[1] == arrays[f"{case}.latent"].shape[1] - 1

        out = method.compare(images, split, {})
        flavour = f"normpix{int(norm_pix_loss)}"
        assert abs(float(out.loss.detach()) - float(arrays[f"{case}.loss_{flavour}"])) < 1e-5
        out.loss.backward()
        grads = gradients(method)
        prefix = f"{case}.{flavour}.grad."
        recorded = [name for name in arrays if name.startswith(prefix)]
        assert recorded
        for name in recorded:
            reference = arrays[name]
            tolerance = 1e-4 * np.abs(reference).max()
            assert tolerance > 0, name
            gradient = names.value(name.removeprefix(prefix), grads)
            np.testing.assert_allclose(gradient.numpy(), reference, rtol=0, atol=tolerance, err_msg=name)

"""LocalMIM's Swin encoder on visible tokens, and the dense Swin with its weights, against recorded outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from halfseen.backbones.visible_swin import Coords, VisibleTap, encode_visible, mask_grid, tap_shapes
from halfseen.masking.random import count_hidden_localmim, mask_by_rank
from parity.discovery import load_arrays, parity_files
from parity.localmim_images import prepare
from parity.localmim_weights import mask_ratio, swin_encoder


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_the_mask_follows_from_the_permutation(path: Path) -> None:
    arrays = load_arrays(path)
    (ranks,) = (torch.from_numpy(arrays[name]) for name in arrays if name.startswith("randperm"))
    mask = mask_by_rank(ranks, count_hidden_localmim(len(ranks), mask_ratio(arrays)))
    np.testing.assert_array_equal(mask[None].numpy(), arrays["mask"])


def restoring(tap: VisibleTap, side: int) -> np.ndarray:
    """What the original calls ids_restore: where each token of the patch-major list stands, visible ones first."""
    order = torch.cat([tap.visible_ids, tap.hidden_ids], dim=1)[0].numpy()
    times = tap.shape.side // side
    raster = np.arange(tap.shape.side**2).reshape(side, times, side, times).transpose(0, 2, 1, 3).reshape(-1)
    return np.argsort(order)[raster]


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
@pytest.mark.parametrize(("coords", "prefix"), [("reference", ""), ("fixed", "fixedcoords/")])
def test_normed_maps_of_visible_tokens(path: Path, coords: Coords, prefix: str) -> None:
    arrays, weights = load_arrays(path), load_file(path.with_suffix(".safetensors"))
    encoder = swin_encoder(arrays, weights)
    mask = torch.from_numpy(arrays["mask"][0])
    assert mask.numel() == mask_grid(encoder)[0] * mask_grid(encoder)[1]
    with torch.no_grad():
        taps = encode_visible(encoder, prepare(arrays["images_u8_nhwc"]), mask, coords)
    assert [tap.shape for tap in taps] == list(tap_shapes(encoder))
    assert len(taps) == sum(name.startswith("latent") for name in arrays)
    for number, tap in enumerate(taps):
        norm = (weights[f"encoder.norm.{number}.weight"], weights[f"encoder.norm.{number}.bias"])
        latent = F.layer_norm(tap.tokens, (tap.shape.width,), *norm, eps=1e-6)
        np.testing.assert_allclose(latent.numpy(), arrays[f"{prefix}latent{number}"], rtol=0, atol=2e-5)
        np.testing.assert_array_equal(restoring(tap, mask_grid(encoder)[0]), arrays[f"ids_restore{number}"])


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_last_stage_of_the_dense_swin_on_whole_images(path: Path) -> None:
    """The original's fine-tuning model has another epsilon in one norm of each block, hence its wider tolerance."""
    arrays, weights = load_arrays(path), load_file(path.with_suffix(".safetensors"))
    recorded = {
        "finetune_raw_stage3": (True, 1e-4),
        "timm_swap0_final": (True, 2e-5),
        "timm_swap1_final": (False, 2e-5),
    }
    present = recorded.keys() & arrays.keys()
    if not present:
        pytest.skip("the file holds none of them")
    for name in present:
        as_published, tolerance = recorded[name]
        encoder = swin_encoder(arrays, weights, as_published)
        with torch.no_grad():
            (tokens,) = encoder(prepare(arrays["images_u8_nhwc"]), layers=(encoder.num_layers,)).layers
        expected = arrays[name].reshape(tokens.patches.shape)
        np.testing.assert_allclose(tokens.patches.numpy(), expected, rtol=0, atol=tolerance, err_msg=name)

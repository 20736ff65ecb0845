"""LocalMIM as a whole, for ViT and Swin, against recorded masks, predictions, losses and gradients of the original."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.visible_swin import Coords
from halfseen.masking.random import count_hidden_localmim, count_visible, mask_by_rank, random_visible_ids
from halfseen.methods.localmim import Hidden, LocalMIM, LocalMIMConfig
from halfseen.targets.pixels import pixel_target
from halfseen.types import StepOutput
from parity.discovery import load_arrays, parity_files
from parity.localmim_images import MEAN, STD, prepare
from parity.localmim_weights import in_our_order, load_localmim, mask_ratio, our_name, setting, swin_encoder
from parity.reference_names import global_norm, gradients

Arrays = dict[str, np.ndarray]
Weights = dict[str, Tensor]


def vit(path: Path) -> tuple[Arrays, Weights, LocalMIM]:
    arrays, weights = load_arrays(path), load_file(path.with_suffix(".safetensors"))
    sizes = setting(arrays)
    model = ModelConfig(
        name="vit_base",
        patch_size=weights["patch_embed.proj.weight"].shape[-1],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
    )
    config = LocalMIMConfig(
        mask_ratio=mask_ratio(arrays),
        target={"kind": "hog", "bins": sizes["nbins"], "bias": bool(sizes["bias"])},
        decoder_embed_dim=sizes["ddim"],
        decoder_depth=sizes["ddepth"],
        decoder_num_heads=sizes["dheads"],
    )
    method = LocalMIM(config, build_encoder(model, sizes["img"]), sizes["img"], MEAN, STD).eval()
    load_localmim(method, weights)
    return arrays, weights, method


def swin(path: Path, coords: Coords = "reference") -> tuple[Arrays, Weights, LocalMIM]:
    arrays, weights = load_arrays(path), load_file(path.with_suffix(".safetensors"))
    sizes = setting(arrays)
    hog = weights["decoder.0.pred.weight"].shape[0] == 3 * sizes["nbins"]
    config = LocalMIMConfig(
        mask_ratio=mask_ratio(arrays),
        target={"kind": "hog", "bins": sizes["nbins"], "bias": bool(sizes["bias"])} if hog else {"kind": "pixels"},
        norm_pix_loss=not hog and bool(arrays.get("norm_pix_loss", 1)),
        decoder_embed_dim=sizes["ddim"],
        decoder_num_heads=sizes["dheads"],
        coords=coords,
    )
    size = arrays["images_u8_nhwc"].shape[1]
    method = LocalMIM(config, swin_encoder(arrays, weights), size, MEAN, STD).eval()
    load_localmim(method, weights)
    return arrays, weights, method


def hidden_of(arrays: Arrays) -> Hidden:
    """The recorded mask, from the recorded random numbers, which it must follow from."""
    ratio = mask_ratio(arrays)
    if "noise" in arrays:
        noise = torch.from_numpy(arrays["noise"])
        split = random_visible_ids(noise, count_visible(noise.shape[1], ratio))
        np.testing.assert_array_equal(split.mask.float().numpy(), arrays["mask"])
        np.testing.assert_array_equal(split.ids_restore.numpy(), arrays["ids_restore"])
        return split
    (ranks,) = (torch.from_numpy(arrays[name]) for name in arrays if name.startswith("randperm"))
    mask = mask_by_rank(ranks, count_hidden_localmim(len(ranks), ratio))
    np.testing.assert_array_equal(mask[None].numpy(), arrays["mask"])
    return mask


def recorded(arrays: Arrays, word: str, tap: int) -> tuple[np.ndarray, slice]:
    """`pred` or `target` of a tap, and which of the cells it holds."""
    (name,) = (name for name in arrays if name == f"{word}{tap}" or name.startswith(f"{word}{tap}_tok_stride"))
    stride = name.partition("_tok_stride")[2]
    return arrays[name], slice(None, None, int(stride or 1))


def assert_gradients_agree(arrays: Arrays, method: LocalMIM) -> None:
    found = gradients(method)
    names = [name for name in arrays if name.startswith("grad/")]
    assert names
    assert found.keys() == {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    for name in names:
        reference = in_our_order(name, torch.from_numpy(arrays[name])).numpy()
        gradient = found[our_name(name.removeprefix("grad/"), len(method.taps))].numpy()
        tolerance = 1e-4 * np.abs(reference).max()
        np.testing.assert_allclose(gradient, reference, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("path", parity_files("localmim", "vit_"))
def test_a_vit_sees_predicts_and_learns_as_recorded(path: Path) -> None:
    arrays, weights, method = vit(path)
    np.testing.assert_array_equal(method.encoder.trunk.pos_embed.numpy(force=True), weights["pos_embed"].numpy())
    images, split = prepare(arrays["images_u8_nhwc"]), hidden_of(arrays)
    seen = method.see(images, split, method.live)
    assert len(seen) == sum(name.startswith("latent") for name in arrays)
    targets = []
    for tap, at in enumerate(seen):
        decoder = method.decoder[tap]
        np.testing.assert_allclose(at.tokens.numpy(force=True), arrays[f"latent{tap}"], rtol=0, atol=2e-5)
        predicted = decoder.predict_all(*at).numpy(force=True)
        np.testing.assert_allclose(predicted, arrays[f"pred{tap}"], rtol=0, atol=2e-5)
        stored, cells, weight = torch.from_numpy(arrays[f"target{tap}"]), decoder.cells(at.hidden_ids), 1.0
        if (found := decoder.weights(at.hidden_ids)) is not None:
            weight = found
        scattered = torch.zeros(stored.shape[:2]).scatter_(1, cells, torch.ones(cells.shape) * weight)
        np.testing.assert_array_equal(scattered.numpy(), arrays[f"mask_scale{tap}"])
        targets.append(stored.gather(1, cells.unsqueeze(-1).expand(-1, -1, stored.shape[-1])))

    out = method.score(seen, targets)
    terms = [float(out.metrics[f"loss_block{block}"]) for block in method.taps]
    assert terms == pytest.approx([float(arrays[f"loss{tap}"]) for tap in range(len(terms))], rel=1e-5)
    assert float(out.loss.detach()) == pytest.approx(float(arrays["loss"]), rel=1e-5)
    out.loss.backward()
    assert_gradients_agree(arrays, method)
    assert global_norm(gradients(method)) == pytest.approx(float(arrays["grad_norm_all"]), rel=1e-4)


@pytest.mark.parametrize("path", parity_files("localmim", "vit_"))
def test_a_vits_losses_from_its_own_targets(path: Path) -> None:
    arrays, _, method = vit(path)
    out = method.compare(prepare(arrays["images_u8_nhwc"]), hidden_of(arrays))
    terms = [float(out.metrics[f"loss_block{block}"]) for block in method.taps]
    assert terms == pytest.approx([float(arrays[f"loss{tap}"]) for tap in range(len(terms))], rel=1e-3)
    assert float(out.loss.detach()) == pytest.approx(float(arrays["loss"]), rel=1e-3)


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_a_swin_predicts_and_learns_as_recorded(path: Path) -> None:
    arrays, _, method = swin(path)
    images, mask = prepare(arrays["images_u8_nhwc"]), hidden_of(arrays)
    seen = method.see(images, mask, method.live)
    whole = True
    targets = []
    for tap, at in enumerate(seen):
        decoder = method.decoder[tap]
        np.testing.assert_allclose(at.tokens.numpy(force=True), arrays[f"latent{tap}"], rtol=0, atol=2e-5)
        predicted, held = recorded(arrays, "pred", tap)
        ours = decoder.predict_all(*at).numpy(force=True)[:, held]
        np.testing.assert_allclose(ours, predicted, rtol=0, atol=2e-5)
        stored, held = recorded(arrays, "target", tap)
        whole = whole and stored.shape[1] == (method.image_size // method.cell_sizes[tap]) ** 2
        targets.append(torch.from_numpy(stored)[:, decoder.cells(at.hidden_ids)[0]] if whole else None)

    own = method.compare(images, mask)
    tolerance = 1e-3 if method.hog is not None else 1e-5
    assert_losses(arrays, method, own, tolerance)
    out = method.score(seen, targets) if whole else own
    assert_losses(arrays, method, out, 1e-5)
    out.loss.backward()
    assert_gradients_agree(arrays, method)


def assert_losses(arrays: Arrays, method: LocalMIM, out: StepOutput, tolerance: float) -> None:
    terms = [float(out.metrics[f"loss_block{block}"]) for block in method.taps]
    assert terms == pytest.approx([float(arrays[f"loss{tap}"]) for tap in range(len(terms))], rel=tolerance)
    assert float(out.loss.detach()) == pytest.approx(float(arrays["loss"]), rel=tolerance)


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_a_swins_targets(path: Path) -> None:
    """Pixels exactly; HOG up to a few histograms that rounding may move, as the targets' own test says."""
    arrays, _, method = swin(path)
    if method.hog is not None:
        pytest.skip("histograms have a test of their own")
    images = prepare(arrays["images_u8_nhwc"])
    for tap, size in enumerate(method.cell_sizes):
        stored, held = recorded(arrays, "target", tap)
        ours = pixel_target(images, size, standardise=method.config.norm_pix_loss)[:, held]
        np.testing.assert_allclose(ours.numpy(), stored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_a_swins_loss_with_coordinates_that_are_right(path: Path) -> None:
    arrays, _, method = swin(path, coords="fixed")
    out = method.compare(prepare(arrays["images_u8_nhwc"]), hidden_of(arrays))
    tolerance = 1e-3 if method.hog is not None else 1e-5
    assert float(out.loss.detach()) == pytest.approx(float(arrays["fixedcoords/loss"]), rel=tolerance)

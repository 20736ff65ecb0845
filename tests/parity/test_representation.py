"""Analyses of attention, spectra, noise and reconstructions against recorded numbers of the papers' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.analysis.attention import attention_distance, attention_information, patch_distances, uniform_distance
from halfseen.analysis.embedding import principal_components
from halfseen.analysis.fidelity import Fidelity
from halfseen.analysis.robustness import band_noise
from halfseen.analysis.similarity import linear_cka
from halfseen.analysis.spectrum import (
    SILENT,
    feature_variance,
    image_singular_values,
    log_amplitudes,
    relative_log_amplitude,
    spectrum_change,
    token_singular_values,
)
from halfseen.backbones.base import BlockView, Encoder
from halfseen.backbones.weights import IMAGENET_MEAN, IMAGENET_STD, import_checkpoint
from parity.discovery import companion, load_arrays, parity_files, state_under

Arrays = dict[str, np.ndarray]


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def side_of(patches: int) -> int:
    side = round(patches**0.5)
    assert side * side == patches
    return side


def numbered(arrays: Arrays, prefix: str) -> list[Tensor]:
    """`prefix.0`, `prefix.1`, ... as far as they go."""
    found = []
    while f"{prefix}.{len(found)}" in arrays:
        found.append(tensor(arrays[f"{prefix}.{len(found)}"]))
    assert found
    return found


def check_attention(attention: Tensor, distances: Tensor, arrays: Arrays, prefix: str, layer: int) -> None:
    """One layer's distance and information, for each image and head and as the layer's mean."""
    for measure, found, tolerance in (
        ("attention_distance", attention_distance(attention, distances), {"rtol": 1e-6, "atol": 0}),
        ("nmi", attention_information(attention).double(), {"rtol": 0, "atol": 1e-5}),
    ):
        heads, means = arrays[f"{prefix}{measure}.batch_head"][layer], arrays[f"{prefix}{measure}.layer"][layer]
        np.testing.assert_allclose(found.numpy(), heads, **tolerance)
        np.testing.assert_allclose(found.mean(dim=0).mean().item(), means, **tolerance)


@pytest.mark.parametrize("path", parity_files("representation", "attention"))
def test_distance_and_information_of_attention(path: Path) -> None:
    arrays = load_arrays(path)
    attention = tensor(arrays["attn"])
    patches, patch_size = attention.shape[-1] - 1, int(arrays["patch_size"])
    side = side_of(patches)
    distances = patch_distances((side, side), patch_size)
    np.testing.assert_allclose(distances.numpy(), arrays["distance_matrix"], rtol=1e-12)
    check_attention(attention[..., 1:, 1:], distances, arrays, "", 0)
    # Head 1 has collapsed: all its queries have the same map.
    assert attention_information(attention[..., 1:, 1:])[:, 1].abs().max() <= 1e-7
    corners = {"identity.": torch.eye(patches), "uniform.": torch.full((patches, patches), 1 / (patches + 1))}
    for prefix, matrix in corners.items():
        check_attention(matrix[None, None], distances, arrays, prefix, 0)
    known = float(arrays["uniform.attention_distance.layer"][0])
    assert uniform_distance((side, side), patch_size) == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize("path", parity_files("representation", "fourier"))
def test_fourier_amplitudes(path: Path) -> None:
    arrays = load_arrays(path)
    for number, tokens in enumerate(numbered(arrays, "tokens")):
        side = side_of(tokens.shape[1])
        found = relative_log_amplitude(log_amplitudes(tokens, (side, side)).mean(dim=0))
        np.testing.assert_allclose(found.numpy(), arrays[f"relative_log_amplitude.{number}"], rtol=0, atol=1e-4)


def load_vit(arrays: Arrays, folder: Path) -> Encoder:
    torch.save(state_under(arrays, "sd/"), folder / "vit.pth")
    heads = arrays["attn.0"].shape[1]
    return import_checkpoint(folder / "vit.pth", image_size=arrays["x"].shape[-1], num_heads=heads).build().eval()


def whole(view: BlockView, name: str) -> Tensor:
    """A view's prefix and patch tokens together."""
    tokens = getattr(view, name)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


@pytest.mark.parametrize("path", parity_files("representation", "vit_analysis"))
def test_a_whole_vit(path: Path, tmp_path: Path) -> None:
    """Every state, attention map, sub-layer input and output, and what is computed of them."""
    arrays = load_arrays(path)
    encoder = load_vit(arrays, tmp_path)
    images = tensor(arrays["x"])
    pixels = tensor(arrays["images_u8"]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close((pixels - mean) / std, images, rtol=0, atol=1e-5)
    grid = (images.shape[-1] // encoder.patch_size,) * 2
    distances = patch_distances(grid, encoder.patch_size)
    exact = {"rtol": 0.0, "atol": 1e-5}
    states = []
    with torch.no_grad():
        views = list(encoder.block_views(images))
        logits = encoder.final_norm(views[-1].tokens.prefix[:, 0]) @ tensor(arrays["sd/head.weight"]).T
    torch.testing.assert_close(logits + tensor(arrays["sd/head.bias"]), tensor(arrays["logits"]), **exact)
    assert len(views) == len(arrays["nmi.layer"]) + 1
    for view in views:
        if view.number:
            layer = view.number - 1
            states.append(whole(view, "attended"))
            torch.testing.assert_close(view.attention, tensor(arrays[f"attn.{layer}"]), **exact)
            torch.testing.assert_close(whole(view, "attention_input"), tensor(arrays[f"attn_in.{layer}"]), **exact)
            torch.testing.assert_close(whole(view, "attention_output"), tensor(arrays[f"attn_out.{layer}"]), **exact)
            # The measures are compared on the recorded maps, so that their tolerance is theirs alone ...
            check_attention(tensor(arrays[f"attn.{layer}"])[..., 1:, 1:], distances, arrays, "", layer)
            # ... and on our own.
            check_attention(view.attention[..., 1:, 1:], distances, arrays, "", layer)
        states.append(whole(view, "tokens"))
    for number, state in enumerate(states):
        torch.testing.assert_close(state, tensor(arrays[f"zs.{number}"]), **exact)
    amplitudes = torch.stack([log_amplitudes(state[:, 1:], grid).mean(dim=0) for state in states])
    found = relative_log_amplitude(amplitudes).numpy()
    np.testing.assert_allclose(found, arrays["fourier.relative_log_amplitude"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[::2, -1], arrays["fourier.high_freq_per_block"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", parity_files("representation", "spectra"))
def test_spectra_alignment_and_components(path: Path) -> None:
    arrays = load_arrays(path)
    source = load_arrays(companion(path, "spectra", "vit_analysis"))
    before, after = numbered(source, "attn_in"), numbered(source, "attn_out")
    for layer in range(len(before)):
        values = {}
        for name, states in (("in", before), ("out", after)):
            tokens = states[layer][:, 1:]
            values[name] = token_singular_values(tokens)
            reference = arrays[f"attn_{name}.{layer}.token_singular_values"]
            assert values[name].shape == reference.shape
            assert (np.abs(values[name].numpy() - reference) <= 1e-6 * reference[:, :1]).all()
            means, reference = tokens.mean(dim=1), arrays[f"attn_{name}.{layer}.image_singular_values"]
            found = image_singular_values(means).numpy()
            np.testing.assert_allclose(found, reference, rtol=0, atol=1e-6 * reference.max())
        change = spectrum_change(values["in"], values["out"], tokens.shape[1])
        reference = arrays[f"{layer}.delta_log_token"]
        assert change.delta.shape == reference.shape
        recorded = [arrays[f"attn_{name}.{layer}.token_singular_values"][:, : len(reference)] for name in values]
        reliable = np.all([np.all(each >= SILENT * each[:, :1], axis=0) for each in recorded], axis=0)
        np.testing.assert_array_equal(change.reliable.numpy(), reliable)
        np.testing.assert_allclose(change.delta.numpy()[reliable], reference[reliable], rtol=0, atol=5e-4)
    states = [state[:, 1:] for state in numbered(source, "zs")]
    alignment = linear_cka([state.flatten(0, 1) for state in states], [state.flatten(0, 1) for state in states])
    np.testing.assert_allclose(alignment.numpy(), arrays["linear_cka.tokens"], rtol=1e-4)
    variances = torch.stack([feature_variance(state).mean() for state in states])
    np.testing.assert_allclose(variances.numpy(), arrays["feature_variance.zs"], rtol=1e-4)
    image = int(arrays["pca.image"])
    cloud = torch.cat([before[-1][image, 1:], after[-1][image, 1:]])
    found = principal_components(cloud, 2)
    np.testing.assert_allclose(found.points.abs().numpy(), arrays["pca.abs_embedding"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.variance.numpy(), arrays["pca.explained_variance"], rtol=1e-4)


@pytest.mark.parametrize("path", parity_files("representation", "reconstruction"))
def test_fidelity_of_reconstructions(path: Path) -> None:
    """One update, updates of two images, and the conventional range 1 in pixel space."""
    arrays = load_arrays(path)
    target = tensor(arrays["x"])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    names = sorted(name.removeprefix("pred.") for name in arrays if name.startswith("pred."))
    assert names
    for name in names:
        prediction = tensor(arrays[f"pred.{name}"])
        for kind, batch in (("batch", len(target)), ("stream2", 2), ("unit_range", len(target))):
            pixel = kind == "unit_range"
            fidelity = Fidelity("pixel" if pixel else "normalized")
            for ours, theirs in zip(prediction.split(batch), target.split(batch), strict=True):
                pair = (ours * std + mean, theirs * std + mean) if pixel else (ours, theirs)
                fidelity.update(*pair)
            found = fidelity.result()
            assert found.psnr == pytest.approx(float(arrays[f"psnr.{kind}.{name}"]), abs=1e-3)
            assert found.ssim == pytest.approx(float(arrays[f"ssim.{kind}.{name}"]), abs=1e-4)
            if not pixel:
                low, high = arrays[f"data_range.{name}"][:2]
                assert found.data_range == pytest.approx(max(0, high) - min(0, low), rel=1e-6)


@pytest.mark.parametrize("path", parity_files("representation", "frequency_noise"))
def test_noise_of_a_band_of_frequencies(path: Path) -> None:
    arrays = load_arrays(path)
    noise = tensor(arrays["delta"])
    assert float(noise.abs().min()) == float(noise.abs().max()) == pytest.approx(float(arrays["eps"]))
    for frequency in arrays["f"].tolist():
        found = band_noise(noise, frequency, float(arrays["s"]))
        np.testing.assert_allclose(found.numpy(), arrays[f"noise.{frequency:.4f}"], rtol=0, atol=1e-5)

"""Geometry of patch tokens and labels of patches against recorded numbers of ViNy's diagnostics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from halfseen.analysis.geometry import TokenGeometry, similarity_maps, train_patch_probe
from halfseen.backbones.weights import import_checkpoint
from halfseen.engine.optim import build_optimizer, parameter_groups
from halfseen.evaluation.intermediate.config import IntermediateConfig, intermediate_settings
from halfseen.evaluation.intermediate.models import PatchwiseStage
from halfseen.ops.patch_labels import class_fractions, majority_labels, patch_histogram, reference_patches
from parity.discovery import load_arrays, parity_files, state_under
from parity.reference_names import ReferenceNames


@pytest.mark.parametrize("path", parity_files("geometry", "feature_geometry"))
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_variances_similarities_and_maps(path: Path, batch_size: int) -> None:
    arrays = load_arrays(path)
    sets = sorted({name.split("/")[0] for name in arrays})
    assert sets
    for name in sets:
        features = torch.from_numpy(arrays[f"{name}/features"])
        side = round(features.shape[1] ** 0.5)
        geometry = TokenGeometry((side, side))
        for batch in features.split(batch_size):
            geometry.update(batch)
        found = geometry.result()
        assert found.num_images == len(features)
        ours = [found.within, found.across, found.total]
        np.testing.assert_allclose(ours, arrays[f"{name}/variance_within_across_total"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.distances.numpy(), arrays[f"{name}/cos_distance"])
        np.testing.assert_allclose(found.cosines.numpy(), arrays[f"{name}/cos_mean"], rtol=0, atol=1e-5)
        maps = similarity_maps(features[0], torch.from_numpy(arrays[f"{name}/sim_refs"]), (side, side))
        np.testing.assert_allclose(maps.numpy(), arrays[f"{name}/sim_maps"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("geometry", "patch_labels"))
def test_histograms_labels_fractions_and_references(path: Path) -> None:
    arrays = load_arrays(path)
    histogram = patch_histogram(
        torch.from_numpy(arrays["in/seg"]), int(arrays["meta/patch_size"]), arrays["out/histogram"].shape[-1]
    )
    np.testing.assert_array_equal(histogram.numpy(), arrays["out/histogram"])
    np.testing.assert_array_equal(majority_labels(histogram).numpy(), arrays["out/labels"])
    fractions = class_fractions(histogram)
    np.testing.assert_allclose(fractions.numpy(), arrays["out/fractions"], rtol=0, atol=1e-6)
    found = reference_patches(fractions)
    np.testing.assert_array_equal(found.numpy(), arrays["out/ref_bg_corner_fg_interior_boundary"])


@pytest.mark.parametrize("path", parity_files("geometry", "probe_and_spatial"))
def test_patch_probe_and_spatial_stage(path: Path, tmp_path: Path) -> None:
    """The frozen probe, then the stage that trains encoder and head: losses, accuracies, tokens, parameters."""
    arrays = load_arrays(path)
    state = state_under(arrays, "sd/")
    torch.save(state, tmp_path / "encoder.pth")
    found = import_checkpoint(tmp_path / "encoder.pth", num_heads=int(arrays["meta/heads"]))
    encoder = found.build().eval()
    assert encoder.trunk.blocks[0].attn.head_dim == int(arrays["meta/dim_head"])
    assert (encoder.image_size, encoder.patch_size) == (int(arrays["meta/image_size"]), int(arrays["meta/patch_size"]))
    sizes = arrays["meta/batches"].tolist()
    images = torch.from_numpy(arrays["in/images"]).split(sizes)
    masks = torch.from_numpy(arrays["in/segs"])[:, 0].split(sizes)

    probe = head_of(arrays, "probe")
    stage = PatchwiseStage(encoder, probe.out_features, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seed=0)
    labels = [stage.patch_labels(each) for each in masks]
    printed = arrays["out/epoch_loss_acc_printed"]
    with torch.no_grad():
        batches = [(encoder(each).patches, wanted) for each, wanted in zip(images, labels, strict=True)]
    trace = train_patch_probe(probe, [batches] * len(printed), lr=float(arrays["meta/lr"]))
    np.testing.assert_allclose(trace.losses, printed[:, 0], rtol=0, atol=2e-4)
    np.testing.assert_allclose(trace.accuracies, printed[:, 1], rtol=0, atol=2e-4)
    assert trace.train_accuracy == pytest.approx(float(arrays["out/final_acc"]), abs=2e-4)

    stage.head.load_state_dict(head_of(arrays, "spatial_head").state_dict())
    settings = IntermediateConfig.model_validate(
        {**intermediate_settings("viny-spatial"), "lr": float(arrays["meta/spatial_lr"])}
    )
    optimizer = build_optimizer(
        parameter_groups(stage.named_parameters(), stage.parameter_group, settings.training(2, 6).optimizer),
        settings.training(2, 6).optimizer,
        torch.device("cpu"),
    )
    for group in optimizer.param_groups:
        group["lr"] = settings.lr
    recorded = np.atleast_1d(arrays["out/spatial_epoch_loss_printed"])
    stage.train()
    for wanted_loss in recorded:
        losses = []
        for each, wanted in zip(images, labels, strict=True):
            loss, _ = stage.loss(each, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert np.mean(losses) == pytest.approx(float(wanted_loss), abs=2e-4)
    stage.eval()
    with torch.no_grad():
        tokens = torch.cat([encoder(each).patches for each in images])
    np.testing.assert_allclose(tokens.numpy(), arrays["out/spatial_tokens_after"], rtol=0, atol=5e-3)
    names = ReferenceNames(found, state)
    updated = {f"encoder.{name}": parameter for name, parameter in encoder.named_parameters()}
    after = {name.removeprefix("out/spatial_after/"): a for name, a in arrays.items() if "/spatial_after/" in name}
    assert after
    for name, reference in after.items():
        ours = names.value(name, updated).detach().numpy()
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-3, err_msg=name)


def head_of(arrays: dict[str, np.ndarray], name: str) -> nn.Linear:
    """A recorded linear layer."""
    weight = torch.from_numpy(arrays[f"in/{name}_weight"])
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": torch.from_numpy(arrays[f"in/{name}_bias"])})
    return head

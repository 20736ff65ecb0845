"""ViNy's segmentation model against recorded scores, losses, maps and one update of the original."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.backbones.weights import import_checkpoint
from halfseen.engine.optim import build_optimizer, parameter_groups
from halfseen.evaluation.segmentation.config import SegmentationConfig, segmentation_settings
from halfseen.evaluation.segmentation.models import import_segmentation_model
from halfseen.ops.segmentation import class_map, pixel_labels, pixel_scores, segmentation_loss
from parity.discovery import load_arrays, parity_files, state_under
from parity.reference_names import ReferenceNames

TIED_PIXELS = 5
"""At most a handful of pixels may tie."""


@pytest.mark.parametrize("path", parity_files("simmim", "vit_seed_finetune"))
def test_scores_losses_maps_and_one_update(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images, target = torch.from_numpy(arrays["in/img"]), torch.from_numpy(arrays["in/target"])
    torch.save(state_under(arrays, "sd/"), tmp_path / "finetuned.pth")
    heads = int(arrays["meta/heads"])
    model = import_segmentation_model(tmp_path / "finetuned.pth", num_heads=heads)
    encoder, head, num_classes = model.encoder, model.head, model.num_classes
    assert encoder.image_size == int(arrays["meta/image_size"])
    assert encoder.trunk.blocks[0].attn.head_dim == int(arrays["meta/dim_head"])
    patch_size = int(arrays["meta/patch_size"])
    side = encoder.image_size // patch_size
    labels = pixel_labels(target, patch_size)
    np.testing.assert_array_equal(labels.numpy(), arrays["out/target_patches"])

    def loss_now() -> Tensor:
        return segmentation_loss(model.scores(images), labels)

    with torch.no_grad():
        outputs = head(encoder(images).patches)
        scores = model.scores(images)
    np.testing.assert_allclose(scores.numpy(), arrays["out/pred_patches_logscore"], rtol=0, atol=2e-5)
    assert_same_map(class_map(scores, (side, side)), arrays["out/pred_map"])
    plain = pixel_scores(outputs, num_classes, "plain")
    assert_same_map(class_map(plain, (side, side)), arrays["alt/pred_map_plain"])
    assert float(segmentation_loss(plain, labels)) == pytest.approx(float(arrays["alt/loss_plain_ce"]), abs=1e-5)

    loss = loss_now()
    assert float(loss.detach()) == pytest.approx(float(arrays["out/loss"]), abs=1e-5)
    loss.backward()
    gradient = arrays["grad/mlp.bias"]
    np.testing.assert_allclose(head.bias.grad.numpy(), gradient, rtol=0, atol=min(1e-5, 1e-4 * np.abs(gradient).max()))

    settings = SegmentationConfig.model_validate(segmentation_settings("viny-segmentation"))
    assert (settings.lr, settings.weight_decay) == (2e-3, 1e-4)
    optimizer = settings.training(1, len(images)).optimizer
    groups = parameter_groups(model.named_parameters(), model.parameter_group, optimizer)
    assert [group["weight_decay"] for group in groups] == [1e-4]
    update = build_optimizer(groups, optimizer, torch.device("cpu"))
    update.param_groups[0]["lr"] = settings.lr
    update.step()
    found = import_checkpoint(tmp_path / "finetuned.pth", num_heads=heads)
    names = ReferenceNames(found, {k: v for k, v in state_under(arrays, "sd/").items() if k.startswith("encoder.")})
    updated = {f"encoder.{name}": parameter for name, parameter in encoder.named_parameters()}
    recorded = {name.removeprefix("after1step/"): a for name, a in arrays.items() if name.startswith("after1step/")}
    assert recorded
    for name, reference in recorded.items():
        is_head = name.startswith("mlp.")
        value = head.get_parameter(name.removeprefix("mlp.")) if is_head else names.value(name, updated)
        ours = value.detach().numpy()[: len(reference)]  # only the first rows of the head are recorded
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-4, err_msg=name)
    with torch.no_grad():
        assert float(loss_now()) == pytest.approx(float(arrays["out/loss_after1step"]), abs=1e-3)


def assert_same_map(ours: Tensor, reference: np.ndarray) -> None:
    assert ours.shape == reference.shape
    assert int((ours.numpy() != reference).sum()) <= TIED_PIXELS

"""LocalMIM trained with progressive freezing against recorded runs of the public code, micro-batch by micro-batch."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.engine.config import FreezeConfig, LearningRateConfig, OptimizerConfig, TrainConfig
from halfseen.engine.freezing import Freezer
from halfseen.engine.optim import LearningRate, build_optimizer, gradient_norm, parameter_groups
from halfseen.masking.random import random_visible_ids
from halfseen.methods.localmim import LocalMIM, LocalMIMConfig
from parity.discovery import load_arrays, parity_files
from parity.localmim_images import MEAN, STD, jittered, normalised

PATCH = 16


def our_name(reference: str, branches: int) -> str | None:
    """The name of a reference tensor in `LocalMIM`; None for the HOG filters, which aren't weights here."""
    first, _, rest = reference.partition(".")
    if first == "hog_enc":
        return None
    if first == "decoder":
        return reference
    if first == "norm":
        number, _, what = rest.partition(".")
        return f"encoder.trunk.norm.{what}" if int(number) == branches - 1 else reference
    return f"encoder.trunk.{reference}"


def without_keys(name: str, tensor: Tensor) -> Tensor:
    """The middle third of a qkv bias has no gradient but rounding noise, of which Adam makes whole steps."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    width = len(tensor) // 3
    return torch.cat([tensor[:width], tensor[2 * width :]])


@pytest.mark.parametrize("path", parity_files("freezeout", "train_trace_"))
def test_training_with_freezing(path) -> None:
    record = load_arrays(path)
    weights = load_file(path.with_suffix(".safetensors"))
    t0, epochs, warmup, per_epoch, accumulation, peak, minimum, depth, dim, heads, width, decoder_heads, batch = record[
        "cfg"
    ].tolist()
    accumulation, per_epoch, batch = int(accumulation), int(per_epoch), int(batch)
    size = PATCH * round(record["noise"].shape[-1] ** 0.5)
    mode = str(record["mode"])
    model = ModelConfig(
        name="vit_tiny", patch_size=PATCH, embed_dim=int(dim), depth=int(depth), num_heads=int(heads), norm_eps=1e-6
    )
    method = LocalMIM(
        LocalMIMConfig(
            decoder_embed_dim=int(width), decoder_depth=1, decoder_num_heads=int(decoder_heads),
            taps=(2, 4, int(depth) - 2, int(depth)),
        ),
        build_encoder(model, size), size, MEAN, STD,
    )  # fmt: skip
    branches = len(method.taps)
    named = {our_name(name, branches): tensor for name, tensor in weights.items()}
    named.pop(None, None)
    missing = method.load_state_dict(named, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys

    steps_per_epoch = per_epoch // accumulation
    train = TrainConfig(
        epochs=epochs,
        batch_size=batch * accumulation,
        micro_batch_size=batch,
        optimizer=OptimizerConfig(betas=(0.9, 0.95), weight_decay=0.05),
        lr=LearningRateConfig(
            base=peak, reference_batch=None, schedule="mae_cosine", warmup_epochs=warmup, min=minimum
        ),
        freeze=FreezeConfig(
            t0=t0, scale=str(record["how_scale"]), layerwise_lr=mode != "shared", freeze_tokens=False,
            **({} if mode == "shared" else {"scale_lr": mode == "scaled"}),
        ),
    )  # fmt: skip
    rate = LearningRate.of_run(train, train.split(1), steps_per_epoch, per_epoch * batch)
    freezer = Freezer(train.freeze, method, train, rate, steps_per_epoch)
    optimizer = build_optimizer(
        parameter_groups(method.named_parameters(), freezer.group_of, train.optimizer),
        train.optimizer,
        torch.device("cpu"),
    )
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    picture = jittered(record["image_u8"][None])[0]
    token = method.encoder.trunk.cls_token
    bits: dict[str, Tensor] = {}

    def crops(micro_batch: int) -> Tensor:
        places = zip(record["crop_y"][micro_batch], record["crop_x"][micro_batch], strict=True)
        return normalised(np.stack([picture[y : y + size, x : x + size] for y, x in places]))

    losses, norms, token_norms, left = [], [], [], []
    method.train()
    for step in range(len(record["loss"]) // accumulation):
        freezer.advance(step, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = freezer.rate(step, group)
            group["weight_decay"] = train.optimizer.weight_decay if group["decay"] else 0.0
        for number in range(accumulation):
            micro_batch = step * accumulation + number
            freezer.enter(step, number)
            split = random_visible_ids(
                torch.from_numpy(record["noise"][micro_batch]), method.num_patches - method.num_hidden
            )
            loss = method.compare(crops(micro_batch), split).loss
            (loss / accumulation).backward()
            losses.append(float(loss.detach()))
            left.append(len(method.live))
            steps_now = number == accumulation - 1
            norms.append(float(gradient_norm(method.parameters())))
            token_norms.append(float(token.grad.norm()) if steps_now else 0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in method.named_parameters():
            index = freezer.indices.get(name)
            if index is not None and index < freezer.frozen:
                assert torch.equal(bits.setdefault(name, parameter.detach().clone()), parameter), name

    np.testing.assert_array_equal(left, record["n_branches"])
    np.testing.assert_allclose(losses, record["loss"], rtol=1e-4)
    recorded = record["grad_norm"] > 0
    assert recorded.any()
    np.testing.assert_allclose(np.array(norms)[recorded], record["grad_norm"][recorded], rtol=1e-3)
    np.testing.assert_allclose(token_norms, record["cls_token_grad_norm"], rtol=1e-3)
    assert token_norms[-1] > 0

    after = method.state_dict()
    for name, norm, moved in zip(
        record["param_names"], record["param_final_norm"], record["param_delta_norm"], strict=True
    ):
        ours = our_name(str(name), branches)
        if ours is None:
            continue
        value, change = after[ours], after[ours] - before[ours]
        np.testing.assert_allclose(float(value.norm()), norm, rtol=1e-3, err_msg=str(name))
        if not str(name).endswith("attn.qkv.bias"):  # A third of it is noise.
            np.testing.assert_allclose(float(change.norm()), moved, rtol=1e-3, atol=1e-9, err_msg=str(name))
    compared = 0
    gone = method.gone
    for key, value in record.items():
        if not key.startswith("final/"):
            continue
        name = key.removeprefix("final/")
        ours = our_name(name, branches)
        if ours is None:
            continue
        expected = without_keys(name, torch.from_numpy(value))
        difference = without_keys(name, after[ours]) - expected
        assert float(difference.norm()) <= 1e-3 * float(expected.norm()), name
        compared += 1
    assert compared
    assert {renumbered(name, gone) for name in weights} - {None} == set(record["final_state_keys"].tolist())


def renumbered(name: str, gone: int) -> str | None:
    """What the public code calls a tensor after `gone` branches were deleted; None if it went with one."""
    first, _, rest = name.partition(".")
    if first not in ("norm", "decoder", "hog_enc"):
        return name
    number, _, what = rest.partition(".")
    return None if int(number) < gone else f"{first}.{int(number) - gone}.{what}"

"""Attention masks in MAE and SimMIM: how many are hidden stays, which ones follows the attention."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import export_encoder
from halfseen.errors import ConfigError
from halfseen.methods.guide import AttentionGuide, Guide
from halfseen.methods.mae import MAE, MAEConfig
from halfseen.methods.simmim import SimMIM, SimMIMConfig
from halfseen.types import Batch, Progress

MEAN = STD = (0.5, 0.5, 0.5)
PROGRESS = Progress(step=3, total_steps=10, steps_per_epoch=5, seed=1, row_start=0, global_batch_size=6)


def vit(drop_path: float = 0.0):
    torch.manual_seed(0)
    return build_encoder(
        ModelConfig(name="vit_tiny", patch_size=8, embed_dim=32, depth=3, num_heads=2, drop_path=drop_path), 32
    )


def images() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def class_attention(encoder, pictures: torch.Tensor, layer: int) -> torch.Tensor:
    return encoder.attention(pictures, layer)[:, :, 0, 1:].mean(1)


@pytest.mark.parametrize("layer", [None, 1])
def test_high_hides_what_the_class_token_attends_to_and_low_the_rest(layer: int | None) -> None:
    encoder, pictures, noise = vit(), images(), torch.rand(6, 16)
    wanted = class_attention(encoder, pictures, layer or 3)
    high = Guide(AttentionGuide(select="high", layer=layer), encoder, MEAN, STD).noise(pictures, noise, PROGRESS)
    low = Guide(AttentionGuide(select="low", layer=layer), encoder, MEAN, STD).noise(pictures, noise, PROGRESS)
    torch.testing.assert_close(high, wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(low, -high)


def test_hints_leave_some_of_the_most_attended_visible_and_a_share_stays_random() -> None:
    encoder, pictures, noise = vit(), images(), torch.rand(6, 16)
    wanted = class_attention(encoder, pictures, 3)
    guide = Guide(AttentionGuide(select="hint", show_max=0.25, show_ratio=0.5), encoder, MEAN, STD)
    found = guide.noise(pictures, noise, PROGRESS)
    shown = found.isneginf()
    assert shown.sum(1).tolist() == [2] * 6
    top = wanted.topk(4, dim=1).indices
    assert bool(shown.gather(1, top).sum(1).eq(2).all())

    half = Guide(AttentionGuide(guided_share=0.5), encoder, MEAN, STD).noise(pictures, noise, PROGRESS)
    random_rows = (half == noise).all(1)
    assert 0 < int(random_rows.sum()) < 6
    torch.testing.assert_close(half[~random_rows], wanted[~random_rows], rtol=1e-4, atol=1e-6)


def conv_vit():
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig(name="vitc_4gf", patch_size=8, embed_dim=32, depth=2, num_heads=2), 32)
    for part in encoder.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return encoder


def statistics(encoder) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in encoder.named_buffers() if "running" in name]


def test_a_guide_stays_in_evaluation_mode() -> None:
    encoder, pictures, noise = conv_vit(), images(), torch.rand(6, 16)
    wanted = class_attention(encoder.eval(), pictures, 2)
    guide = Guide(AttentionGuide(), encoder, MEAN, STD)
    before = statistics(guide.encoder)
    for mode in (True, False):
        guide.train(mode)
        assert guide.training == mode and not any(part.training for part in guide.encoder.modules())
        torch.testing.assert_close(guide.noise(pictures, noise, PROGRESS), wanted, rtol=1e-4, atol=1e-6)
    assert before and all(map(torch.equal, statistics(guide.encoder), before))


def test_a_moving_average_takes_over_the_running_statistics(tmp_path: Path) -> None:
    encoder, fixed = conv_vit(), conv_vit()
    export_encoder(fixed, tmp_path, mean=MEAN, std=STD)
    moving = Guide(AttentionGuide(momentum=0.9), encoder, MEAN, STD)
    given = Guide(AttentionGuide(encoder=str(tmp_path)), encoder, MEAN, STD)
    encoder.train()(images())
    for guide in (moving, given):
        guide.follow(encoder)
    assert all(map(torch.equal, statistics(moving.encoder), statistics(encoder)))
    assert all(map(torch.equal, statistics(given.encoder), statistics(fixed)))
    assert not torch.equal(statistics(encoder)[0], statistics(fixed)[0])


def test_a_given_encoder_sees_images_in_its_own_normalisation(tmp_path: Path) -> None:
    own_mean, own_std = (0.1, 0.2, 0.3), (0.3, 0.25, 0.2)
    given, pictures, noise = vit(), images(), torch.rand(6, 16)
    export_encoder(given, tmp_path, mean=own_mean, std=own_std)
    guide = Guide(AttentionGuide(encoder=str(tmp_path)), conv_vit(), MEAN, STD)
    channels = (3, 1, 1)
    pixels = pictures * torch.tensor(STD).view(channels) + torch.tensor(MEAN).view(channels)
    seen = (pixels - torch.tensor(own_mean).view(channels)) / torch.tensor(own_std).view(channels)
    found = guide.noise(pictures, noise, PROGRESS)
    torch.testing.assert_close(found, class_attention(given, seen, 3), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, class_attention(given, pictures, 3), rtol=1e-2)
    assert (guide.mean, guide.std) == (own_mean, own_std)


def batch() -> Batch:
    views = (torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)),)
    return Batch(views, torch.arange(6), torch.zeros(6, dtype=torch.int64))


def test_mae_drops_the_most_attended_patches_of_its_average() -> None:
    method = MAE(
        MAEConfig(mask_ratio=0.5, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
                  attention_mask=AttentionGuide(momentum=0.5)),
        vit(drop_path=0.5), 32, MEAN, STD,
    )  # fmt: skip
    seen = {}
    method.encoder.register_forward_hook(lambda module, given, kwargs, out: seen.update(kwargs), with_kwargs=True)
    method(batch(), PROGRESS).loss.backward()
    assert seen["visible_ids"].shape == (6, 8)
    assert all(parameter.grad is None for parameter in method.guide.parameters())
    pictures = (batch().views[0].float() / 255 - 0.5) / 0.5
    attended = class_attention(method.guide.encoder.eval(), pictures, 3)
    visible = attended.gather(1, seen["visible_ids"]).amax(1)
    assert bool((visible <= attended.median(1).values + 1e-6).all())

    before = method.guide.encoder.trunk.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        method.encoder.trunk.blocks[0].mlp.fc1.weight.add_(1.0)
    method.after_step(PROGRESS)
    torch.testing.assert_close(method.guide.encoder.trunk.blocks[0].mlp.fc1.weight, before + 0.5)


def test_simmim_hides_the_most_attended_cells() -> None:
    method = SimMIM(
        SimMIMConfig(mask_cell_size=16, mask_ratio=0.5, attention_mask=AttentionGuide()), vit(), 32, MEAN, STD
    )
    seen = {}
    method.encoder.register_forward_hook(lambda module, given, kwargs, out: seen.update(kwargs), with_kwargs=True)
    method(batch(), PROGRESS)
    mask = seen["mask"].reshape(6, 2, 2, 2, 2).transpose(2, 3).reshape(6, 4, 4)
    assert bool((mask.all(2) | ~mask.any(2)).all()) and mask.any(2).sum(1).tolist() == [2] * 6
    pictures = (batch().views[0].float() / 255 - 0.5) / 0.5
    attended = class_attention(method.guide.encoder, pictures, 3)
    cells = attended.reshape(6, 2, 2, 2, 2).transpose(2, 3).reshape(6, 4, 4).mean(2)
    assert torch.equal(mask.any(2), cells >= cells.topk(2, dim=1).values[:, -1:])


def test_impossible_guides_are_sentences() -> None:
    for values, words in (({"power": 2.0}, "power"), ({"show_max": 0.3}, "show_max"),
                          ({"encoder": "runs/first", "momentum": 0.9}, "momentum")):  # fmt: skip
        with pytest.raises(ValidationError, match=words):
            AttentionGuide(**values)
    with pytest.raises(ConfigError, match="shows none"):
        Guide(AttentionGuide(select="hint"), vit(), MEAN, STD)
    with pytest.raises(ConfigError, match=r"layer: got 7, but the encoder has blocks 1 to 3"):
        Guide(AttentionGuide(layer=7), vit(), MEAN, STD)
    with pytest.raises(ConfigError, match="'timm:vit_tiny_patch16_224' names a network without trained weights"):
        Guide(AttentionGuide(encoder="timm:vit_tiny_patch16_224"), vit(), MEAN, STD)
    swin = build_encoder(ModelConfig(name="swin_tiny", embed_dim=16, depths=(1, 1), num_heads=(2, 2)), 32)
    with pytest.raises(ConfigError, match="class token"):
        SimMIM(SimMIMConfig(mask_cell_size=8, attention_mask=AttentionGuide()), swin, 32, MEAN, STD)

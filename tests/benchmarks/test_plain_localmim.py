"""The plain LocalMIM does the work that ours does: same loss and gradients."""

import torch
from benchmarks.plain_localmim import PlainLocalMIM, random_images

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.masking.random import random_visible_ids
from halfseen.methods.localmim import LocalMIM, LocalMIMConfig

SIDE, PATCH = 64, 16


def plain_name(name: str) -> str:
    """Our parameter's name in the plain model."""
    return (
        name.removeprefix("encoder.trunk.").replace("norm.", "norm.3.", 1)
        if name.startswith("encoder.trunk.norm.")
        else name.removeprefix("encoder.trunk.")
    )


def test_same_loss_and_gradients() -> None:
    torch.manual_seed(3)
    encoder = build_encoder(ModelConfig(name="vit_tiny", embed_dim=24, depth=7, num_heads=2, patch_size=PATCH), SIDE)
    config = LocalMIMConfig(decoder_embed_dim=16, decoder_num_heads=4)
    ours = LocalMIM(config, encoder, SIDE, IMAGENET_MEAN, IMAGENET_STD)
    plain = PlainLocalMIM(SIDE, PATCH, dim=24, depth=7, heads=2, width=16, decoder_heads=4)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    weights = {plain_name(name): value for name, value in ours.state_dict().items()}
    plain.load_state_dict(weights)
    images, noise = random_images(2, SIDE), torch.rand(2, 16)

    output = ours.compare(images, random_visible_ids(noise, 4))
    output.loss.backward()
    loss, terms = plain(images, noise)
    loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-4, atol=0)
    assert len(terms) == 4
    own = {plain_name(name): parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in plain.named_parameters():
        if parameter.grad is None:
            assert own[name] is None
            continue
        allowed = 2e-3 * float(parameter.grad.abs().max()) + 1e-6
        assert float((own[name] - parameter.grad).abs().max()) < allowed, name

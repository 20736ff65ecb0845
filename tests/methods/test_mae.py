import pytest
import torch

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.errors import ConfigError
from halfseen.masking.random import random_visible_ids
from halfseen.methods.mae import MAE, MAEConfig
from halfseen.ops.patches import patchify
from halfseen.types import ViewSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = ModelConfig(name="vit_base", patch_size=8, embed_dim=16, depth=2, num_heads=2)
SMALL_DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def build(**settings: object) -> MAE:
    return MAE(MAEConfig(**SMALL_DECODER, **settings), build_encoder(TINY, 32), 32, MEAN, STD)


@pytest.mark.parametrize(
    ("name", "total", "encoder_share", "visible"),
    [
        ("vit_base", 111_907_840, 85_798_656, 49),
        ("vit_large", 329_541_888, 303_301_632, 49),
        ("vit_huge", 657_074_508, 630_764_800, 64),
    ],
)
def test_published_sizes(name: str, total: int, encoder_share: int, visible: int) -> None:
    with torch.device("meta"):
        method = MAE(MAEConfig(), build_encoder(ModelConfig(name=name), 224, device="meta"), 224, MEAN, STD)
    assert sum(parameter.numel() for parameter in method.parameters()) == total
    assert sum(parameter.numel() for parameter in method.encoder.parameters()) == encoder_share
    assert method.num_visible == visible
    view = ViewSpec(224, 1, (0.2, 1.0), (3 / 4, 4 / 3), "bicubic", antialias=True, hflip=0.5, vflip=0.0)
    assert method.view_plan().views == (view,)


def test_positions_are_fixed_and_only_vectors_escape_decay() -> None:
    method = build()
    frozen = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.trunk.pos_embed", "decoder.decoder_pos_embed"}
    for name, parameter in method.named_parameters():
        assert method.parameter_group(name, parameter).decay == (parameter.ndim > 1), name
    assert method.parameter_group("encoder.trunk.cls_token", method.encoder.trunk.cls_token).decay


def test_normalised_predictions_are_shown_with_the_true_statistics() -> None:
    method = build(norm_pix_loss=True).eval()
    with torch.no_grad():
        method.decoder.decoder_pred.weight.zero_()
        method.decoder.decoder_pred.bias.zero_()
    images = torch.randn(2, 3, 32, 32)
    shown = method.reconstruct(images, seed=0)
    # A standardised prediction of zero is the true mean of each patch.
    means = patchify(images, 8).mean(-1, keepdim=True).expand(-1, -1, 192)
    torch.testing.assert_close(patchify(shown.prediction, 8), means)
    assert "true" in shown.note
    assert "true" not in build().reconstruct(images, seed=0).note


def test_the_order_of_visible_patches_does_not_matter() -> None:
    method = build().eval()
    images = torch.randn(2, 3, 32, 32)
    split = random_visible_ids(torch.rand(2, 16), 4)
    sorted_split = split._replace(
        visible_ids=split.visible_ids.sort().values, hidden_ids=split.hidden_ids.sort().values
    )
    torch.testing.assert_close(method.compare(images, sorted_split, {}).loss, method.compare(images, split, {}).loss)


def test_what_mae_cannot_work_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="MAE drops patches and needs a plain ViT"):
        swin = ModelConfig(name="swin_base", embed_dim=8, depths=(1, 1), num_heads=(1, 2))
        MAE(MAEConfig(**SMALL_DECODER), build_encoder(swin, 32), 32, MEAN, STD)
    with pytest.raises(ConfigError, match=r"model\.absolute_positions: got false"):
        without = TINY.model_copy(update={"absolute_positions": False})
        MAE(MAEConfig(**SMALL_DECODER), build_encoder(without, 32), 32, MEAN, STD)
    with pytest.raises(ConfigError, match=r"decoder_num_heads: 3 heads don't divide .* 16"):
        MAE(MAEConfig(**{**SMALL_DECODER, "decoder_num_heads": 3}), build_encoder(TINY, 32), 32, MEAN, STD)
    with pytest.raises(ConfigError, match=r"mask_ratio: 0\.95 of 16 patches leaves 0 visible"):
        build(mask_ratio=0.95)
    with pytest.raises(ConfigError, match=r"loss_weight\.weight_patch_size: 5 px"):
        build(loss_weight={"kind": "keypoints", "weight_patch_size": 5})

import pytest
import torch

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.errors import ConfigError
from halfseen.methods.simmim import SimMIM, SimMIMConfig
from halfseen.types import ViewSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY_VIT = ModelConfig(name="simmim_vit_base", embed_dim=16, depth=2, num_heads=2)
TINY_SWIN = ModelConfig(name="swin_base", embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2))


def build(config: SimMIMConfig, model: ModelConfig = TINY_VIT, image_size: int = 64) -> SimMIM:
    return SimMIM(config, build_encoder(model, image_size), image_size, MEAN, STD)


@pytest.mark.parametrize(
    ("model", "image_size", "parameters", "hidden_patches"),
    [
        (ModelConfig(name="simmim_vit_base"), 224, 86_256_720, 30 * 4),
        (ModelConfig(name="swin_base", window_size=6), 192, 89_874_104, 22 * 64),
    ],
)
def test_the_defaults_are_the_official_ones(
    model: ModelConfig, image_size: int, parameters: int, hidden_patches: int
) -> None:
    with torch.device("meta"):
        method = SimMIM(SimMIMConfig(), build_encoder(model, image_size, device="meta"), image_size, MEAN, STD)
    assert sum(parameter.numel() for parameter in method.parameters()) == parameters
    assert method.cells.num_hidden_patches == hidden_patches
    view = ViewSpec(image_size, 1, (0.67, 1.0), (3 / 4, 4 / 3), "bilinear", antialias=True, hflip=0.5, vflip=0.0)
    assert method.view_plan().views == (view,)
    assert method.view_plan().extras is None


def test_viny_hides_half_of_its_tokens_and_divides_twice() -> None:
    config = SimMIMConfig(
        mask_ratio=0.5, mask_cell_size=None, mask_rounding="floor", decoder="linear", divide_twice=True
    )
    with torch.device("meta"):
        encoder = build_encoder(ModelConfig(name="viny_4m"), 128, device="meta")
        method = SimMIM(config, encoder, 128, MEAN, STD)
    assert sum(parameter.numel() for parameter in method.parameters()) == 4_942_080
    assert sum(parameter.numel() for parameter in method.encoder.parameters()) == 4_842_880
    assert (method.cells.num_cells, method.cells.num_hidden) == (64, 32)


def test_the_second_division_only_rescales_the_loss() -> None:
    images = torch.randn(2, 3, 64, 64)
    once = build(SimMIMConfig(mask_cell_size=None))
    twice = build(SimMIMConfig(mask_cell_size=None, divide_twice=True))
    hidden = once.cells.hide(torch.rand(2, 16))
    plain, divided = once.compare(images, hidden, {}), twice.compare(images, hidden, {})
    torch.testing.assert_close(divided.loss * once.cells.num_hidden, plain.loss)
    torch.testing.assert_close(divided.metrics["l1_mean"], plain.loss.detach())


@pytest.mark.parametrize("model", [TINY_VIT, TINY_SWIN])
def test_decoding_hidden_tokens_only_changes_nothing(model: ModelConfig) -> None:
    """Cells that coincide with tokens against the same mask drawn with smaller cells, which decodes every token."""
    images = torch.randn(2, 3, 64, 64)
    coarse = build(SimMIMConfig(mask_cell_size=16), model)
    fine = build(SimMIMConfig(mask_cell_size=coarse.encoder.patch_size), model)
    fine.load_state_dict(coarse.state_dict())
    hidden = coarse.cells.hide(torch.rand(2, 16))
    patches = coarse.cells.patch_mask(hidden)
    ids = patches.int().argsort(dim=1, descending=True, stable=True)[:, : int(patches[0].sum())]
    assert torch.equal(fine.cells.patch_mask(ids), patches)
    # A finer grid rounds its own ratio; the denominator follows the number of cells that it hides.
    scale = fine.cells.num_hidden_patches / coarse.cells.num_hidden_patches
    torch.testing.assert_close(fine.compare(images, ids, {}).loss * scale, coarse.compare(images, hidden, {}).loss)


def test_what_is_not_decayed() -> None:
    def kept(method: SimMIM) -> set[str]:
        return {
            name for name, p in method.named_parameters() if p.ndim > 1 and not method.parameter_group(name, p).decay
        }

    assert kept(build(SimMIMConfig(mask_cell_size=None))) == {"encoder.trunk.cls_token"}
    assert kept(build(SimMIMConfig(mask_cell_size=16), TINY_SWIN)) == {"mask_token"}
    mended = kept(build(SimMIMConfig(mask_cell_size=16, decay_exclude_position_bias=True), TINY_SWIN))
    assert len(mended) == 4
    assert all(name == "mask_token" or name.endswith("relative_position_bias_table") for name in mended)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mask_cell_size: 32 px .* 32 px .*Cells that fit: 16"):
        build(SimMIMConfig(), image_size=32)
    with pytest.raises(ConfigError, match=r"mask_cell_size: 24 px cells must divide"):
        build(SimMIMConfig(mask_cell_size=24))
    with pytest.raises(ConfigError, match=r"loss_weight\.weight_patch_size: 24 px"):
        build(SimMIMConfig(loss_weight={"kind": "keypoints", "weight_patch_size": 24}))
    encoder = build_encoder(TINY_SWIN, 64)
    with pytest.raises(ConfigError, match=r"data\.image_size: 72 px is no multiple of 16.*Choose 64"):
        SimMIM(SimMIMConfig(), encoder, 72, MEAN, STD)


def test_a_setting_about_bias_tables_needs_an_encoder_with_some() -> None:
    with pytest.raises(ConfigError, match="decay_exclude_position_bias: got true, but this model has no"):
        build(
            SimMIMConfig(mask_cell_size=16, decay_exclude_position_bias=True),
            ModelConfig(name="vit_tiny", embed_dim=16, depth=1, num_heads=2),
        )

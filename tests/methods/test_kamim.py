import pytest
import torch
from pydantic import ValidationError

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.errors import ConfigError
from halfseen.methods.kamim import KAMIM, KAMIMConfig
from halfseen.methods.simmim import SimMIM, SimMIMConfig
from halfseen.targets.keypoints import DENSITY_KEY, KeypointDensity
from halfseen.types import ViewSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = ModelConfig(name="vit_base", embed_dim=16, depth=2, num_heads=2)


@pytest.mark.parametrize(
    ("name", "backbone", "total"),
    [
        ("vit_tiny", 5_514_624, 5_662_848),
        ("vit_small", 21_646_080, 21_941_760),
        ("vit_base", 85_759_488, 86_350_080),
        ("swin_tiny", 27_512_826, 29_875_194),
        ("swin_base", 86_725_304, 89_874_104),
    ],
)
def test_published_sizes(name: str, backbone: int, total: int) -> None:
    with torch.device("meta"):
        method = KAMIM(KAMIMConfig(), build_encoder(ModelConfig(name=name), 192, device="meta"), 192, MEAN, STD)
    assert sum(parameter.numel() for parameter in method.parameters()) == total
    inside = sum(parameter.numel() for parameter in method.encoder.parameters())
    assert inside + method.mask_token.numel() == backbone
    plan = method.view_plan()
    view = ViewSpec(192, 1, (0.67, 1.0), (3 / 4, 4 / 3), "bilinear", antialias=False, hflip=0.5, vflip=0.5)
    assert plan.views == (view,)
    assert plan.extras == KeypointDensity("fast", 8, "ring", "reference")
    assert method.cells.num_hidden == 22


def test_kamim_is_simmim_with_keypoint_weights() -> None:
    encoder = build_encoder(TINY, 64)
    kamim = KAMIM(KAMIMConfig(temperature=0.5), encoder, 64, MEAN, STD)
    weight = {"kind": "keypoints", "temperature": 0.5}
    simmim = SimMIM(SimMIMConfig(loss_weight=weight), build_encoder(TINY, 64), 64, MEAN, STD)
    simmim.load_state_dict(kamim.state_dict())
    images, hidden = torch.randn(2, 3, 64, 64), kamim.cells.hide(torch.rand(2, 4))
    extras = {DENSITY_KEY: torch.rand(2, 8, 8)}
    assert torch.equal(kamim.compare(images, hidden, extras).loss, simmim.compare(images, hidden, extras).loss)
    plain = KAMIM(KAMIMConfig(detector=None), build_encoder(TINY, 64), 64, MEAN, STD)
    plain.load_state_dict(kamim.state_dict())
    flat = {DENSITY_KEY: torch.full((2, 8, 8), 0.3)}
    torch.testing.assert_close(kamim.compare(images, hidden, flat).loss, plain.compare(images, hidden, {}).loss)


def test_mean_normalised_weights_keep_the_scale_of_simmim() -> None:
    extras = {DENSITY_KEY: torch.rand(8, 8, 8)}
    images = torch.randn(8, 3, 64, 64)
    gains = {}
    for normalize in ("none", "mean"):
        method = KAMIM(KAMIMConfig(normalize_weights=normalize), build_encoder(TINY, 64), 64, MEAN, STD)
        out = method.compare(images, method.cells.hide(torch.rand(8, 4)), extras)
        gains[normalize] = float(out.metrics["weight_gain"])
    assert gains["none"] > 5
    assert gains["mean"] == pytest.approx(1.0, abs=0.1)


def test_everything_is_decayed_unless_told_otherwise() -> None:
    method = KAMIM(KAMIMConfig(), build_encoder(TINY, 64), 64, MEAN, STD)
    assert all(method.parameter_group(name, p).decay for name, p in method.named_parameters())
    matrices = KAMIM(KAMIMConfig(decay="matrices"), build_encoder(TINY, 64), 64, MEAN, STD)
    assert all(matrices.parameter_group(name, p).decay == (p.ndim > 1) for name, p in matrices.named_parameters())


def test_settings_without_effect_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"temperature: got 1\.0, but it has no effect with detector=null"):
        KAMIMConfig(detector=None, temperature=1.0)
    with pytest.raises(ConfigError, match=r"method\.weight_patch_size: 24 px cells don't divide"):
        KAMIM(KAMIMConfig(weight_patch_size=24), build_encoder(TINY, 64), 64, MEAN, STD)
    with pytest.raises(ConfigError, match=r"mask_cell_size: 32 px"):
        KAMIM(KAMIMConfig(), build_encoder(TINY, 32), 32, MEAN, STD)

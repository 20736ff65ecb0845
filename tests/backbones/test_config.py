import pytest
from pydantic import ValidationError

from halfseen.backbones.config import PRESETS, ModelConfig


def fault(**settings: object) -> str:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(settings)
    return caught.value.errors()[0]["msg"]


def test_every_field_has_a_description() -> None:
    assert all(field.description for field in ModelConfig.model_fields.values())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stand_without_departures(name: str) -> None:
    config = ModelConfig(name=name)
    assert ModelConfig.model_validate(config.model_dump()) == config
    preset = PRESETS[name]
    assert config.sizes() == (preset.embed_dim, preset.depths, preset.num_heads)


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    assert "Did you mean 'vit_small'" in fault(name="vit_smal")
    assert "vit_small_patch16_224" in fault(name="vit_small_patch16_242")
    assert "unknown model 'resnet50'" in fault(name="resnet50")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"name": "vit_small", "depths": (2, 2)}, "depths"),
        ({"name": "vit_small", "window_size": 7}, "window_size"),
        ({"name": "swin_tiny", "depth": 3}, "depth"),
        ({"name": "swin_tiny", "class_token": True}, "class_token"),
        ({"name": "simmim_vit_base", "head_dim": 32}, "head_dim"),
        ({"name": "viny_4m", "layer_scale": 0.1}, "layer_scale"),
        ({"name": "vit_small_patch16_224", "embed_dim": 64}, "embed_dim"),
        ({"name": "vitc_4gf", "window_size": 7}, "window_size"),
        ({"name": "swin_tiny", "crop_to_patches": True}, "crop_to_patches"),
    ],
)
def test_a_key_without_effect_on_the_model_is_an_error(settings: dict[str, object], key: str) -> None:
    assert fault(**settings).removeprefix("Value error, ").startswith(f"{key}: no effect")


def test_heads_must_divide_the_width() -> None:
    message = fault(name="vit_tiny", embed_dim=190)
    assert "3 heads don't divide the width 190" in message and "1, 2, 5, 10" in message
    assert "one per stage" in fault(name="swin_tiny", num_heads=(3, 6))


def test_a_single_number_of_heads_doubles_with_each_swin_stage() -> None:
    assert ModelConfig(name="swin_tiny", embed_dim=16, depths=(2, 2, 2), num_heads=1).sizes()[2] == (1, 2, 4)

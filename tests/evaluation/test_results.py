"""Settings of an evaluation, and the words for features."""

import pytest
from pydantic import ValidationError

from halfseen.errors import ConfigError
from halfseen.evaluation.results import EvaluateConfig, feature_kind


def test_defaults_are_the_protocols():
    config = EvaluateConfig.model_validate({})
    assert config.k == (10, 20, 100, 200)
    assert config.temperature == (0.07,)
    assert config.crop_ratio == 224 / 256


@pytest.mark.parametrize("wrong", [{"k": ()}, {"k": (0,)}, {"temperature": (0.0,)}, {"crop_ratio": 1.2}, {"knm": True}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        EvaluateConfig.model_validate(wrong)


def test_a_feature_is_known_by_its_word():
    assert feature_kind("cls+mean") == "cls+mean"
    with pytest.raises(ConfigError, match="'tokens', expected one of cls, mean"):
        feature_kind("tokens")

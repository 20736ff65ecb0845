"""Every key that a user can set says what it means."""

import pytest
from pydantic import BaseModel

from halfseen.config.keys import models_of
from halfseen.pretraining.config import RunConfig


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all models that its fields lead to."""
    below = [inner for field in model.model_fields.values() for inner in models_of(field.annotation)]
    return [model, *(found for inner in below for found in sections(inner))]


MODELS = sorted(set(sections(RunConfig)), key=lambda model: model.__name__)


def test_the_walk_finds_the_settings_of_every_part() -> None:
    names = {model.__name__ for model in MODELS}
    assert {"DataConfig", "TrainConfig", "RuntimeConfig", "ModelConfig", "EvaluateConfig", "OptimizerConfig"} < names
    assert {"MAEConfig", "SimMIMConfig", "KAMIMConfig", "LearningRateConfig", "KeypointWeight"} < names


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    silent = [name for name, field in model.model_fields.items() if len(field.description or "") < 10]
    assert silent == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_models_are_strict_and_frozen(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True

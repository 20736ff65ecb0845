"""A run's whole configuration: the sections of all wings side by side, and where its values come from.

Each section is declared beside what it configures; here they are only put together, and rules between them checked.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.backbones.config import ModelConfig
from halfseen.config.keys import group_at
from halfseen.config.load import Layer, Loaded, load_config
from halfseen.config.recipes import recipe_layer
from halfseen.config.yaml_text import Settings, read_settings
from halfseen.data.config import DataConfig
from halfseen.engine.config import RuntimeConfig, TrainConfig
from halfseen.evaluation.results import EvaluateConfig
from halfseen.methods.table import MethodConfig
from halfseen.pretraining.defaults import settings_of_method


class RunConfig(BaseModel):
    """Everything that decides a run. All but `runtime`, `evaluate` and a few bookkeeping keys decide its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, description="The run's only source of randomness, no unit.")
    run_dir: str | None = Field(
        None, description="Folder the run writes to; null makes a new one, runs/<method>-<data>-<number>."
    )
    init: str | None = Field(
        None,
        description="Weights to start from: a run, a halfseen encoder or an official checkpoint; null starts from "
        "random weights.",
    )
    data: DataConfig = Field(DataConfig.model_validate({}), description="The images.")
    method: MethodConfig = Field(description="The pre-training method; `method.name` chooses which.")
    model: ModelConfig = Field(ModelConfig.model_validate({}), description="The encoder.")
    train: TrainConfig = Field(TrainConfig.model_validate({}), description="Length, batch, optimiser, learning rate.")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig.model_validate({}), description="What is measured when the run ends."
    )
    runtime: RuntimeConfig = Field(
        default_factory=lambda: RuntimeConfig.model_validate({}), description="Machine, speed and output."
    )

    @model_validator(mode="after")
    def _run_is_long_enough(self) -> "RunConfig":
        least = getattr(self.method, "least_epochs", 0)
        if self.train.epochs < least:
            raise ValueError(
                f"train.epochs: got {self.train.epochs:g}, but the teacher's temperature takes {least} epochs to reach "
                "its end (method.warmup_teacher_temp_epochs, counted from method.pred_start_epoch for patches). "
                "Train longer or shorten the warm-up."
            )
        return self

    @model_validator(mode="after")
    def _decay_settings_have_an_effect(self) -> "RunConfig":
        if self.train.optimizer.decay_all:
            for key in ("decay", "decay_exclude_position_bias", "decay_exclude_tokens"):
                field = type(self.method).model_fields.get(key)
                value = getattr(self.method, key, None)
                if field is not None and value != field.default:
                    shown = str(value).lower()
                    raise ValueError(
                        f"method.{key}: got {shown}, but it has no effect with train.optimizer.decay_all=true, which "
                        "decays every parameter. Leave one of them out."
                    )
        return self


def load_run_config(
    recipe: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    chosen: Settings | None = None,
) -> Loaded[RunConfig]:
    """The configuration of a run out of a recipe, a file and `key=value` overrides; later ones win.

    Args:
        recipe: name of a shipped recipe.
        file: YAML file with any subset of the keys.
        overrides: `key.sub=value` texts.
        chosen: nested values that suit the data, stronger than the recipe and weaker than file and overrides.
    Raises:
        ConfigError: the text lists all faults, one a line.
    """
    layers = [] if recipe is None else [recipe_layer(recipe)]
    if chosen is not None:
        layers.append(Layer("chosen for this data", chosen, gives_way=True))
    if file is not None:
        layers.append(Layer(f"file '{file}'", read_settings(file)))
    method = _last_word("method.name", layers, overrides)
    model = _last_word("model.name", layers, overrides)
    if method is not None:
        own = settings_of_method(method, ModelConfig().name if model is None else model)
        layers.insert(0, Layer(f"default of {method}", own))
    return load_config(RunConfig, layers, overrides)


def _last_word(dotted: str, layers: Sequence[Layer], overrides: Sequence[str]) -> str | None:
    """The text that the strongest layer or override gives a key; None where none does, or not a text."""
    *path, last = dotted.split(".")
    groups = (group_at(layer.values, tuple(path)) or {} for layer in layers)
    values = [group[last] for group in groups if last in group]
    values += [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == dotted]
    return values[-1] if values and isinstance(values[-1], str) else None

"""Settings without effect: refused where somebody wrote them, forgotten where a recipe did that was overruled."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halfseen.config.load import Layer, dump_config, load_config
from halfseen.config.yaml_text import Settings, parse_settings
from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Blocks(Group):
    kind: Literal["blocks"] = "blocks"
    ratio: float = 0.3


class Scattered(Group):
    kind: Literal["scattered"] = "scattered"


class Crops(Group):
    name: Literal["crops"] = "crops"
    number: int = 0
    size: int | None = None
    scale: tuple[float, float] = (0.1, 0.5)
    flip: bool = True
    mask: Annotated[Blocks | Scattered, Field(discriminator="kind")] = Blocks()
    seen: bool = False

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "Crops":
        keys = ("size", "scale", "flip", "mask")
        refuse_idle(self, [Need(key, self.number > 0, "number=0") for key in keys])
        return self


class Whole(Group):
    name: Literal["whole"] = "whole"


class Run(Group):
    method: Annotated[Crops | Whole, Field(discriminator="name")] = Crops()


RECIPE: Settings = {
    "method": {"name": "crops", "number": 2, "size": 8, "scale": [0.2, 0.4], "flip": False, "mask": {"ratio": 0.5}}
}
NO_EFFECT = "but it has no effect with number=0. Leave it out (its default is"


def complaint(layers: list[Layer], *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, layers, overrides)
    return str(caught.value).splitlines()


def test_each_idle_setting_has_a_sentence_with_its_path() -> None:
    words = ("size=8", "scale=[0.2, 0.4]", "flip=false", "mask.kind=scattered", "seen=true")
    assert complaint([], *(f"method.{word}" for word in words)) == [
        f"method.size: got 8, {NO_EFFECT} null).",
        f"method.scale: got [0.2, 0.4], {NO_EFFECT} [0.1, 0.5]).",
        f"method.flip: got false, {NO_EFFECT} true).",
        f"method.mask: got {{kind: scattered}}, {NO_EFFECT} {{kind: blocks}}).",
    ]
    with pytest.raises(ValidationError, match=r"mask: got \{kind: blocks, \.\.\.\}"):
        Crops(mask=Blocks(ratio=0.4))


def test_a_default_is_accepted_so_a_written_configuration_loads() -> None:
    config = load_config(Run).config
    assert load_config(Run, [Layer("file", parse_settings(dump_config(config), "file"))]).config == config


def test_a_recipe_gives_way_to_what_overrules_it() -> None:
    loaded = load_config(Run, [Layer("recipe a", RECIPE, gives_way=True)], ["method.number=0"])
    assert loaded.config == Run()
    assert loaded.provenance["method.size"] == loaded.provenance["method.mask.ratio"] == "default"
    file = Layer("file 'b'", {"method": {"number": 0}})
    assert load_config(Run, [Layer("recipe a", RECIPE, gives_way=True), file]).config == Run()


def test_what_somebody_wrote_is_refused_also_beside_a_recipe() -> None:
    recipe = Layer("recipe a", RECIPE, gives_way=True)
    found = complaint([recipe], "method.number=0", "method.size=16", "method.mask.ratio=0.6")
    assert [line.split(":")[0] for line in found] == ["method.size", "method.mask"]
    file = Layer("file 'b'", {"method": {"scale": [0.3, 0.4]}})
    assert complaint([recipe, file], "method.number=0") == [
        f"method.scale: got [0.3, 0.4], {NO_EFFECT} [0.1, 0.5]). (Set by file 'b'.)"
    ]


def test_a_recipe_that_contradicts_itself_is_refused() -> None:
    alone: Settings = {"method": {"name": "crops", "size": 8}}
    assert complaint([Layer("recipe a", alone, gives_way=True)]) == [
        f"method.size: got 8, {NO_EFFECT} null). (Set by recipe a.)"
    ]

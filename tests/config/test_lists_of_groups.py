"""A key that holds one group of settings or a list of them: read, written, and sentences that name the entry."""

from typing import Annotated

import pytest
from pydantic import Discriminator, Field, Tag

from config.models import Blocks, Grid, Group
from halfseen.config.load import Layer, dump_config, load_config
from halfseen.config.yaml_text import Settings, parse_settings
from halfseen.errors import ConfigError

Single = Annotated[Grid | Blocks, Field(discriminator="name")]


class Pair(Group):
    name: str = "pair"
    both: tuple[Single, ...] = Field(default=(Grid(), Blocks()), min_length=2)


def name_or_list(value: object) -> object:
    if isinstance(value, list | tuple):
        return "list"
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


OneOrMany = Annotated[
    Annotated[Grid, Tag("grid")] | Annotated[Blocks, Tag("blocks")] | Annotated[tuple[Single, ...], Tag("list")],
    Discriminator(name_or_list),
]


class Share(Group):
    share: Annotated[float, Field(ge=0, lt=1)] | tuple[Annotated[float, Field(ge=0, lt=1)], ...] = 0.5


class Run(Group):
    mask: OneOrMany = Field(default=Grid())
    pair: Pair = Pair()
    share: Share = Share()


def complaint(*overrides: str, values: Settings | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, [Layer("file 'a.yaml'", values or {})], overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "override", ["mask.mask_ratio=0.5", "mask.name=blocks", "mask=[{name: grid}, {name: blocks, block_size: 4}]"]
)
def test_one_or_many_are_read_and_written(override: str) -> None:
    loaded = load_config(Run, overrides=[override]).config
    again = load_config(Run, [Layer("file", parse_settings(dump_config(loaded), "file"))]).config
    assert again == loaded
    assert isinstance(loaded.mask, tuple) == ("[" in override)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("mask.mask_ratio=75", "mask.mask_ratio: got 75, expected a float in [0, 1). Write 0.75 for 75 %."),
        ("mask.name=gird", "mask.name: unknown 'gird'. Known: blocks, grid. Did you mean 'grid'?"),
        ("mask.block_size=4", "mask.block_size: a key of blocks, not of 'grid'. Leave it out, or choose another name."),
        ("mask=[{name: grid, mask_ratio: 75}]",
         "mask[0].mask_ratio: got 75, expected a float in [0, 1). Write 0.75 for 75 %."),
        ("mask=[{name: grid}, {name: gird}]",
         "mask[1].name: unknown 'gird'. Known: blocks, grid. Did you mean 'grid'?"),
        ("mask=[{name: grid, mask_ration: 0.5}]",
         "mask[0].mask_ration: unknown key. Did you mean 'mask[0].mask_ratio'?"),
        ("mask=[{name: grid, block_size: 4}]",
         "mask[0].block_size: a key of blocks, not of 'grid'. Leave it out, or choose another name."),
        ("mask=[{name: grid, weight: {kind: dense, temperature: 0}}]",
         "mask[0].weight.temperature: got 0, expected a float > 0."),
        ("mask=[{name: blocks, detector: fasst}]",
         "mask[0].detector: unknown 'fasst'. Known: fast, orb, sift. Did you mean 'fast'?"),
        ("mask=[{mask_ratio: 0.5}]", "mask[0].name: missing. Known: blocks, grid."),
        ("pair.both=[{name: grid, mask_ratio: 75}, {name: grid}]",
         "pair.both[0].mask_ratio: got 75, expected a float in [0, 1). Write 0.75 for 75 %."),
        ("pair.both=[{name: grid}]",
         "pair.both: got [{name: grid}], expected a list of at least 2 groups of keys."),
        ("share.share=30", "share.share: got 30, expected a float in [0, 1) or a list of floats in [0, 1). "
         "Write 0.3 for 30 %."),
    ],
)  # fmt: skip
def test_one_wrong_setting_is_one_sentence(override: str, sentence: str) -> None:
    assert complaint(override) == sentence


def test_entries_of_a_file_name_the_file() -> None:
    values: Settings = {"mask": [{"name": "grid", "mask_ratio": "much"}, {"name": "blocks", "block_size": 0}]}
    assert complaint(values=values).splitlines() == [
        "mask[0].mask_ratio: got 'much', expected a float in [0, 1). (Set by file 'a.yaml'.)",
        "mask[1].block_size: got 0, expected an integer >= 1. (Set by file 'a.yaml'.)",
    ]

"""Layers and overrides: who wins, who is named as the source, and that a dumped configuration loads equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.models import Blocks, Dense, Grid, Rate, Run, Train, Uniform
from halfseen.config.load import Layer, dump_config, is_override, load_config, parse_override
from halfseen.config.yaml_text import Settings, parse_settings
from halfseen.errors import ConfigError

RECIPE: Settings = {
    "method": {"name": "grid", "mask_ratio": 0.5, "crop_scale": [0.5, 1]},
    "train": {"epochs": 3, "lr": {"base": 1e-4, "milestones": [2, 3]}},
}


def test_later_layers_win_key_by_key() -> None:
    file: Settings = {"train": {"epochs": 5.5, "lr": {"milestones": [1]}}}
    loaded = load_config(Run, [Layer("recipe a", RECIPE), Layer("file 'b'", file)], ["method.mask_ratio=6e-1"])
    assert loaded.config == Run(
        method=Grid(mask_ratio=0.6, crop_scale=(0.5, 1.0)),
        train=Train(epochs=5.5, lr=Rate(base=1e-4, milestones=(1.0,))),
    )
    source = loaded.provenance
    assert source["method.mask_ratio"] == "override"
    assert source["method.crop_scale"] == "recipe a"
    assert source["train.epochs"] == "file 'b'"
    assert source["train.lr.milestones"] == "file 'b'"
    assert source["train.lr.base"] == "recipe a"
    assert source["train.batch_size"] == "default"


def test_provenance_names_every_leaf_once() -> None:
    loaded = load_config(Run, [Layer("recipe a", RECIPE)])
    assert set(loaded.provenance) == {
        "seed", "run_dir", "init", "method.name", "method.mask_ratio", "method.crop_scale", "method.normalise",
        "method.weight.kind",
        "train.epochs", "train.batch_size", "train.drop_last", "train.lr.base", "train.lr.reference_batch",
        "train.lr.milestones",
    }  # fmt: skip


def test_a_layer_is_not_changed_by_loading() -> None:
    before = repr(RECIPE)
    load_config(Run, [Layer("recipe a", RECIPE)], ["train.lr.base=1", "method.mask_ratio=0.1"])
    assert repr(RECIPE) == before


def test_a_whole_group_can_be_overridden() -> None:
    loaded = load_config(Run, [Layer("recipe a", RECIPE)], ["train.lr={base: 1e-2}"])
    assert loaded.config.train.lr == Rate(base=1e-2, milestones=(2.0, 3.0))


def test_the_name_chooses_the_member_and_a_default_member_needs_no_name() -> None:
    named = load_config(Run, [], ["train.epochs=1", "method.name=blocks", "method.block_size=8"])
    assert named.config.method == Blocks(block_size=8)
    unnamed = load_config(Run, [], ["train.epochs=1", "method.mask_ratio=0.25"])
    assert unnamed.config.method == Grid(mask_ratio=0.25)


def test_a_union_inside_a_union_takes_the_default_of_the_chosen_member() -> None:
    blocks = load_config(Run, [], ["train.epochs=1", "method.name=blocks", "method.weight.temperature=2"])
    assert blocks.config.method == Blocks(weight=Dense(temperature=2.0))
    with pytest.raises(ConfigError, match=r"method\.weight\.temperature: a key of dense, not of 'uniform'"):
        load_config(Run, [], ["train.epochs=1", "method.weight.temperature=2"])
    grid = load_config(Run, [], ["train.epochs=1", "method.weight.kind=dense", "method.weight.temperature=2"])
    assert grid.config.method == Grid(weight=Dense(temperature=2.0))


def test_text_keys_take_numbers_as_text() -> None:
    loaded = load_config(Run, [], ["train.epochs=1", "run_dir=2024", "init=null"])
    assert loaded.config.run_dir == "2024"
    assert loaded.config.init is None


def test_an_integer_is_a_float_but_never_the_reverse() -> None:
    assert load_config(Run, [], ["train.epochs=4"]).config.train.epochs == 4.0
    with pytest.raises(ConfigError, match=r"train\.batch_size: got 64\.0, expected an integer >= 1\. Write 64\."):
        load_config(Run, [], ["train.epochs=4", "train.batch_size=64.0"])


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("train.epochs=3", True),
        ("a=b", True),
        ("./a=b", False),
        ("/data/x=1/y", False),
        ("photos", False),
        ("C:\\a=b", False),
        ("=3", False),
        ("a..b=3", False),
    ],
)
def test_overrides_and_paths_are_told_apart(word: str, answer: bool) -> None:
    assert is_override(word) is answer


def test_an_override_is_cut_at_the_first_equals_sign() -> None:
    assert parse_override("data.source=/x=y/z") == ("data.source", "/x=y/z")


@pytest.mark.parametrize("word", ["train.epochs", "=3", "a b=3", "--x=3"])
def test_what_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"expected key=value, for instance train\.epochs=10"):
        parse_override(word)


unit = st.floats(0.0, 1.0, exclude_max=True, allow_subnormal=False)
share = st.floats(0.0, 1.0, exclude_min=True, allow_subnormal=False)
positive = st.floats(1e-300, 1e300)
weights = st.just(Uniform()) | st.builds(Dense, temperature=positive)
methods = st.builds(
    Grid, mask_ratio=unit, crop_scale=st.tuples(share, share), normalise=st.booleans(), weight=weights
) | st.builds(Blocks, mask_ratio=unit, block_size=st.integers(1), detector=st.sampled_from(["fast", "sift", "orb"]))
rates = st.builds(
    Rate,
    base=positive,
    reference_batch=st.none() | st.integers(1, 9),
    milestones=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
)
trains = st.builds(
    Train, epochs=positive, batch_size=st.integers(1, 99).map(lambda n: 2 * n), drop_last=st.booleans(), lr=rates
)
runs = st.builds(Run, seed=st.integers(14), run_dir=st.text(), init=st.none() | st.text(), method=methods, train=trains)


@given(runs)
def test_load_of_dump_is_the_same_configuration(run: Run) -> None:
    text = dump_config(run)
    again = load_config(Run, [Layer("file 'config.yaml'", parse_settings(text, "config.yaml"))])
    assert again.config == run
    assert set(again.provenance.values()) == {"file 'config.yaml'"}


@given(runs)
def test_comments_of_the_sources_do_not_change_the_values(run: Run) -> None:
    text = dump_config(run)
    loaded = load_config(Run, [Layer("recipe a", parse_settings(text, "a"))], ["seed=99"])
    annotated = dump_config(loaded.config, loaded.provenance)
    assert "seed: 99  # override\n" in annotated
    assert "  # recipe a\n" in annotated
    assert load_config(Run, [Layer("a", parse_settings(annotated, "a"))]).config == loaded.config

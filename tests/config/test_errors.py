"""Every wrong setting gets a sentence: the path, what was given, what is allowed, how to mend it; all at once."""

import pytest

from config.models import Run
from halfseen.config.load import Layer, load_config
from halfseen.config.yaml_text import Settings
from halfseen.errors import ConfigError

VALID: Settings = {"method": {"name": "grid"}, "train": {"epochs": 3}}


def complaint(*overrides: str, layers: tuple[Layer, ...] = (Layer("recipe a", VALID),)) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, layers, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("method.mask_ratio=75", "method.mask_ratio: got 75, expected a float in [0, 1). Write 0.75 for 75 %."),
        ("method.mask_ratio=1", "method.mask_ratio: got 1, expected a float in [0, 1)."),
        ("method.mask_ratio=null", "method.mask_ratio: got null, expected a float in [0, 1)."),
        ("method.name=gird", "method.name: unknown 'gird'. Known: blocks, grid. Did you mean 'grid'?"),
        ("method.nme=grid", "method.nme: unknown key. Did you mean 'method.name'?"),
        ("method=grid", "method: got 'grid', expected keys with values (name, mask_ratio, crop_scale, normalise, "
         "weight, block_size, detector). Give one of them, as in method.name=grid."),
        ("method.block_size=3", "method.block_size: a key of blocks, not of 'grid'. Leave it out, or choose another "
         "name."),
        ("train.batchsize=4", "train.batchsize: unknown key. Did you mean 'train.batch_size'?"),
        ("batch_size=4", "batch_size: unknown key. Did you mean 'train.batch_size'?"),
        ("mask_ratio=0.5", "mask_ratio: unknown key. Did you mean 'method.mask_ratio'?"),
        ("train.lr.bse=1", "train.lr.bse: unknown key. Did you mean 'train.lr.base'?"),
        ("train.epochs.x=1", "train.epochs.x: unknown key. Did you mean 'train.epochs'?"),
        ("qqq=1", "qqq: unknown key. Keys of a configuration: seed, run_dir, init, method, train."),
        ("train.lr=1e-3", "train.lr: got 0.001, expected keys with values (base, reference_batch, milestones). Give "
         "one of them, as in train.lr.base=0.001."),
        ("train.batch_size=true", "train.batch_size: got true, expected an integer >= 1."),
        ("train.batch_size='64'", "train.batch_size: got '64', expected an integer >= 1. Leave out the quotes."),
        ("train.batch_size=0", "train.batch_size: got 0, expected an integer >= 1."),
        ("train.batch_size=63", "train.batch_size: got 63, expected an even number. Write 64."),
        ("train.epochs=true", "train.epochs: got true, expected a float > 0."),
        ("train.epochs=many", "train.epochs: got 'many', expected a float > 0."),
        ("train.epochs=", "train.epochs: got nothing after '='. Write train.epochs=null for none."),
        ("train.drop_last=1", "train.drop_last: got 1, expected true or false."),
        ("train.drop_last=yes", "train.drop_last: got 'yes', expected true or false. Write true."),
        ("train.lr.reference_batch=None", "train.lr.reference_batch: got 'None', expected an integer >= 1 or null. "
         "Write null for none."),
        ("train.lr.milestones=50,85", "train.lr.milestones: got '50,85', expected a list of floats. Write [50,85]."),
        ("train.lr.milestones=50", "train.lr.milestones: got 50, expected a list of floats. Write [50]."),
        ("train.lr.milestones=[50, a]", "train.lr.milestones: got 'a' (at train.lr.milestones[1]), expected a list of "
         "floats."),
        ("method.crop_scale=0.5", "method.crop_scale: got 0.5, expected a list of 2 floats in (0, 1]. "
         "Write [0.5, 0.5]."),
        ("method.crop_scale=[0.5]", "method.crop_scale: got [0.5], expected a list of 2 floats in (0, 1]."),
        ("method.crop_scale=[0.5, 2]", "method.crop_scale: got 2 (at method.crop_scale[1]), expected a list of 2 "
         "floats in (0, 1]."),
        ("method.crop_scale=[0.5", "method.crop_scale: got '[0.5', whose brackets or quotes do not close."),
        ("run_dir=null", "run_dir: got null, expected text."),
    ],
)  # fmt: skip
def test_one_wrong_override_is_one_sentence(word: str, sentence: str) -> None:
    assert complaint(word) == sentence


def test_words_of_a_choice_are_suggested() -> None:
    layers = (Layer("recipe b", {"method": {"name": "blocks"}, "train": {"epochs": 1}}),)
    assert complaint("method.detector=fasst", layers=layers) == (
        "method.detector: unknown 'fasst'. Known: fast, orb, sift. Did you mean 'fast'?"
    )


def test_all_faults_come_at_once_each_on_its_line() -> None:
    text = complaint("method.mask_ratio=75", "train.epoch=3", "train.batch_size=two", "seed=-1", "nonsense")
    assert text.splitlines() == [
        "train.epoch: unknown key. Did you mean 'train.epochs'?",
        "'nonsense': expected key=value, for instance train.epochs=10.",
        "seed: got -1, expected an integer >= 0.",
        "method.mask_ratio: got 75, expected a float in [0, 1). Write 0.75 for 75 %.",
        "train.batch_size: got 'two', expected an integer >= 1.",
    ]


def test_a_fault_in_a_file_names_the_file() -> None:
    file: Settings = {
        "run_dir": 2024,
        "method": {"name": "grid", "mask_ration": 0.5},
        "train": {"epochs": "3"},
        "x": {},
    }
    text = complaint(layers=(Layer("file 'my.yaml'", file),))
    assert set(text.splitlines()) == {
        "run_dir: got 2024, expected text. Write \"2024\" in quotes. (Set by file 'my.yaml'.)",
        "method.mask_ration: unknown key. Did you mean 'method.mask_ratio'? (Set by file 'my.yaml'.)",
        "train.epochs: got '3', expected a float > 0. Leave out the quotes. (Set by file 'my.yaml'.)",
        "x: unknown key. Keys of a configuration: seed, run_dir, init, method, train. (Set by file 'my.yaml'.)",
    }


def test_what_is_missing_is_named() -> None:
    assert complaint("train.batch_size=2", layers=()) == "train.epochs: missing, expected a float > 0."


def test_keys_left_over_from_another_method_are_one_sentence() -> None:
    recipe: Settings = {"method": {"name": "blocks", "block_size": 8, "detector": "orb"}, "train": {"epochs": 1}}
    assert complaint("method.name=grid", layers=(Layer("recipe small", recipe),)) == (
        "method.name: got 'grid', but recipe small sets keys that 'grid' does not have: method.block_size, "
        "method.detector. Start from a recipe of 'grid' (`halfseen recipes list`) or from no recipe."
    )


def test_a_rule_of_the_whole_configuration_speaks_for_itself() -> None:
    assert complaint("seed=13", "train.epochs=13") == (
        "thirteen twice: choose another seed or another number of epochs."
    )

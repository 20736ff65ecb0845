"""What YAML text means as settings, and that what is written is read back."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from halfseen.config.yaml_text import parse_settings, parse_value, read_settings, scalar_text, show
from halfseen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("1_000", 1000),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("0x10", "0x10"),
        ("bundled:fashion", "bundled:fashion"),
        ("/photos #1: cats", "/photos #1: cats"),
        ("[0.2, 1, a]", [0.2, 1, "a"]),
        ("{a: 1e-4}", {"a": 1e-4}),
        ('"1e-4"', "1e-4"),
        ("'null'", "null"),
    ],
)
def test_an_override_means_what_it_looks_like(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_file_means_the_same() -> None:
    found = parse_settings("train:\n  lr: 1e-4  # comment\n  name: no\n  drop: true\n", "file 'x.yaml'")
    assert found == {"train": {"lr": 1e-4, "name": "no", "drop": True}}


def test_an_empty_file_sets_nothing() -> None:
    assert parse_settings("# only a comment\n", "file 'x.yaml'") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "file 'x.yaml', line 3: the key 'a' stands here and in line 1; keep one."),
        ("a:\n  b: 1\n  b: 2", "file 'x.yaml', line 3: the key 'b' stands here and in line 2; keep one."),
        ("- 1", "file 'x.yaml': got [1], expected keys with values, such as 'train:' over '  epochs: 10'."),
        ("a: &n 1\nb: *n", "file 'x.yaml', line 2: aliases (*name) are not read in settings; write the value out."),
        ("[1, 2]: 3", "file 'x.yaml', line 1: a key must be a word."),
        ("a: [1", "file 'x.yaml', line 1: expected ',' or ']', but got '<stream end>'."),
    ],
)
def test_bad_yaml_is_named_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "file 'x.yaml'")
    assert str(caught.value) == sentence


def test_yaml_can_not_run_code(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        parse_settings(f"a: !!python/object/apply:os.mkdir ['{victim}']", "file 'x.yaml'")
    assert not victim.exists()


def test_a_missing_file_a_folder_and_a_picture_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="no such file"):
        read_settings(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="a folder, expected a YAML file"):
        read_settings(tmp_path)
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        read_settings(tmp_path / "picture.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@given(VALUES)
def test_a_written_value_is_read_back(value: object) -> None:
    assert parse_settings(f"key: {scalar_text(value)}", "text") == {"key": value}


@given(st.text(max_size=12) | st.sampled_from(["1e-4", "no", "010", "1:30", "0x1F", "null", "=", "2001-01-01"]))
def test_written_text_is_text_for_other_readers_too(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar_text(text)}") == {"key": text}


def test_long_values_are_cut_in_messages() -> None:
    assert show("x" * 200) == "'" + "x" * 75 + " ..."
    assert show(0.75) == "0.75"
    assert show(None) == "null"

"""YAML as settings need it: `1e-4` is a number, only true and false are truths, a key stands once, nothing is executed.

PyYAML follows YAML 1.1, where `1e-4` is text, `no` is false, `010` is eight and `1:30` is ninety. Here a scalar means
what it means in YAML 1.2. Written files are quoted so that both kinds of reader see the same values.
"""

import re
from pathlib import Path
from typing import IO, Any

import yaml

from halfseen.errors import ConfigError

Value = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What YAML can hold. (Nested values are `Any`: a recursive type can't be checked at run time.)"""
Settings = dict[str, Value]

FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
INTEGER = re.compile(r"[-+]?\d[\d_]*$")
SCALARS = {
    "tag:yaml.org,2002:bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": INTEGER,
    "tag:yaml.org,2002:float": FLOAT,
    "tag:yaml.org,2002:null": re.compile(r"(?:null|Null|NULL|~|)$"),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars above; repeated keys, aliases and keys that are not text are errors."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's name)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read in settings; write the value out", problem_mark=event.start_mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_settings(self, node: yaml.MappingNode) -> Settings:
        lines: dict[str, int] = {}
        settings: Settings = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or not key:
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' stands here and in line {lines[key]}; keep one",
                    problem_mark=key_node.start_mark,
                )
            lines[key] = key_node.start_mark.line + 1
            settings[key] = self.construct_object(value_node, deep=True)
        return settings

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value.replace("_", "")
        if node.tag.endswith(":int"):
            return int(text)
        return float(text.replace(".inf", "inf").replace(".nan", "nan")) if "." in text else float(text)


for _tag, _pattern in SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_settings)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that also quotes text which only the loader above would take for a number."""


for _tag, _pattern in SCALARS.items():
    _Dumper.add_implicit_resolver(_tag, _pattern, None)


def parse_settings(text: str | IO[str], origin: str) -> Settings:
    """The settings in a YAML text; `origin` names it in errors.

    Raises:
        ConfigError: not YAML, a repeated key, or not a group of keys.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{origin}{line}: {error.problem or error}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin}: not YAML ({' '.join(str(error).split())}).") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{origin}: got {show(value)}, expected keys with values, such as 'train:' over '  epochs: 10'."
        )
    return value


def read_settings(path: Path) -> Settings:
    """The settings in a YAML file.

    Raises:
        ConfigError: the file can't be read, is not YAML, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"'{path}': no such file. Give the path of a YAML file with settings.") from None
    except IsADirectoryError:
        raise ConfigError(
            f"'{path}': a folder, expected a YAML file. A run's settings are in its config.yaml."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}': not text in UTF-8, expected a YAML file with settings.") from None
    except OSError as error:
        raise ConfigError(f"'{path}': can't be read ({error.strerror}).") from None
    return parse_settings(text, f"file '{path}'")


def parse_value(text: str) -> Value:
    """The value of `key=text`: a YAML scalar over the whole text, or a list, group or quoted text.

    Unlike in a file, `#` and `: ` have no meaning outside brackets and quotes, so any path can be written as it is.

    Raises:
        ConfigError: brackets or quotes that do not close.
    """
    if text[:1] in ("[", "{", '"', "'"):
        return parse_settings(f"value: {text}", f"'{text}'")["value"]
    for tag, pattern in SCALARS.items():
        if pattern.match(text):
            return parse_settings(f"value: {text}", tag)["value"]
    return text


def show(value: object) -> str:
    """A value in an error message: text in quotes, the rest as YAML, cut when long."""
    if isinstance(value, str):
        text = f"'{value}'"
    else:
        text = scalar_text(value)
    return text if len(text) <= 80 else text[:76] + " ..."


def scalar_text(value: object) -> str:
    """A value on one line of YAML, in flow style."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        default_style=style,
        width=1 << 20,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()

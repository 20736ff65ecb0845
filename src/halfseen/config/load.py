"""Builds a run's settings out of layers: defaults, a recipe, a file, `key.sub=value` overrides; later layers win.

    layers of nested values --merge--> values + who set each --pydantic (strict)--> config + provenance

Nothing here knows what the settings mean: the pydantic model comes as an argument.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from halfseen.config.errors import Fault, Translator, unknown_key
from halfseen.config.keys import KeySpace, group_at, members
from halfseen.config.yaml_text import Settings, Value, parse_value, scalar_text
from halfseen.errors import ConfigError

OVERRIDE = "override"
DEFAULT = "default"
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")

Model = TypeVar("Model", bound=BaseModel)


class Layer(NamedTuple):
    """Nested settings.

    Attributes:
        name: where they are from: "recipe mae_small", "file 'my.yaml'".
        values: the settings.
        gives_way: those that stronger layers leave without effect are forgotten, not refused: who takes a recipe
            without its local crops doesn't have to take back the recipe's size of local crops.
    """

    name: str
    values: Mapping[str, Value]
    gives_way: bool = False


@dataclass(frozen=True)
class Loaded(Generic[Model]):
    """A valid configuration.

    Attributes:
        config: the model.
        provenance: for each leaf's dotted key, the name of the layer that set it, "override" or "default".
    """

    config: Model
    provenance: dict[str, str]


class Override(NamedTuple):
    """`key.sub=text` cut in two."""

    dotted: str
    text: str


def load_config(model_class: type[Model], layers: Sequence[Layer] = (), overrides: Sequence[str] = ()) -> Loaded[Model]:
    """The configuration that the layers and overrides add up to.

    Args:
        model_class: a frozen pydantic model; groups are models, unions of models are told apart by a literal key.
        layers: weakest first. Groups merge key by key; lists and scalars replace.
        overrides: `key.sub=value` texts, stronger than all layers; the value is read by `parse_value`.
    Raises:
        ConfigError: the text lists all faults, one a line.
    """
    space = KeySpace(model_class)
    values: Settings = {}
    origins: dict[str, str] = {}
    faults: list[Fault] = []
    for layer in layers:
        _merge(values, layer.values, layer.name, origins)
    for text in overrides:
        fault = _apply_override(text, space, values, origins)
        if fault is not None:
            faults.append(fault)
    _choose_default_members(space, values)
    weaker = layers if overrides else layers[:-1]
    yielding = {layer.name for layer in weaker if layer.gives_way}
    config: Model | None = None
    while config is None:
        try:
            # The JSON door is strict about kinds (no text for numbers, no bool for int) yet takes lists for tuples.
            config = model_class.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            details, translator = error.errors(include_url=False), Translator(space, values, origins)
            given_way = [key for key in translator.idle(details) if _give_way(key, values, origins, yielding)]
            if not given_way:
                faults.extend(translator.faults(details))
                break
    if faults or config is None:
        raise ConfigError("\n".join(dict.fromkeys(fault.sentence for fault in faults)))
    return Loaded(config, provenance(config, origins))


def parse_override(text: str) -> Override:
    """Cuts `key.sub=value` in two.

    Raises:
        ConfigError: no `=`, or no key before it.
    """
    dotted, equals, value = text.partition("=")
    dotted = dotted.strip()
    if not equals:
        raise ConfigError(f"'{text}': expected key=value, for instance train.epochs=10.")
    if not KEY.fullmatch(dotted):
        raise ConfigError(f"'{text}': '{dotted}' can't be a key; expected key=value, for instance train.epochs=10.")
    return Override(dotted, value.strip())


def is_override(word: str) -> bool:
    """Whether a word of the command line is `key.sub=value` (and not a path; write ./a=b for a file of that name)."""
    return "=" in word and KEY.fullmatch(word.partition("=")[0].strip()) is not None


def dump_config(config: BaseModel, provenance: Mapping[str, str] | None = None) -> str:
    """A complete YAML text of a configuration; loading it gives an equal one.

    With `provenance`, each line that did not come from a default ends in a comment that names its source.
    """
    return "".join(f"{line}\n" for line in _lines(config.model_dump(mode="json"), provenance or {}))


def flatten(values: Mapping[str, Value], path: tuple[str, ...] = ()) -> dict[str, Value]:
    """Nested settings as dotted leaves; an empty group is a leaf."""
    flat: dict[str, Value] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, (*path, name)))
        else:
            flat[".".join((*path, name))] = value
    return flat


def leaves(config: BaseModel) -> dict[str, Value]:
    """A configuration as dotted keys and plain values."""
    return flatten(config.model_dump(mode="json"))


def provenance(config: BaseModel, origins: Mapping[str, str]) -> dict[str, str]:
    """Who set each leaf; a group set as a whole counts for all below it."""
    found = {}
    for dotted in leaves(config):
        parts = dotted.split(".")
        prefixes = (".".join(parts[:stop]) for stop in range(len(parts), 0, -1))
        found[dotted] = next((origins[prefix] for prefix in prefixes if prefix in origins), DEFAULT)
    return found


def _merge(
    target: Settings, source: Mapping[str, Value], name: str, origins: dict[str, str], path: tuple[str, ...] = ()
) -> None:
    """Puts `source` over `target` in place and notes in `origins` who set each leaf."""
    for key, value in source.items():
        here = (*path, key)
        dotted = ".".join(here)
        held = target.get(key)
        if isinstance(value, dict) and (isinstance(held, dict) or held is None):
            group: Settings = held if isinstance(held, dict) else {}
            target[key] = group
            if not value:
                origins[dotted] = name
            else:
                origins.pop(dotted, None)
            _merge(group, value, name, origins, here)
            continue
        for known in [known for known in origins if known.startswith(f"{dotted}.")]:
            del origins[known]
        target[key] = value
        origins[dotted] = name


def _give_way(dotted: str, values: Settings, origins: dict[str, str], yielding: Collection[str]) -> bool:
    """Forget a setting, or a group of them, if only layers that give way have set it; whether it was."""
    own = [key for key in origins if key == dotted or key.startswith(f"{dotted}.")]
    *path, last = dotted.split(".")
    group = group_at(values, tuple(path))
    if group is None or not own or any(origins[key] not in yielding for key in own):
        return False
    del group[last]
    for key in own:
        del origins[key]
    return True


def _choose_default_members(space: KeySpace, values: Settings) -> None:
    """Gives a union's settings the tag of its default where only other keys were set: pydantic asks for a tag."""
    for union in space.unions():
        group = group_at(values, union.path)
        if group is None or union.tag_name is None or union.tag_name in group or not space.is_chosen(union, values):
            continue
        default = union.field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, BaseModel):
            group[union.tag_name] = str(getattr(default, union.tag_name))


def _apply_override(text: str, space: KeySpace, values: Settings, origins: dict[str, str]) -> Fault | None:
    try:
        dotted, raw = parse_override(text)
    except ConfigError as error:
        return Fault(text, str(error))
    if dotted not in space:
        return Fault(dotted, f"{dotted}: {unknown_key(dotted, space)}")
    if not raw:
        return Fault(dotted, f"{dotted}: got nothing after '='. Write {dotted}=null for none.")
    try:
        value = _value_for(dotted, raw, space)
    except ConfigError:
        return Fault(dotted, f"{dotted}: got '{raw}', whose brackets or quotes do not close.")
    *groups, last = dotted.split(".")
    nested: Settings = {last: value}
    for name in reversed(groups):
        nested = {name: nested}
    _merge(values, nested, OVERRIDE, origins)
    return None


def _value_for(dotted: str, raw: str, space: KeySpace) -> Value:
    """The override's value; a key that holds text takes the raw text, so `run_dir=2024` needs no quotes."""
    value = parse_value(raw)
    key = space.find(dotted)
    kinds = members(key.field.annotation) if key is not None else ()
    if str in kinds and not {int, float, bool} & set(kinds) and isinstance(value, int | float):
        return raw
    return value


def _lines(values: Mapping[str, Value], provenance: Mapping[str, str], path: tuple[str, ...] = ()) -> Iterator[str]:
    indent = "  " * len(path)
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, provenance, here)
            continue
        source = provenance.get(".".join(here), DEFAULT)
        comment = "" if source == DEFAULT else f"  # {source}"
        yield f"{indent}{name}: {scalar_text(value)}{comment}"

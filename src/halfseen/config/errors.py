"""Turns pydantic's findings about settings into sentences: dotted path, what was given, what is allowed, how to mend.

method.mask_ratio: got 75, expected a float in [0, 1). Write 0.75 for 75 %.
method.name: unknown 'mea'. Known: kamim, mae, simmim. Did you mean 'mae'?
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Literal, NamedTuple, Union, get_args, get_origin

from pydantic import create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from halfseen.config.keys import Key, KeySpace, group_at, literal_values, members, models_of, tag_values
from halfseen.config.yaml_text import show
from halfseen.idle import IdleSettings

YES_NO = {"yes": "true", "on": "true", "no": "false", "off": "false"}
NOTHING = ("none", "off", "")
ENTRY = "entry_of_a_list"


class Fault(NamedTuple):
    """One thing that is wrong: where, and the sentence that says what and how to mend it."""

    dotted: str
    sentence: str


def closest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known words that look most like `word`, best first; capitals don't matter."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.6)
    return [by_lower[name] for name in found]


def did_you_mean(suggestions: Sequence[str]) -> str:
    """' Did you mean ...?', or nothing."""
    if not suggestions:
        return ""
    return f" Did you mean {' or '.join(repr(name) for name in suggestions)}?"


def unknown_word(word: object, known: Sequence[object]) -> str:
    """The sentence for a word that is not among the known ones."""
    names = [str(name) for name in known]
    return f"unknown {show(word)}. Known: {', '.join(sorted(names))}.{did_you_mean(closest(str(word), names))}"


def unknown_key(dotted: str, space: KeySpace, tag: str | None = None) -> str:
    """The sentence for a key that does not exist, with the nearest ones that do."""
    suggestions = nearest_keys(dotted, space, tag)
    if suggestions:
        return f"unknown key.{did_you_mean(suggestions)}"
    parent = tuple(dotted.split(".")[:-1])
    while parent and ".".join(parent) not in space:
        parent = parent[:-1]
    where = f"'{'.'.join(parent)}'" if parent else "a configuration"
    return f"unknown key. Keys of {where}: {', '.join(space.children(parent, tag))}."


def nearest_keys(dotted: str, space: KeySpace, tag: str | None = None) -> list[str]:
    """Up to two existing paths: same last word elsewhere first, then a like path, then a like last word."""
    paths = [path for path in space if tag is None or not space.owners(path) or tag in space.owners(path)]
    last = dotted.split(".")[-1]
    same = [path for path in paths if path.split(".")[-1] == last]
    if same:
        return sorted(same, key=lambda path: -difflib.SequenceMatcher(None, path, dotted).ratio())[:2]
    siblings = [path for path in paths if path.split(".")[:-1] == dotted.split(".")[:-1]]
    near = closest(last, [path.split(".")[-1] for path in siblings])
    if near:
        return [path for path in siblings if path.split(".")[-1] == near[0]]
    like = closest(dotted, paths)
    if like:
        return like
    endings = closest(last, {path.split(".")[-1] for path in paths})
    return [path for path in paths if endings and path.split(".")[-1] == endings[0]][:2]


def expected(annotation: object, metadata: Sequence[object] = ()) -> str:
    """In words, what a field may hold: 'a float in [0, 1)', 'a list of 3 floats', 'one of bf16, fp32'."""
    parts = [_expected_one(part, inner or metadata) for part, inner in _bounded(annotation) if part is not type(None)]
    words = list(dict.fromkeys(parts))
    if type(None) in members(annotation):
        words.append("null")
    return " or ".join(words)


def _bounded(annotation: object) -> list[tuple[object, tuple[object, ...]]]:
    """The types that an annotation allows, each with the bounds that stand beside it alone."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for branch in get_args(annotation) for part in _bounded(branch)]
    return [(part, _metadata_of(annotation)) for part in members(annotation)]


def _expected_one(part: object, metadata: Sequence[object]) -> str:
    if part is bool:
        return "true or false"
    if part is int:
        return f"an integer{_interval(metadata)}"
    if part is float:
        return f"a float{_interval(metadata)}"
    if part is str:
        return "text"
    if part is Path:
        return "a path"
    if get_origin(part) is Literal:
        return f"one of {', '.join(str(value) for value in get_args(part))}"
    if get_origin(part) in (tuple, list):
        return _expected_list(get_args(part), metadata)
    if models_of(part):
        return f"keys with values ({', '.join(models_of(part)[0].model_fields)})"
    if get_origin(part) is dict:
        return "keys with values"
    return getattr(part, "__name__", str(part))


def _expected_list(arguments: tuple[object, ...], metadata: Sequence[object]) -> str:
    inner = [argument for argument in arguments if argument is not Ellipsis]
    kinds = {"groups of keys" if models_of(one) else expected(one, _metadata_of(one)) for one in inner}
    kind = kinds.pop().removeprefix("an ").removeprefix("a ") if len(kinds) == 1 else "values"
    for plural in ("float", "integer"):
        kind = kind.replace(plural, f"{plural}s", 1) if kind.startswith(plural) else kind
    if len(inner) == len(arguments) and get_origin(arguments) is None and len(inner) > 1:
        return f"a list of {len(inner)} {kind}"
    shortest = next((item.min_length for item in metadata if hasattr(item, "min_length")), 0)
    return f"a list of {'at least ' + str(shortest) + ' ' if shortest else ''}{kind}"


def _metadata_of(annotation: object) -> tuple[object, ...]:
    """The bounds inside an `Annotated` type; pydantic's `Field(...)` carries them in its own metadata."""
    found: list[object] = []
    for item in getattr(annotation, "__metadata__", ()):
        found.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return tuple(found)


def bounds(metadata: Sequence[object]) -> tuple[float, bool, float, bool]:
    """(lower, lower is allowed, upper, upper is allowed) from a field's metadata; infinite where there is none."""
    low, low_in, high, high_in = -math.inf, False, math.inf, False
    for item in metadata:
        for name in ("gt", "ge"):
            if getattr(item, name, None) is not None:
                low, low_in = getattr(item, name), name == "ge"
        for name in ("lt", "le"):
            if getattr(item, name, None) is not None:
                high, high_in = getattr(item, name), name == "le"
    return low, low_in, high, high_in


def _interval(metadata: Sequence[object]) -> str:
    low, low_in, high, high_in = bounds(metadata)
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" {'>=' if low_in else '>'} {low:g}"
    if math.isinf(low):
        return f" {'<=' if high_in else '<'} {high:g}"
    return f" in {'[' if low_in else '('}{low:g}, {high:g}{']' if high_in else ')'}"


def remedy(value: object, annotation: object, metadata: Sequence[object]) -> str:
    """How to write what was probably meant; empty when there is no good guess."""
    kinds = members(annotation)
    scalar = next((inner for part, inner in _bounded(annotation) if part is float), ())
    low, _, high, _ = bounds(scalar or metadata)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if float in kinds and isinstance(value, int | float) and number and low >= 0 and high <= 1 and 2 <= value <= 100:
        return f" Write {value / 100:g} for {value:g} %."
    if int in kinds and isinstance(value, float) and value.is_integer() and float not in kinds:
        return f" Write {value:.0f}."
    if isinstance(value, str):
        return _remedy_for_text(value, kinds)
    if str in kinds and (number or isinstance(value, bool)):
        return f' Write "{show(value)}" in quotes.'
    lists = [part for part in kinds if get_origin(part) in (tuple, list)]
    if lists and not isinstance(value, list | dict) and value is not None and not (number and float in kinds):
        count = len([part for part in get_args(lists[0]) if part is not Ellipsis])
        return f" Write [{', '.join([show(value)] * count)}]."
    return ""


def _remedy_for_text(value: str, kinds: Sequence[object]) -> str:
    if bool in kinds and value.lower() in YES_NO:
        return f" Write {YES_NO[value.lower()]}."
    if type(None) in kinds and value.lower() in NOTHING:
        return " Write null for none."
    if any(get_origin(part) in (tuple, list) for part in kinds) and "," in value:
        return f" Write [{value}]."
    if int in kinds or float in kinds:
        try:
            float(value)
        except ValueError:
            return ""
        return " Leave out the quotes."
    return ""


class Translator:
    """Turns the findings of one validation into faults.

    Args:
        space: the keys that exist.
        values: the merged settings that were validated.
        origins: for each dotted path that was set, who set it: "recipe mae_small", "file 'x.yaml'", "override".
    """

    def __init__(self, space: KeySpace, values: Mapping[str, object], origins: Mapping[str, str]) -> None:
        self.space = space
        self.values = values
        self.origins = origins

    def faults(self, details: Iterable[ErrorDetails]) -> list[Fault]:
        """All findings as sentences, in the order of the model; keys left over from another method become one."""
        faults: dict[str, Fault] = {}
        left_over: dict[str, list[str]] = {}
        found = list(details)
        for detail in found:
            if detail["type"] == "too_short" and any(
                len(other["loc"]) > len(detail["loc"]) and other["loc"][: len(detail["loc"])] == detail["loc"]
                for other in found
            ):
                continue  # pydantic doesn't count the entries that have faults of their own
            inside = self._inside_list(detail)
            if inside is not None:
                faults[inside.dotted] = inside
                continue
            path, index, tag = self._place(detail["loc"])
            dotted = ".".join(path)
            union = self._union_above(path) if detail["type"] == "extra_forbidden" else None
            if union is not None and self._is_left_over(union, dotted):
                left_over.setdefault(union.dotted, []).append(dotted)
                continue
            by_rule = detail["type"] in ("value_error", "assertion_error")
            for fault in self._of_rule(detail, dotted) if by_rule else [self._fault(detail, path, index, tag)]:
                known = faults.get(fault.dotted, fault)
                faults[fault.dotted] = fault if known.sentence == fault.sentence else _joined(known, fault)
        switched = [self._switched(dotted, keys) for dotted, keys in left_over.items()]
        return [*switched, *faults.values()]

    def idle(self, details: Iterable[ErrorDetails]) -> list[str]:
        """Dotted paths of the settings that were refused for being without effect (not those within lists)."""
        found = []
        for detail in details:
            error = detail.get("ctx", {}).get("error")
            if isinstance(error, IdleSettings) and not any(isinstance(part, int) for part in detail["loc"]):
                path, _, _ = self._place(detail["loc"])
                found += [".".join((*path, key)) for key in error.keys]
        return found

    def _place(self, loc: Sequence[int | str]) -> tuple[tuple[str, ...], str, str | None]:
        """pydantic's location as (path, '[2]' inside lists, tag of the union above), without the tags in between."""
        path: list[str] = []
        index, tag, open_union = "", None, False
        for part in loc:
            if isinstance(part, int):
                index += f"[{part}]"
                continue
            key = self.space.find(".".join(path), tag) if path else None
            if (
                key is not None
                and key.tag_name
                and part in {t for m in key.models for t in tag_values(m, key.tag_name)}
            ):
                tag, open_union = part, False
            elif open_union and key is not None and key.items is not None:
                open_union = False  # the name of the union's branch that is a list
            elif key is None or key.models:
                path.append(part)
                here = self.space.find(".".join(path), tag)
                open_union = here is not None and here.tag_name is not None
        return tuple(path), index, tag

    def _inside_list(self, detail: ErrorDetails) -> Fault | None:
        """The fault of a finding in an entry of a list of models: the entry is looked at as a configuration."""
        stop = next((place for place, part in enumerate(detail["loc"]) if isinstance(part, int)), None)
        if stop is None:
            return None
        path, _, tag = self._place(detail["loc"][:stop])
        key = self.space.find(".".join(path), tag)
        if key is None or key.items is None:
            return None
        number = detail["loc"][stop]
        group = group_at(self.values, path[:-1]) or {}
        held = group.get(path[-1])
        entry = held[number] if isinstance(held, list) and isinstance(number, int) else None
        entry_model = create_model("Entry", **{ENTRY: (key.items, ...)})  # type: ignore[call-overload]
        space = KeySpace(entry_model)
        found = Translator(space, {ENTRY: entry}, {}).faults([{**detail, "loc": (ENTRY, *detail["loc"][stop + 1 :])}])
        name = f"{key.dotted}[{number}]"
        sentences = [f"{fault.sentence.replace(ENTRY, name)}{self._origin(key.dotted)}" for fault in found]
        return Fault(found[0].dotted.replace(ENTRY, name), "\n".join(sentences))

    def _fault(self, detail: ErrorDetails, path: tuple[str, ...], index: str, tag: str | None) -> Fault:
        dotted = ".".join(path)
        key = self.space.find(dotted, tag) if path else None
        kind, given = detail["type"], detail["input"]
        if kind == "extra_forbidden":
            return Fault(dotted, f"{dotted}: {self._unknown(dotted, tag)}{self._origin(dotted)}")
        if kind in ("union_tag_invalid", "union_tag_not_found") and key is not None and key.tag_name:
            known = [value for model in key.models for value in tag_values(model, key.tag_name)]
            name = f"{dotted}.{key.tag_name}"
            if kind == "union_tag_not_found":
                return Fault(name, f"{name}: missing. Known: {', '.join(sorted(known))}.")
            word = given.get(key.tag_name) if isinstance(given, dict) else given
            return Fault(name, f"{name}: {unknown_word(word, known)}{self._origin(name)}")
        if key is None:
            return Fault(dotted, f"{dotted or 'configuration'}: got {show(given)}. {detail['msg']}.")
        if kind == "missing" and not index:
            return Fault(dotted, f"{dotted}: missing, expected {self._expected(key)}.")
        if kind == "literal_error" and isinstance(given, str):
            return Fault(
                dotted, f"{dotted}: {unknown_word(given, literal_values(key.field.annotation))}{self._origin(dotted)}"
            )
        annotation, metadata = key.field.annotation, key.field.metadata
        hint = "" if index else remedy(given, annotation, metadata)
        if key.models and isinstance(given, str | int | float):
            hint = f" Give one of them, as in {dotted}.{self.space.children(key.path)[0]}={given}."
        inside = f" (at {dotted}{index})" if index and kind != "missing" else ""
        return Fault(
            f"{dotted}{index}",
            f"{dotted}: got {show(given)}{inside}, expected {self._expected(key)}.{hint}{self._origin(dotted)}",
        )

    def _expected(self, key: Key) -> str:
        if key.models:
            tag = self._tag_value(key) if key.tag_name else None
            return f"keys with values ({', '.join(self.space.children(key.path, tag))})"
        return expected(key.field.annotation, key.field.metadata)

    def _unknown(self, dotted: str, tag: str | None) -> str:
        if tag is not None and dotted in self.space:
            owners = sorted(set(self.space.owners(dotted)))
            return f"a key of {', '.join(owners)}, not of '{tag}'. Leave it out, or choose another name."
        return unknown_key(dotted, self.space, tag)

    def _of_rule(self, detail: ErrorDetails, dotted: str) -> list[Fault]:
        """A rule's own sentences, one a line."""
        error = detail.get("ctx", {}).get("error")
        text = str(error) if error is not None else detail["msg"]
        return [self._sentence(line, dotted) for line in text.split("\n")]

    def _sentence(self, text: str, dotted: str) -> Fault:
        """A rule's own sentence; its path is put in front unless the sentence starts with one."""
        start = text.split(":", 1)[0]
        full = f"{dotted}.{start}" if dotted else start
        if start in self.space:
            return Fault(start, f"{text}{self._origin(start)}")
        if full in self.space:
            return Fault(full, f"{dotted}.{text}{self._origin(full)}")
        return Fault(dotted, f"{dotted}: {text}{self._origin(dotted)}" if dotted else text)

    def _origin(self, dotted: str) -> str:
        origin = self.origins.get(dotted, "override")
        return "" if origin == "override" else f" (Set by {origin}.)"

    def _union_above(self, path: tuple[str, ...]) -> Key | None:
        for stop in range(len(path) - 1, 0, -1):
            key = self.space.find(".".join(path[:stop]))
            if key is not None and key.tag_name:
                return key
        return None

    def _tag_value(self, union: Key) -> str | None:
        group = group_at(self.values, union.path)
        value = group.get(union.tag_name) if group is not None and union.tag_name else None
        return value if isinstance(value, str) else None

    def _is_left_over(self, union: Key, dotted: str) -> bool:
        """A key of another member, set by an earlier layer than the one that chose the tag."""
        if dotted not in self.space:
            return False
        chosen_by = self.origins.get(f"{union.dotted}.{union.tag_name}")
        set_by = self.origins.get(dotted)
        return chosen_by is not None and set_by is not None and chosen_by != set_by and set_by != "override"

    def _switched(self, union: str, keys: Sequence[str]) -> Fault:
        key = self.space.find(union)
        tag_name = key.tag_name if key is not None else None
        name = f"{union}.{tag_name}"
        tag = self._tag_value(key) if key is not None else None
        setter = self.origins[keys[0]]
        return Fault(
            name,
            f"{name}: got '{tag}', but {setter} sets keys that '{tag}' does not have: {', '.join(keys)}. "
            f"Start from a recipe of '{tag}' (`halfseen recipes list`) or from no recipe.",
        )


def _joined(first: Fault, second: Fault) -> Fault:
    """Two findings about one key in one place, as one fault."""
    return Fault(first.dotted, f"{first.sentence}\n{second.sentence}")

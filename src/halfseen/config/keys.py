"""The tree of keys that a pydantic model allows, as dotted paths: for did-you-mean, for error messages, for provenance.

A union of models told apart by a `Literal` key (a *tag*, such as `method.name`) puts the keys of all its members under
the same path; `Key.tags` says which members have the key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """One key of a model, or of one member of a union of models.

    Attributes:
        path: names from the root.
        field: pydantic's description of it: type, bounds, default, text.
        tags: values of the union's tag for which the key exists; empty outside unions.
        models: the models that the key may hold; empty for a leaf.
        tag_name: the key that tells `models` apart; None when there is one model or none.
        items: the type of a list's entries where the key may hold a list of models; None where it may not.
    """

    path: Path
    field: FieldInfo
    tags: tuple[str, ...]
    models: tuple[type[BaseModel], ...]
    tag_name: str | None
    items: object | None

    @property
    def dotted(self) -> str:
        """The path as users write it."""
        return ".".join(self.path)


def members(annotation: object) -> tuple[object, ...]:
    """The types that an annotation allows: unions are opened, `Annotated` and named types are unwrapped."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(inner for part in get_args(annotation) for inner in members(part))
    return (annotation,)


def models_of(annotation: object) -> tuple[type[BaseModel], ...]:
    """The pydantic models among the types that an annotation allows."""
    return tuple(part for part in members(annotation) if isinstance(part, type) and issubclass(part, BaseModel))


def items_of(annotation: object) -> object | None:
    """The type of the entries, if an annotation allows a list of models."""
    for part in members(annotation):
        if get_origin(part) in (tuple, list):
            entry: object = get_args(part)[0]
            if models_of(entry):
                return entry
    return None


def literal_values(annotation: object) -> tuple[object, ...]:
    """The words or numbers that an annotation's literals allow."""
    return tuple(value for part in members(annotation) if get_origin(part) is Literal for value in get_args(part))


def tag_of(models: tuple[type[BaseModel], ...]) -> str | None:
    """The field that tells several models apart: a literal in each of them, with different values."""
    if len(models) < 2:
        return None
    for name in models[0].model_fields:
        values = [literal_values(model.model_fields[name].annotation) for model in models if name in model.model_fields]
        flat = [value for part in values for value in part]
        if len(values) == len(models) and all(values) and len(set(flat)) == len(flat):
            return name
    return None


def tag_values(model: type[BaseModel], tag_name: str) -> tuple[str, ...]:
    """The tag values that choose `model`."""
    return tuple(str(value) for value in literal_values(model.model_fields[tag_name].annotation))


def walk(model: type[BaseModel], path: Path = (), tags: tuple[str, ...] = ()) -> Iterator[Key]:
    """All keys below a model, groups before their contents."""
    for name, field in model.model_fields.items():
        models = models_of(field.annotation)
        tag_name = tag_of(models)
        key = Key((*path, name), field, tags, models, tag_name, items_of(field.annotation))
        yield key
        for inner in models:
            yield from walk(inner, key.path, tag_values(inner, tag_name) if tag_name else tags)


def group_at(values: Mapping[str, object], path: Path) -> dict[str, object] | None:
    """The group of nested settings at a path; None where there is none."""
    group: object = values
    for name in path:
        group = group.get(name) if isinstance(group, Mapping) else None
    return group if isinstance(group, dict) else None


class KeySpace:
    """All dotted paths of a model and what each may hold."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self._keys: dict[str, list[Key]] = {}
        for key in walk(model):
            self._keys.setdefault(key.dotted, []).append(key)

    def __contains__(self, dotted: str) -> bool:
        return dotted in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def find(self, dotted: str, tag: str | None = None) -> Key | None:
        """The key of that name; in a union the one of the member that `tag` chooses, else the first."""
        found = self._keys.get(dotted, [])
        for key in found:
            if tag is None or not key.tags or tag in key.tags:
                return key
        return None

    def unions(self) -> list[Key]:
        """The keys whose model is chosen by a tag."""
        return [key for found in self._keys.values() for key in found if key.tag_name is not None]

    def is_chosen(self, key: Key, values: Mapping[str, object]) -> bool:
        """Whether the key belongs to the member that the values choose of the nearest union above it."""
        if not key.tags:
            return True
        for stop in range(len(key.path) - 1, 0, -1):
            union = self.find(".".join(key.path[:stop]))
            if union is not None and union.tag_name is not None:
                group = group_at(values, union.path)
                return group is not None and group.get(union.tag_name) in key.tags
        return True

    def owners(self, dotted: str) -> tuple[str, ...]:
        """The tag values (methods, for instance) under which the key exists."""
        return tuple(tag for key in self._keys.get(dotted, []) for tag in key.tags)

    def children(self, path: Path, tag: str | None = None) -> tuple[str, ...]:
        """The names of the keys directly below a path (of the union member that `tag` chooses)."""
        names = [
            key.path[-1]
            for found in self._keys.values()
            for key in found
            if key.path[:-1] == path and (tag is None or not key.tags or tag in key.tags)
        ]
        return tuple(dict.fromkeys(names))

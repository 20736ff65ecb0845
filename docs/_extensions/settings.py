"""`{settings} module.Model prefix`: a table of every key of a pydantic model, with type, default and description.

The descriptions are those of the fields themselves, so the reference can't fall behind the code.
"""

import importlib
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import annotated_types
from docutils import nodes
from docutils.parsers.rst import Directive
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx


class Row(NamedTuple):
    """One key of the reference."""

    key: str
    kind: str
    default: str
    description: str


def kind_in_words(hint: object) -> str:
    """A type as a user writes it: `float`, `int or null`, `adamw | sgd`, `3 x float`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kind_in_words(arguments[0])
    if origin is typing.Literal:
        return " | ".join(str(value) for value in arguments)
    if origin is tuple and arguments and arguments[-1] is Ellipsis:
        return f"list of {kind_in_words(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} x {kind_in_words(arguments[0])}"
    if origin in (list, frozenset, set):
        return f"list of {kind_in_words(arguments[0])}"
    if arguments:
        words = ["null" if part is type(None) else kind_in_words(part) for part in arguments]
        return " or ".join(dict.fromkeys(words))
    return {"str": "text", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint))
    )


def bounds_in_words(field: FieldInfo) -> str:
    """`> 0, <= 1` from the field's metadata, or an empty text."""
    signs = {annotated_types.Gt: ">", annotated_types.Ge: ">=", annotated_types.Lt: "<", annotated_types.Le: "<="}
    words = []
    for limit in field.metadata:
        for kind, sign in signs.items():
            if isinstance(limit, kind):
                words.append(f"{sign} {getattr(limit, kind.__name__.lower()):g}")
    return ", ".join(words)


def default_in_words(field: FieldInfo) -> str:
    """The default as YAML would show it; a default that depends on the machine says so."""
    if field.default_factory is not None:
        return "by machine"
    if field.is_required():
        return "(required)"
    value = field.default
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return str(value)


def nested_models(hint: object) -> list[type[BaseModel]]:
    """The pydantic models in a field's type: one for a section, several for a union."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for part in typing.get_args(hint) for model in nested_models(part)]


def rows(model: type[BaseModel], prefix: str) -> Iterator[Row]:
    """All keys of a model, sections opened in place; unions of sections are left to their own tables."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        models = nested_models(field.annotation)
        if len(models) == 1:
            yield from rows(models[0], key)
            continue
        if models and all("kind" in variant.model_fields for variant in models):
            yield from variants(models, key)
            continue
        kind = kind_in_words(field.annotation) if not models else "section"
        limits = bounds_in_words(field)
        default = default_in_words(field) if not models else ""
        yield Row(key, f"{kind}, {limits}" if limits else kind, default, field.description or "")


def variants(models: list[type[BaseModel]], prefix: str) -> Iterator[Row]:
    """The keys of a small union told apart by `kind`: all its values in one row, then what each of them adds."""
    kinds = [str(model.model_fields["kind"].default) for model in models]
    yield Row(f"{prefix}.kind", " | ".join(kinds), kinds[0], "; ".join(model.__doc__ or "" for model in models))
    for kind, model in zip(kinds, models, strict=True):
        for row in rows(model, prefix):
            if not row.key.endswith(".kind"):
                yield row._replace(description=f"({kind}) {row.description}")


class Settings(Directive):
    """The directive itself."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table with one row per key."""
        module, _, name = self.arguments[0].rpartition(".")
        model: Any = getattr(importlib.import_module(module), name)
        prefix = self.arguments[1] if len(self.arguments) > 1 else ""
        return [table(("key", "value", "default", "meaning"), list(rows(model, prefix)), widths=(28, 18, 14, 40))]


def table(heading: tuple[str, ...], lines: list[Any], widths: tuple[int, ...]) -> nodes.table:
    """A docutils table; the first column is set as code."""
    group = nodes.tgroup(cols=len(heading))
    group += [nodes.colspec(colwidth=width) for width in widths]
    head, body = nodes.thead(), nodes.tbody()
    head += table_row([nodes.Text(text) for text in heading])
    for first, *others in lines:
        body += table_row([nodes.literal(text=first), *(nodes.Text(text) for text in others)])
    group += [head, body]
    whole = nodes.table()
    whole += group
    return whole


def table_row(cells: list[nodes.Node]) -> nodes.row:
    """One table row."""
    line = nodes.row()
    for cell in cells:
        entry, paragraph = nodes.entry(), nodes.paragraph()
        paragraph += cell
        entry += paragraph
        line += entry
    return line


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True}

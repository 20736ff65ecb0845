"""The part of the page that looks into the encoders: its sections, and the numbers that they are drawn from."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from halfseen.reports.inside.attention import Attention, build_attention
from halfseen.reports.inside.colours import Colours, build_colours
from halfseen.reports.inside.drawn import Drawn, build_figures
from halfseen.reports.inside.looked_at import Inside, Looked
from halfseen.reports.inside.neighbours import Neighbours, build_neighbours
from halfseen.reports.inside.numbers import Note, NumberGroup, analysis_notes, number_groups
from halfseen.reports.inside.packing import Packed, Sheet, picture_uri, thumbnail_sheet
from halfseen.reports.inside.points import Points, build_points
from halfseen.reports.inside.similarity import Explorer, build_explorer
from halfseen.reports.tables import visible

Part = TypeVar("Part")


class EncoderLine(NamedTuple):
    """An encoder of the page: its label, the number of its colour, and what it is."""

    label: str
    colour: int
    story: str


class ShownImage(NamedTuple):
    """An image that can be chosen: its name and class (empty where there is none)."""

    name: str
    label: str

    @property
    def words(self) -> str:
        return f"{self.name}, {self.label}" if self.label else self.name


class InsideView(NamedTuple):
    """Everything that the templates need; a part that is None has no section.

    Attributes:
        data: what the scripts need at once, small.
        blocks: what they decode when a section is first seen, large.
        notes: of each encoder, in sentences.
        problems: what could not be shown.
    """

    encoders: list[EncoderLine]
    story: str
    shown: list[ShownImage]
    aspect: float
    explorer: Explorer | None
    attention: Attention | None
    colours: Colours | None
    neighbours: Neighbours | None
    points: Points | None
    numbers: list[NumberGroup]
    notes: list[Note]
    drawn: Drawn | None
    problems: list[str]
    data: Mapping[str, object]
    blocks: list[Packed]


def view_inside(inside: Inside) -> InsideView | None:
    """The sections; None where there is no analysis and nothing to say about one."""
    problems = [visible(problem) for problem in inside.problems]
    if not inside.encoders:
        return None if not problems else _empty(problems)

    def tried(what: str, build: Callable[[Inside], Part]) -> Part | None:
        try:
            return build(inside)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            problems.append(
                f"{what} can't be shown: the arrays don't fit together ({type(error).__name__}). "
                "Run `halfseen analyze` again."
            )
            return None

    explorer = tried("The patch explorer", build_explorer)
    attention = tried("Attention", build_attention)
    colours = tried("The colours of patches", build_colours)
    neighbours = tried("Nearest neighbours", build_neighbours)
    points = tried("The map of images", build_points)
    drawn = tried("The figures", build_figures)
    sheet = tried("Thumbnails", _sheet)
    if sheet is None:
        if neighbours is not None or points is not None:
            problems.append(
                "Without neighbours and map: this analysis kept no thumbnails. Run `halfseen analyze` again."
            )
        neighbours = points = None
    # As many as any part shows, and of those the largest.
    pictures = max((each.arrays["images/shown"] for each in inside.encoders), key=lambda shown: shown.shape[:2])
    shown = [ShownImage(inside.name_of(place), inside.class_of(place)) for place in range(len(pictures))]
    aspect = pictures.shape[2] / pictures.shape[1]
    blocks = [Packed(f"picture-{place}", picture_uri(pixels)) for place, pixels in enumerate(pictures)]
    for part in (explorer, attention, colours, drawn):
        blocks += [] if part is None else part.blocks
    if sheet is not None:
        blocks.append(Packed("thumbnails", sheet.uri))
    n = len(inside.labels)
    data = {
        "aspect": aspect,
        "shown": [each._asdict() for each in shown],
        "encoders": [each.label for each in inside.encoders],
        "names": [] if sheet is None else [inside.name_of(place) for place in range(n)],
        "classes": [] if sheet is None else [inside.class_of(place) for place in range(n)],
        "sheet": None if sheet is None else {"columns": sheet.columns, "rows": sheet.rows, "side": sheet.side},
        "explorer": None if explorer is None else [each._asdict() for each in explorer.encoders],
        "attention": None if attention is None else [each._asdict() for each in attention.encoders],
        "colours": None if colours is None else [each._asdict() for each in colours.encoders],
        "neighbours": None if neighbours is None else [each._asdict() for each in neighbours.encoders],
        "points": None
        if points is None
        else {
            "encoders": [each._asdict() for each in points.encoders],
            "labels": points.labels,
            "classes": [name for name, _ in points.classes],
            "many": points.many,
        },
    }
    return InsideView(
        [EncoderLine(each.label, each.colour % 6, _story(each)) for each in inside.encoders],
        _about(inside, len(pictures)),
        shown,
        aspect,
        explorer,
        attention,
        colours,
        neighbours,
        points,
        number_groups(inside),
        analysis_notes(inside),
        drawn,
        problems,
        data,
        blocks,
    )


def _empty(problems: list[str]) -> InsideView:
    return InsideView([], "", [], 1.0, None, None, None, None, None, [], [], None, problems, {}, [])


def _story(encoder: Looked) -> str:
    row = encoder.files.row
    role = f", {visible(row.role)}" if row.role else ""
    rows, columns = row.grid
    # Not `patch_size`: a Swin merges its first patches.
    side = f" of {row.image_size // rows} px" if rows == columns > 0 else ""
    return (
        f"{row.num_layers} blocks, {row.embed_dim} features{role}; {row.image_size} px in {rows} x {columns} "
        f"tokens{side}"
    )


def _about(inside: Inside, shown: int) -> str:
    data = inside.analyses[0].summary.data
    split = f" ({visible(data.split)})" if data.split else ""
    return (
        f"{data.n:,} image{'' if data.n == 1 else 's'} of {visible(data.source)}{split} were looked at; "
        f"{shown} of them {'is' if shown == 1 else 'are'} shown."
    )


def _sheet(inside: Inside) -> Sheet | None:
    found = inside.having("images/thumbnails")
    if not found:
        return None
    thumbnails = max((each.arrays["images/thumbnails"] for each in found), key=lambda stack: stack.shape[1])
    if len(thumbnails) != len(inside.labels):
        raise ValueError("thumbnails of other images")
    return thumbnail_sheet(np.asarray(thumbnails, dtype=np.uint8))

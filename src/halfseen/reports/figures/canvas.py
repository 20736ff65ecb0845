"""What all figures share: axes without a window, one look for each encoder, labels, boxes and shades."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.reports.analysis_files import AnalysisFiles, AnalyzedEncoderFiles
from halfseen.reports.tables import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
MARKERS = "os^DvPX"
PANEL = 3.4
"""Side of a panel in inches."""
MOST_SHOWN = 5

Numbers = NDArray[np.float64]
Sharing = Literal["none", "all", "row", "col"]


class Line(NamedTuple):
    """One encoder's look in every figure."""

    name: str
    colour: str
    marker: str


def new_figure(width: float, height: float) -> "Figure":
    """A figure without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(
    rows: int,
    columns: int,
    width: float = PANEL,
    height: float = PANEL,
    *,
    sharex: Sharing = "none",
    sharey: Sharing = "none",
) -> "tuple[Figure, NDArray[np.object_]]":
    """A grid of axes, and its figure."""
    figure = new_figure(width * columns + 0.6, height * rows + 0.4)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def line_of(files: AnalysisFiles, encoder: AnalyzedEncoderFiles) -> Line:
    """The same colour and marker for an encoder in all figures."""
    place = [each.row.name for each in files.encoders].index(encoder.row.name)
    return Line(plain(encoder.row.name), COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])


def plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar sign would begin a formula."""
    return visible(text).replace("$", r"\$")


def plot_curve(axis: "Axes", line: Line, x: NDArray[np.generic], y: NDArray[np.generic]) -> None:
    axis.plot(x, y, color=line.colour, marker=line.marker, markersize=4.5, linewidth=1.4, label=line.name)


def finish_axis(axis: "Axes", x: str, y: str, legend: bool = True) -> None:
    if axis.get_yscale() == "linear":
        axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(fontsize=8, frameon=False)


def count_in_whole_numbers(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def write_title(figure: "Figure", text: str) -> None:
    """A title that is broken into lines where the figure is narrow."""
    import textwrap

    figure.suptitle("\n".join(textwrap.wrap(text, int(13 * figure.get_size_inches()[0]))), fontsize=9)


def show_picture(axis: "Axes", picture: NDArray[np.generic]) -> None:
    axis.imshow(picture, interpolation="nearest")
    strip_axis(axis)


def strip_axis(axis: "Axes") -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def name_rows(axes: NDArray[np.object_], names: Sequence[str]) -> None:
    for line, name in zip(axes, names, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)


def mark_query(axis: "Axes", encoder: AnalyzedEncoderFiles, query: NDArray[np.generic], pixels: bool) -> None:
    """A red square around the patch that looks."""
    size = encoder.row.patch_size if pixels else 1.0
    mark_rectangle(axis, (int(query[0]), int(query[1])), size, -0.5)


def mark_rectangle(axis: "Axes", place: tuple[int, int], size: float, offset: float = -0.5) -> None:
    from matplotlib.patches import Rectangle

    corner = (place[1] * size + offset, place[0] * size + offset)
    axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor="tab:red", linewidth=2))


def shade(share: float) -> tuple[float, float, float, float]:
    """A colour of the plasma map, without its palest end."""
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["plasma"](0.92 * float(share))
    return red, green, blue, alpha


def add_depth_bar(figure: "Figure", axes: NDArray[np.object_], found: Sequence[AnalyzedEncoderFiles]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("depth", [shade(share) for share in np.linspace(0, 1, 64)])
    figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axes, label="normalised depth", shrink=0.8)

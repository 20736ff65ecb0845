"""Figures of how layers align, and of how patch tokens lie to each other."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from halfseen.reports.analysis_files import AnalysisFiles, AnalyzedEncoderFiles
from halfseen.reports.figures.canvas import (
    COLOURS,
    count_in_whole_numbers,
    finish_axis,
    line_of,
    panels,
    plain,
    plot_curve,
    strip_axis,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def alignment_of_images(files: AnalysisFiles) -> "Figure | None":
    return _alignment(files, "images", "Linear CKA of mean tokens, image by image")


def alignment_of_tokens(files: AnalysisFiles) -> "Figure | None":
    return _alignment(files, "tokens", "Linear CKA token by token")


def _alignment(files: AnalysisFiles, array: str, title: str) -> "Figure | None":
    found = files.having(f"cka/{array}")
    if not found:
        return None
    count = len(found)
    figure, axes = panels(count, count, 2.9, 2.9)
    image = None
    for row, first in enumerate(found):
        for column, second in enumerate(found):
            axis = axes[row, column]
            values = _between(files, first, second, array)
            if values is None:
                axis.text(0.5, 0.5, "not defined:\nother patch grid", ha="center", va="center", fontsize=8)
                strip_axis(axis)
                continue
            image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", interpolation="nearest")
            axis.set_ylabel(f"{plain(first.row.name)}\nlayer" if column == 0 else "")
            axis.set_xlabel(f"layer\n{plain(second.row.name)}" if row == count - 1 else "")
            count_in_whole_numbers(axis)
    if image is not None:
        figure.colorbar(image, ax=axes, label="CKA", shrink=0.7)
    write_title(figure, title)
    return figure


def _between(
    files: AnalysisFiles, first: AnalyzedEncoderFiles, second: AnalyzedEncoderFiles, array: str
) -> NDArray[np.generic] | None:
    if first is second:
        return first.arrays[f"cka/{array}"]
    forth = files.between.get(f"{first.row.name}|{second.row.name}/{array}")
    back = files.between.get(f"{second.row.name}|{first.row.name}/{array}")
    return forth if forth is not None else None if back is None else back.T


def cosine_distance(files: AnalysisFiles) -> "Figure | None":
    found = files.having("geometry/cosines")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        plot_curve(
            axes[0, 0],
            line_of(files, encoder),
            np.asarray(encoder.arrays["geometry/distances"]),
            np.asarray(encoder.arrays["geometry/cosines"], dtype=np.float64),
        )
    count_in_whole_numbers(axes[0, 0])
    finish_axis(axes[0, 0], "Manhattan distance (patches)", "Mean cosine similarity of patch tokens")
    return figure


def variance_parts(files: AnalysisFiles) -> "Figure | None":
    found = [each for each in files.encoders if each.row.numbers.get("variance_within") is not None]
    if not found:
        return None
    figure, axes = panels(1, 1, max(3.2, 1.3 * len(found) + 1.5), 4.0)
    axis = axes[0, 0]
    places = np.arange(len(found))
    below = np.zeros(len(found))
    for key, label, colour, hatch in (
        ("variance_within", "within images", COLOURS[0], ""),
        ("variance_across", "across images", COLOURS[4], "//"),
    ):
        heights = np.array([each.row.numbers.get(key) or 0.0 for each in found])
        axis.bar(places, heights, 0.6, bottom=below, color=colour, hatch=hatch, edgecolor="white", label=label)
        below = below + heights
    axis.set_xticks(places, [plain(each.row.name) for each in found], rotation=20, ha="right")
    finish_axis(axis, "", "Variance of patch tokens")
    return figure

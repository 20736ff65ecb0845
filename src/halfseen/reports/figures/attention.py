"""Figures of attention: how far it looks, how alike its maps are, and the maps themselves."""

from typing import TYPE_CHECKING

import numpy as np

from halfseen.reports.analysis_files import AnalysisFiles
from halfseen.reports.figures.canvas import (
    MOST_SHOWN,
    count_in_whole_numbers,
    finish_axis,
    line_of,
    mark_query,
    name_rows,
    panels,
    plain,
    plot_curve,
    show_picture,
    strip_axis,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _per_head(files: AnalysisFiles, array: str) -> "tuple[Figure, Axes] | None":
    """A measure of attention over the blocks: a dot for each head, a line through their means."""
    found = files.having(array)
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    axis = axes[0, 0]
    for encoder in found:
        line = line_of(files, encoder)
        heads = np.asarray(encoder.arrays[array], dtype=np.float64).mean(axis=1)  # [L, heads]
        depth = np.arange(1, len(heads) + 1)
        axis.scatter(np.repeat(depth, heads.shape[1]), heads.ravel(), s=7, color=line.colour, alpha=0.3, linewidth=0)
        plot_curve(axis, line, depth, heads.mean(axis=1))
    count_in_whole_numbers(axis)
    return figure, axis


def attention_distance(files: AnalysisFiles) -> "Figure | None":
    drawn = _per_head(files, "attention/distance")
    if drawn is None:
        return None
    figure, axis = drawn
    uniform = {
        round(float(each.arrays["attention/uniform_distance"]), 3) for each in files.having("attention/distance")
    }
    for value in sorted(uniform):
        axis.axhline(value, color="0.35", linestyle=":", linewidth=1.2, label=f"uniform attention ({value:.1f} px)")
    axis.set_ylim(bottom=0)
    finish_axis(axis, "Depth (block)", "Attention distance (px)")
    return figure


def attention_information(files: AnalysisFiles) -> "Figure | None":
    drawn = _per_head(files, "attention/information")
    if drawn is None:
        return None
    figure, axis = drawn
    axis.set_ylim(bottom=0)
    finish_axis(axis, "Depth (block)", "Normalised mutual information\n(0 = all queries have the same map)")
    return figure


def attention_maps(files: AnalysisFiles) -> "Figure | None":
    """The last block's first head, for the first query, on some images."""
    found = files.having("attention/maps")
    if not found:
        return None
    count = min(MOST_SHOWN, len(found[0].arrays["images/shown"]))
    figure, axes = panels(1 + len(found), count, 1.5, 1.5)
    for column in range(count):
        show_picture(axes[0, column], found[0].arrays["images/shown"][column])
        mark_query(axes[0, column], found[0], np.asarray(found[0].arrays["attention/queries"])[0], pixels=True)
        for row, encoder in enumerate(found, start=1):
            looked = np.asarray(encoder.arrays["attention/maps"][-1, column, 0, 0], dtype=np.float64)
            axes[row, column].imshow(looked, cmap="plasma", interpolation="nearest")
            mark_query(axes[row, column], encoder, np.asarray(encoder.arrays["attention/queries"])[0], pixels=False)
            strip_axis(axes[row, column])
    name_rows(axes, ["image, query boxed", *(plain(each.row.name) for each in found)])
    write_title(figure, "Attention of the boxed patch: last block, first head (each map over its own range)")
    return figure


def attention_heads(files: AnalysisFiles) -> "Figure | None":
    """Every head of some blocks, for one image and query; encoders below each other."""
    found = files.having("attention/maps")
    if not found:
        return None
    rows = [(encoder, block) for encoder in found for block in _three(len(encoder.arrays["attention/maps"]))]
    most = max(each.arrays["attention/maps"].shape[2] for each in found)
    figure, axes = panels(len(rows), most, 0.95, 0.95)
    for line, (encoder, block) in zip(axes, rows, strict=True):
        maps = np.asarray(encoder.arrays["attention/maps"][block, 0, :, 0], dtype=np.float64)
        for head, axis in enumerate(line):
            if head < len(maps):
                axis.imshow(maps[head], cmap="plasma", interpolation="nearest")
            else:
                axis.set_visible(False)
            strip_axis(axis)
    name_rows(axes, [f"{plain(encoder.row.name)}\nblock {block + 1}" for encoder, block in rows])
    write_title(figure, "Attention of one patch by head, first image (each map over its own range)")
    return figure


def _three(layers: int) -> list[int]:
    return sorted({0, layers // 2, layers - 1})

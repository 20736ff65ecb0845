"""Figures of frequencies, variance and singular values over the depth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from halfseen.reports.analysis_files import AnalysisFiles
from halfseen.reports.figures.canvas import (
    PANEL,
    add_depth_bar,
    count_in_whole_numbers,
    finish_axis,
    line_of,
    panels,
    plain,
    plot_curve,
    shade,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fourier_depth(files: AnalysisFiles) -> "Figure | None":
    found = files.having("fourier/highest")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        depth = np.asarray(encoder.arrays["fourier/depth"], dtype=np.float64)
        whole = depth == np.round(depth)
        plot_curve(
            axes[0, 0], line_of(files, encoder), depth[whole], np.asarray(encoder.arrays["fourier/highest"])[whole]
        )
    count_in_whole_numbers(axes[0, 0])
    finish_axis(axes[0, 0], "Depth (0 = patch embedding)", "Δ log amplitude at the highest frequency")
    return figure


def fourier_curves(files: AnalysisFiles) -> "Figure | None":
    found = files.having("fourier/relative_log_amplitude")
    if not found:
        return None
    figure, axes = panels(1, len(found), sharey="all")
    for axis, encoder in zip(axes[0], found, strict=True):
        depth = np.asarray(encoder.arrays["fourier/depth"], dtype=np.float64)
        curves = np.asarray(encoder.arrays["fourier/relative_log_amplitude"], dtype=np.float64)
        sides = np.asarray(encoder.arrays["fourier/side"])
        for number in np.flatnonzero(depth == np.round(depth)):
            curve = curves[number][np.isfinite(curves[number])]
            frequency = np.arange(len(curve)) / (sides[number] / 2)
            axis.plot(frequency, curve, color=shade(depth[number] / depth.max()), linewidth=1.3)
        axis.set_title(plain(encoder.row.name), fontsize=9)
        axis.set_xlim(0, 1)
        finish_axis(axis, "Frequency (× π)", "Δ log amplitude" if encoder is found[0] else "", legend=False)
    add_depth_bar(figure, axes, found)
    return figure


def fourier_sublayers(files: AnalysisFiles) -> "Figure | None":
    found = files.having("fourier/highest")
    if not found:
        return None
    figure, axes = panels(1, len(found), sharey="all")
    for axis, encoder in zip(axes[0], found, strict=True):
        line = line_of(files, encoder)
        depth = np.asarray(encoder.arrays["fourier/depth"], dtype=np.float64)
        last = depth.max()
        for block in range(int(last)):
            axis.axvspan(block / last, (block + 0.5) / last, color="0.9", linewidth=0)
        plot_curve(axis, line, depth / last, np.asarray(encoder.arrays["fourier/highest"], dtype=np.float64))
        axis.set_title(f"{line.name}\n(attention shaded)", fontsize=9)
        axis.set_xlim(0, 1)
        finish_axis(
            axis, "Normalised depth", "Δ log amplitude at the highest frequency" if encoder is found[0] else "", False
        )
    return figure


def feature_variance(files: AnalysisFiles) -> "Figure | None":
    found = files.having("fourier/variance")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        depth = np.asarray(encoder.arrays["fourier/depth"], dtype=np.float64)
        values = np.asarray(encoder.arrays["fourier/variance"], dtype=np.float64)
        plot_curve(axes[0, 0], line_of(files, encoder), depth / depth.max(), values)
    low, high = axes[0, 0].get_ylim()
    wide = low > 0 and high / low > 20
    axes[0, 0].set_yscale("log" if wide else "linear")
    finish_axis(axes[0, 0], "Normalised depth", "Feature map variance" + (" (log scale)" if wide else ""))
    return figure


def singular_values(files: AnalysisFiles) -> "Figure | None":
    rows = (
        ("spectra/token_before", "before attention\nlog $s_k$ − log $s_1$"),
        ("spectra/token_after", "after attention\nlog $s_k$ − log $s_1$"),
        ("spectra/token_change", "change by attention\nΔ log $s_k$"),
    )
    return _spectra(files, rows, "Singular values of the tokens of one image, mean over images")


def singular_values_of_images(files: AnalysisFiles) -> "Figure | None":
    rows = (
        ("spectra/image_before", "before attention\nlog $s_k$ − log $s_1$"),
        ("spectra/image_after", "after attention\nlog $s_k$ − log $s_1$"),
    )
    return _spectra(files, rows, "Singular values of the images' mean tokens")


def _spectra(files: AnalysisFiles, rows: Sequence[tuple[str, str]], title: str) -> "Figure | None":
    found = files.having(rows[0][0])
    if not found:
        return None
    figure, axes = panels(len(rows), len(found), PANEL, 2.6, sharex="col", sharey="row")
    for column, encoder in enumerate(found):
        for row, (array, label) in enumerate(rows):
            curves = np.asarray(encoder.arrays[array], dtype=np.float64)
            for number, curve in enumerate(curves):
                ranks = np.arange(1, len(curve) + 1)
                axes[row, column].plot(ranks, curve, color=shade((number + 1) / len(curves)), linewidth=1.1)
            finish_axis(axes[row, column], "Rank" if row == len(rows) - 1 else "", label if column == 0 else "", False)
            if "change" in array:
                axes[row, column].axhline(0, color="0.4", linestyle=":", linewidth=1)
        axes[0, column].set_title(plain(encoder.row.name), fontsize=9)
    add_depth_bar(figure, axes, found)
    write_title(figure, title)
    return figure


def singular_change(files: AnalysisFiles) -> "Figure | None":
    """The change by attention at a quarter of the ranks, over the blocks."""
    found = files.having("spectra/token_change")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        line = line_of(files, encoder)
        change = np.asarray(encoder.arrays["spectra/token_change"], dtype=np.float64)
        rank = max(1, int(np.isfinite(change).sum(axis=1).min()) // 4)
        shown = line._replace(name=f"{line.name} (rank {rank})")
        plot_curve(axes[0, 0], shown, np.asarray(encoder.arrays["spectra/layers"]), change[:, rank - 1])
    axes[0, 0].axhline(0, color="0.4", linestyle=":", linewidth=1)
    count_in_whole_numbers(axes[0, 0])
    finish_axis(axes[0, 0], "Depth (block)", "Change of the log singular value by attention")
    return figure

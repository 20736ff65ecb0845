"""Figures of ranks, probes and robustness to noise."""

from typing import TYPE_CHECKING

import numpy as np

from halfseen.reports.analysis_files import AnalysisFiles
from halfseen.reports.figures.canvas import (
    COLOURS,
    count_in_whole_numbers,
    finish_axis,
    line_of,
    panels,
    plain,
    plot_curve,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def eigenvalues(files: AnalysisFiles) -> "Figure | None":
    found = files.having("rank/eigenvalues_mean")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        line = line_of(files, encoder)
        values = np.asarray(encoder.arrays["rank/eigenvalues_mean"], dtype=np.float64)
        values = values[values > values[0] * 1e-10]
        effective = encoder.row.numbers.get("rankme_mean")
        label = line.name if effective is None else f"{line.name} (RankMe {effective:.1f})"
        axes[0, 0].plot(
            np.arange(1, len(values) + 1), values / values[0], color=line.colour, linewidth=1.4, label=label
        )
    axes[0, 0].set(xscale="log", yscale="log")
    finish_axis(axes[0, 0], "Rank (log scale)", "Eigenvalue of the features' covariance over the largest")
    return figure


def patch_probe(files: AnalysisFiles) -> "Figure | None":
    found = files.having("probe/losses")
    if not found:
        return None
    figure, axes = panels(1, 1, max(4.2, 1.6 * len(found) + 2.0), 4.0)
    axis = axes[0, 0]
    bars = (
        ("probe_train", "training patches (original)", COLOURS[5]),
        ("probe_held_out", "held-out images", COLOURS[0]),
        ("probe_most_frequent", "most frequent class", "0.7"),
    )
    for number, (key, label, colour) in enumerate(bars):
        heights = [100 * (each.row.numbers.get(key) or 0.0) for each in found]
        axis.bar(np.arange(len(found)) + (number - 1) * 0.26, heights, 0.25, color=colour, label=label)
    axis.set_xticks(np.arange(len(found)), [plain(each.row.name) for each in found], rotation=20, ha="right")
    axis.set_ylim(0, 100)
    finish_axis(axis, "", "Patch probe accuracy (%)")
    return figure


def layer_probe(files: AnalysisFiles) -> "Figure | None":
    found = files.having("layers/accuracy")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        accuracy = 100 * np.asarray(encoder.arrays["layers/accuracy"], dtype=np.float64)
        plot_curve(axes[0, 0], line_of(files, encoder), np.asarray(encoder.arrays["layers/depth"]), accuracy)
    axes[0, 0].set_ylim(0, 100)
    count_in_whole_numbers(axes[0, 0])
    finish_axis(axes[0, 0], "Depth (0 = patch embedding)", "Linear probe, held-out images (top-1, %)")
    return figure


def noise_robustness(files: AnalysisFiles) -> "Figure | None":
    found = files.having("noise/frequencies")
    if not found:
        return None
    accurate = files.having("noise/accuracy_change")
    figure, axes = panels(1, 2 if accurate else 1)
    for encoder in found:
        frequency = np.asarray(encoder.arrays["noise/frequencies"], dtype=np.float64) / np.pi
        agreement = np.asarray(encoder.arrays["noise/agreement"], dtype=np.float64)
        plot_curve(axes[0, -1], line_of(files, encoder), frequency, agreement)
        if encoder in accurate:
            change = 100 * np.asarray(encoder.arrays["noise/accuracy_change"], dtype=np.float64)
            plot_curve(axes[0, 0], line_of(files, encoder), frequency, change)
    if accurate:
        axes[0, 0].axhline(0, color="0.4", linestyle=":", linewidth=1)
        finish_axis(axes[0, 0], "Frequency of the noise (× π)", "Δ accuracy (percentage points)")
    finish_axis(axes[0, -1], "Frequency of the noise (× π)", "Cosine of noisy and clean image")
    return figure

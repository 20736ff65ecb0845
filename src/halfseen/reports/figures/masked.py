"""Figures of half-seen images: agreement, neighbours, reconstructions."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from halfseen.reports.analysis_files import AnalysisFiles, AnalyzedEncoderFiles
from halfseen.reports.figures.canvas import (
    COLOURS,
    MOST_SHOWN,
    PANEL,
    finish_axis,
    line_of,
    name_rows,
    panels,
    plain,
    plot_curve,
    show_picture,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def masked_agreement(files: AnalysisFiles) -> "Figure | None":
    """Three curves over the share of dropped patches: agreement, own image first, precision."""
    found = files.having("masking/ratios")
    if not found:
        return None
    rows = (
        ("agreement", "Cosine of masked and whole image"),
        ("own_first", "Own image is the nearest (share)"),
        ("precision", "Neighbours of the same class (share)"),
    )
    figure, axes = panels(1, len(rows))
    for axis, (array, label) in zip(axes[0], rows, strict=True):
        for encoder in found:
            ratios = np.asarray(encoder.arrays["masking/ratios"], dtype=np.float64)
            values = np.asarray(encoder.arrays[f"masking/{array}"], dtype=np.float64)
            line = line_of(files, encoder)
            if np.isfinite(values).any():
                plot_curve(axis, line, ratios, values)
            if array == "agreement":
                spread = np.asarray(encoder.arrays["masking/agreement_std"], dtype=np.float64)
                axis.fill_between(ratios, values - spread, values + spread, color=line.colour, alpha=0.15, linewidth=0)
        axis.set_ylim(top=1.02)
        if array != "agreement":
            axis.set_ylim(bottom=0)
        finish_axis(axis, "Share of patches dropped", label, legend=bool(axis.lines))
    return figure


def masked_training(files: AnalysisFiles) -> "Figure | None":
    """What a classifier that has learned half-seen images knows of whole ones."""
    found = files.having("masking/learned_accuracy")
    if not found:
        return None
    figure, axes = panels(1, 1, 4.6, PANEL)
    for encoder in found:
        ratios = np.asarray(encoder.arrays["masking/learned_ratios"], dtype=np.float64)
        plot_curve(axes[0, 0], line_of(files, encoder), ratios, np.asarray(encoder.arrays["masking/learned_accuracy"]))
    axes[0, 0].set_ylim(0, 1.02)
    finish_axis(axes[0, 0], "Share of patches dropped while learning", "Accuracy on whole images")
    return figure


def masked_neighbours(files: AnalysisFiles) -> "Figure | None":
    """Whole images near a half-seen one, mask by mask: retrieval, not generation."""
    found = files.having("masking/gallery")
    if not found:
        return None
    masks, most = found[0].arrays["masking/nearest"].shape[1:]
    figure, axes = panels(len(found) * masks, 2 + most, 1.15, 1.15)
    names = []
    for number, encoder in enumerate(found):
        arrays = encoder.arrays
        places = [int(place) for place in arrays["masking/gallery_places"]]
        for mask in range(masks):
            line = axes[number * masks + mask]
            show_picture(line[0], arrays["images/shown"][0])
            show_picture(line[1], _half_hidden(arrays["images/shown"][0], arrays["masking/hidden"][0, mask], encoder))
            for axis, place in zip(line[2:], arrays["masking/nearest"][0, mask], strict=True):
                show_picture(axis, arrays["masking/gallery"][places.index(int(place))])
                if masks > 1 and (arrays["masking/nearest"][0] == place).any(axis=-1).all():
                    axis.spines[:].set(visible=True, color=COLOURS[2], linewidth=2.5)
            names.append(f"{plain(encoder.row.name)}\nmask {mask + 1}")
    for axis, title in zip(
        axes[0], ["whole query", "what is seen", *(f"near {k + 1}" for k in range(most))], strict=True
    ):
        axis.set_title(title, fontsize=8)
    name_rows(axes, names)
    write_title(
        figure, "Nearest whole images of a half-seen one (retrieval, not generation); framed: near with every mask"
    )
    return figure


def _half_hidden(
    image: NDArray[np.generic], hidden: NDArray[np.generic], encoder: AnalyzedEncoderFiles
) -> NDArray[np.generic]:
    """The picture with hidden patches grey."""
    rows, columns = encoder.row.grid
    cell = encoder.row.patch_size
    grey = np.repeat(np.repeat(hidden.reshape(rows, columns), cell, axis=0), cell, axis=1)
    seen = image.copy()
    seen[: grey.shape[0], : grey.shape[1]][grey] = 128
    return seen


def reconstruction(files: AnalysisFiles) -> "Figure | None":
    found = files.having("reconstruction/predicted")
    if not found:
        return None
    count = min(MOST_SHOWN, len(found[0].arrays["reconstruction/original"]))
    figure, axes = panels(3 * len(found), count, 1.5, 1.5)
    names = []
    for number, encoder in enumerate(found):
        arrays = encoder.arrays
        for column in range(count):
            original = arrays["reconstruction/original"][column]
            masked = original.copy()
            masked[arrays["reconstruction/hidden"][column]] = 128
            pictures = (original, masked, arrays["reconstruction/predicted"][column])
            for row, picture in enumerate(pictures):
                show_picture(axes[3 * number + row, column], picture)
        score = encoder.row.numbers.get("psnr_pixel_masked")
        names += ["original", "masked", plain(encoder.row.name) + ("" if score is None else f"\n{score:.1f} dB hidden")]
    name_rows(axes, names)
    return figure

"""Figures of patch tokens: similarity maps, colours, and clouds of points."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from halfseen.reports.analysis_files import AnalysisFiles, AnalyzedEncoderFiles
from halfseen.reports.figures.canvas import (
    COLOURS,
    MOST_SHOWN,
    finish_axis,
    mark_rectangle,
    name_rows,
    new_figure,
    panels,
    plain,
    shade,
    show_picture,
    strip_axis,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST, MOST = -0.5, 1.0
"""Range of the similarities' colours, the same for all encoders."""


def similarity_maps(files: AnalysisFiles) -> "Figure | None":
    """Similarity of reference patches to all others, for the first image; a column for each encoder."""
    found = files.having("similarity/pairs.final")
    if not found:
        return None
    names = [name.replace("_", " ") for name in _reference_names(files, found[0])]
    masked = "images/pixel_classes" in found[0].arrays
    tops = ["image", "classes of\nits pixels"] if masked else ["image"]
    figure = new_figure(3.0 * len(found) + 0.9, 2.6 * (len(names) + len(tops)))
    axes = figure.subplots(len(names) + len(tops), len(found), squeeze=False)
    for column, encoder in enumerate(found):
        references = np.asarray(encoder.arrays["images/references"])[0]
        rows, columns = (int(side) for side in encoder.arrays["similarity/grid.final"])
        show_picture(axes[0, column], encoder.arrays["images/shown"][0])
        axes[0, column].set_title(plain(encoder.row.name), fontsize=9)
        size = encoder.arrays["images/shown"].shape[1] / rows
        if masked:
            axes[1, column].imshow(
                _shades(encoder, len(files.summary.mask_names)), cmap="gray", interpolation="nearest"
            )
            strip_axis(axes[1, column])
        for number, reference in enumerate(references):
            place = divmod(int(reference), columns)
            mark_rectangle(axes[0, column], place, size)
            axes[0, column].text(
                (place[1] + 0.5) * size,
                (place[0] + 0.5) * size,
                str(number + 1),
                color="tab:red",
                ha="center",
                va="center",
            )
            pairs = np.asarray(encoder.arrays["similarity/pairs.final"][0, int(reference)], dtype=np.float64)
            axis = axes[number + len(tops), column]
            image = axis.imshow(pairs.reshape(rows, columns), vmin=LEAST, vmax=MOST, cmap="viridis")
            mark_rectangle(axis, place, 1.0, -0.5)
            strip_axis(axis)
            if column == len(found) - 1:
                figure.colorbar(image, ax=axis, label="cosine similarity", shrink=0.85)
    name_rows(axes, [*tops, *(f"{number}: {name}" for number, name in enumerate(names, start=1))])
    write_title(figure, "Patch token cosine similarity (reference patch vs all patches)")
    return figure


def _shades(encoder: AnalyzedEncoderFiles, count: int) -> NDArray[np.generic]:
    """The first image's classes of pixels, those that it has evenly over a scale; NaN where there is none."""
    classes = np.asarray(encoder.arrays["images/pixel_classes"][0])
    shades = np.searchsorted(np.unique(classes), classes).astype(np.float64)
    shades[classes >= count] = np.nan
    return shades


def similarity_facts(files: AnalysisFiles) -> dict[str, JsonValue] | None:
    """What the figure of similarities shows, under the names that ViNy's diagnostics write beside theirs.

    `grid_size` and `refs` are the first encoder's; those of encoders with other patches are in `other_grids`. A label
    is the number of a class of pixels: null where the data has none of that kind, or several.
    """
    found = files.having("similarity/pairs.final")
    if not found:
        return None
    classes = files.summary.mask_names
    objects = [number for number, name in enumerate(classes) if name not in ("background", "border")]
    labels: dict[str, JsonValue] = {
        "fg": objects[0] if len(objects) == 1 else None,
        "bg": classes.index("background") if "background" in classes else None,
        "boundary": classes.index("border") if "border" in classes else None,
    }
    grids = {each.row.name: _references(files, each) for each in found}
    first = next(iter(grids.values()))
    names: list[JsonValue] = [each.row.name for each in found]
    return {
        "idx": int(np.asarray(found[0].arrays["images/indices"])[0]),
        **first,
        "n_classes": len(classes),
        "labels": labels,
        "encoders": names,
        "fixed_vmin": LEAST,
        "fixed_vmax": MOST,
        "other_grids": {name: grid for name, grid in grids.items() if grid["grid_size"] != first["grid_size"]},
    }


def _references(files: AnalysisFiles, encoder: AnalyzedEncoderFiles) -> dict[str, JsonValue]:
    """An encoder's reference patches of the first image, by name, and the side of its grid."""
    numbers = [int(patch) for patch in np.asarray(encoder.arrays["images/references"])[0]]
    refs: dict[str, JsonValue] = dict(zip(_reference_names(files, encoder), numbers, strict=True))
    return {"grid_size": int(encoder.arrays["similarity/grid.final"][0]), "refs": refs}


def _reference_names(files: AnalysisFiles, encoder: AnalyzedEncoderFiles) -> tuple[str, ...]:
    if files.summary.settings.get("references") is not None:
        columns = int(encoder.arrays["similarity/grid.final"][1])
        # As they were chosen: row and column from 0.
        return tuple(str(list(divmod(int(patch), columns))) for patch in encoder.arrays["images/references"][0])
    if "images/pixel_classes" in encoder.arrays:
        return ("bg_corner", "fg_interior", "boundary")
    return ("corner", "centre", "most_contrast")


def token_colours(files: AnalysisFiles) -> "Figure | None":
    found = files.having("similarity/colours.final")
    if not found:
        return None
    count = min(MOST_SHOWN, len(found[0].arrays["images/shown"]))
    figure, axes = panels(1 + len(found), count, 1.5, 1.5)
    for column in range(count):
        show_picture(axes[0, column], found[0].arrays["images/shown"][column])
        for row, encoder in enumerate(found, start=1):
            axes[row, column].imshow(encoder.arrays["similarity/colours.final"][column], interpolation="nearest")
            strip_axis(axes[row, column])
    name_rows(axes, ["image", *(plain(each.row.name) for each in found)])
    write_title(figure, "Three principal components of the patch tokens as red, green, blue")
    return figure


def tokens_tsne(files: AnalysisFiles) -> "Figure | None":
    return _clouds(files, "embedding/tsne", "embedding/image_of_tsne", "t-SNE of patch tokens, coloured by {}")


def tokens_pca(files: AnalysisFiles) -> "Figure | None":
    return _clouds(files, "embedding/pca", "embedding/image_of_token", "PCA of patch tokens, coloured by {}")


def after_attention(files: AnalysisFiles) -> "Figure | None":
    title = "PCA of tokens after the last attention, coloured by {}"
    return _clouds(files, "embedding/after", "embedding/image_of_after", title)


def _clouds(files: AnalysisFiles, points: str, owner: str, title: str) -> "Figure | None":
    found = files.having(points)
    if not found:
        return None
    figure, axes = panels(1, len(found))
    by_class = bool(files.summary.class_names)
    for axis, encoder in zip(axes[0], found, strict=True):
        image = np.asarray(encoder.arrays[owner])
        colour = np.asarray(encoder.arrays["images/labels"])[image] if by_class else image
        shades = [shade(value) for value in colour / (colour.max() + 0.5)]
        places = np.asarray(encoder.arrays[points], dtype=np.float64)
        axis.scatter(places[:, 0], places[:, 1], s=4, color=shades, linewidth=0, rasterized=True)
        axis.set_title(plain(encoder.row.name), fontsize=9)
        strip_axis(axis)
    write_title(figure, title.format("class" if by_class else "image"))
    return figure


def before_and_after(files: AnalysisFiles) -> "Figure | None":
    """One image's tokens before and after the last attention, and two images with their centres."""
    found = files.having("embedding/one_before")
    if not found:
        return None
    two = files.having("embedding/two_before")
    figure, axes = panels(2 if two else 1, len(found))
    for column, encoder in enumerate(found):
        axis = axes[0, column]
        for name, label, colour, marker in (("before", "before", COLOURS[0], "o"), ("after", "after", COLOURS[1], "^")):
            cloud = np.asarray(encoder.arrays[f"embedding/one_{name}"], dtype=np.float64)
            axis.scatter(
                cloud[:, 0], cloud[:, 1], s=12, color=colour, marker=marker, label=label, alpha=0.8, linewidth=0
            )
        axis.set_title(plain(encoder.row.name), fontsize=9)
        finish_axis(axis, "first component", "second component")
        if encoder not in two:
            continue
        axis = axes[1, column]
        looks = ((COLOURS[0], COLOURS[5]), (COLOURS[1], COLOURS[4]))
        for name, marker, centre, colours in (("before", "o", "black", looks[0]), ("after", "^", "0.5", looks[1])):
            for image, cloud in enumerate(np.asarray(encoder.arrays[f"embedding/two_{name}"], dtype=np.float64)):
                label = f"image {image + 1}, {name}"
                axis.scatter(
                    cloud[:, 0],
                    cloud[:, 1],
                    s=10,
                    color=colours[image],
                    marker=marker,
                    label=label,
                    alpha=0.7,
                    linewidth=0,
                )
                axis.scatter(*cloud.mean(axis=0), s=70, color=centre, marker="x", zorder=3)
        finish_axis(axis, "first component", "second component")
    write_title(figure, "Tokens before and after the last attention, principal components (×: centres)")
    return figure

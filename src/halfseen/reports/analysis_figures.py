"""Figures of an analysis, PNG and SVG, from its files alone: a figure for each question, encoders on one scale."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.reports.analysis_files import AnalysisFiles, AnalyzedEncoderFiles, read_analysis
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
DPI = 160

Numbers = NDArray[np.float64]
Sharing = Literal["none", "all", "row", "col"]


class Line(NamedTuple):
    """One encoder's look in every figure."""

    name: str
    colour: str
    marker: str


def draw_analysis(summary: Path) -> list[Path]:
    """Draw every figure that an analysis has arrays for, into the folder `figures` beside them.

    Figures of an older analysis there go.

    Args:
        summary: its `analysis.json`, or the folder that holds it.
    Returns:
        the PNG files; an SVG of the same name is beside each.
    Raises:
        CheckpointError: files that are missing or can't be read.
    """
    files = read_analysis(summary)
    folder = files.folder / "figures"
    drawn = []
    for name, draw in FIGURES.items():
        figure = draw(files)
        if figure is None:
            for suffix in (".png", ".svg"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
            continue
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, dpi=DPI)
        figure.set_layout_engine("none")  # The places are found; finding them again would double the time.
        figure.savefig(folder / f"{name}.png", dpi=DPI)
        drawn.append(folder / f"{name}.png")
    return drawn


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


def _curve(axis: "Axes", line: Line, x: NDArray[np.generic], y: NDArray[np.generic]) -> None:
    axis.plot(x, y, color=line.colour, marker=line.marker, markersize=4.5, linewidth=1.4, label=line.name)


def _finish(axis: "Axes", x: str, y: str, legend: bool = True) -> None:
    if axis.get_yscale() == "linear":
        axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(fontsize=8, frameon=False)


def _whole_numbers(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


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
        _curve(axis, line, depth, heads.mean(axis=1))
    _whole_numbers(axis)
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
    _finish(axis, "Depth (block)", "Attention distance (px)")
    return figure


def attention_information(files: AnalysisFiles) -> "Figure | None":
    drawn = _per_head(files, "attention/information")
    if drawn is None:
        return None
    figure, axis = drawn
    axis.set_ylim(bottom=0)
    _finish(axis, "Depth (block)", "Normalised mutual information\n(0 = all queries have the same map)")
    return figure


def attention_maps(files: AnalysisFiles) -> "Figure | None":
    """The last block's first head, for the first query, on some images."""
    found = files.having("attention/maps")
    if not found:
        return None
    count = min(MOST_SHOWN, len(found[0].arrays["images/shown"]))
    figure, axes = panels(1 + len(found), count, 1.5, 1.5)
    for column in range(count):
        _picture(axes[0, column], found[0].arrays["images/shown"][column])
        _box(axes[0, column], found[0], np.asarray(found[0].arrays["attention/queries"])[0], pixels=True)
        for row, encoder in enumerate(found, start=1):
            looked = np.asarray(encoder.arrays["attention/maps"][-1, column, 0, 0], dtype=np.float64)
            axes[row, column].imshow(looked, cmap="plasma", interpolation="nearest")
            _box(axes[row, column], encoder, np.asarray(encoder.arrays["attention/queries"])[0], pixels=False)
            _bare(axes[row, column])
    _row_names(axes, ["image, query boxed", *(plain(each.row.name) for each in found)])
    _title(figure, "Attention of the boxed patch: last block, first head (each map over its own range)")
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
            _bare(axis)
    _row_names(axes, [f"{plain(encoder.row.name)}\nblock {block + 1}" for encoder, block in rows])
    _title(figure, "Attention of one patch by head, first image (each map over its own range)")
    return figure


def _three(layers: int) -> list[int]:
    return sorted({0, layers // 2, layers - 1})


def fourier_depth(files: AnalysisFiles) -> "Figure | None":
    found = files.having("fourier/highest")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        depth = np.asarray(encoder.arrays["fourier/depth"], dtype=np.float64)
        whole = depth == np.round(depth)
        _curve(axes[0, 0], line_of(files, encoder), depth[whole], np.asarray(encoder.arrays["fourier/highest"])[whole])
    _whole_numbers(axes[0, 0])
    _finish(axes[0, 0], "Depth (0 = patch embedding)", "Δ log amplitude at the highest frequency")
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
            axis.plot(frequency, curve, color=_shade(depth[number] / depth.max()), linewidth=1.3)
        axis.set_title(plain(encoder.row.name), fontsize=9)
        axis.set_xlim(0, 1)
        _finish(axis, "Frequency (× π)", "Δ log amplitude" if encoder is found[0] else "", legend=False)
    _depth_bar(figure, axes, found)
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
        _curve(axis, line, depth / last, np.asarray(encoder.arrays["fourier/highest"], dtype=np.float64))
        axis.set_title(f"{line.name}\n(attention shaded)", fontsize=9)
        axis.set_xlim(0, 1)
        _finish(
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
        _curve(axes[0, 0], line_of(files, encoder), depth / depth.max(), values)
    low, high = axes[0, 0].get_ylim()
    wide = low > 0 and high / low > 20
    axes[0, 0].set_yscale("log" if wide else "linear")
    _finish(axes[0, 0], "Normalised depth", "Feature map variance" + (" (log scale)" if wide else ""))
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
                axes[row, column].plot(ranks, curve, color=_shade((number + 1) / len(curves)), linewidth=1.1)
            _finish(axes[row, column], "Rank" if row == len(rows) - 1 else "", label if column == 0 else "", False)
            if "change" in array:
                axes[row, column].axhline(0, color="0.4", linestyle=":", linewidth=1)
        axes[0, column].set_title(plain(encoder.row.name), fontsize=9)
    _depth_bar(figure, axes, found)
    _title(figure, title)
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
        _curve(axes[0, 0], shown, np.asarray(encoder.arrays["spectra/layers"]), change[:, rank - 1])
    axes[0, 0].axhline(0, color="0.4", linestyle=":", linewidth=1)
    _whole_numbers(axes[0, 0])
    _finish(axes[0, 0], "Depth (block)", "Change of the log singular value by attention")
    return figure


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
                _bare(axis)
                continue
            image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", interpolation="nearest")
            axis.set_ylabel(f"{plain(first.row.name)}\nlayer" if column == 0 else "")
            axis.set_xlabel(f"layer\n{plain(second.row.name)}" if row == count - 1 else "")
            _whole_numbers(axis)
    if image is not None:
        figure.colorbar(image, ax=axes, label="CKA", shrink=0.7)
    _title(figure, title)
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
        _curve(
            axes[0, 0],
            line_of(files, encoder),
            np.asarray(encoder.arrays["geometry/distances"]),
            np.asarray(encoder.arrays["geometry/cosines"], dtype=np.float64),
        )
    _whole_numbers(axes[0, 0])
    _finish(axes[0, 0], "Manhattan distance (patches)", "Mean cosine similarity of patch tokens")
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
    _finish(axis, "", "Variance of patch tokens")
    return figure


def similarity_maps(files: AnalysisFiles) -> "Figure | None":
    """Similarity of reference patches to all others, for the first image; a column for each encoder."""
    found = files.having("similarity/pairs.final")
    if not found:
        return None
    names = ("corner", "inside or centre", "outline or contrast")
    figure = new_figure(3.0 * len(found) + 0.9, 2.6 * (len(names) + 1))
    axes = figure.subplots(len(names) + 1, len(found), squeeze=False)
    for column, encoder in enumerate(found):
        references = np.asarray(encoder.arrays["images/references"])[0]
        rows, columns = (int(side) for side in encoder.arrays["similarity/grid.final"])
        _picture(axes[0, column], encoder.arrays["images/shown"][0])
        axes[0, column].set_title(plain(encoder.row.name), fontsize=9)
        size = encoder.arrays["images/shown"].shape[1] / rows
        for number, reference in enumerate(references):
            place = divmod(int(reference), columns)
            _rectangle(axes[0, column], place, size)
            axes[0, column].text(
                (place[1] + 0.5) * size,
                (place[0] + 0.5) * size,
                str(number + 1),
                color="tab:red",
                ha="center",
                va="center",
            )
            pairs = np.asarray(encoder.arrays["similarity/pairs.final"][0, int(reference)], dtype=np.float64)
            axis = axes[number + 1, column]
            image = axis.imshow(pairs.reshape(rows, columns), vmin=-0.5, vmax=1, cmap="viridis")
            _rectangle(axis, place, 1.0, -0.5)
            _bare(axis)
            if column == len(found) - 1:
                figure.colorbar(image, ax=axis, label="cosine similarity", shrink=0.85)
    _row_names(axes, ["image", *(f"{number}: {name}" for number, name in enumerate(names, start=1))])
    _title(figure, "Patch token cosine similarity (reference patch vs all patches)")
    return figure


def token_colours(files: AnalysisFiles) -> "Figure | None":
    found = files.having("similarity/colours.final")
    if not found:
        return None
    count = min(MOST_SHOWN, len(found[0].arrays["images/shown"]))
    figure, axes = panels(1 + len(found), count, 1.5, 1.5)
    for column in range(count):
        _picture(axes[0, column], found[0].arrays["images/shown"][column])
        for row, encoder in enumerate(found, start=1):
            axes[row, column].imshow(encoder.arrays["similarity/colours.final"][column], interpolation="nearest")
            _bare(axes[row, column])
    _row_names(axes, ["image", *(plain(each.row.name) for each in found)])
    _title(figure, "Three principal components of the patch tokens as red, green, blue")
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
        shade = [_shade(value) for value in colour / (colour.max() + 0.5)]
        places = np.asarray(encoder.arrays[points], dtype=np.float64)
        axis.scatter(places[:, 0], places[:, 1], s=4, color=shade, linewidth=0, rasterized=True)
        axis.set_title(plain(encoder.row.name), fontsize=9)
        _bare(axis)
    _title(figure, title.format("class" if by_class else "image"))
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
        _finish(axis, "first component", "second component")
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
        _finish(axis, "first component", "second component")
    _title(figure, "Tokens before and after the last attention, principal components (×: centres)")
    return figure


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
    _finish(axes[0, 0], "Rank (log scale)", "Eigenvalue of the features' covariance over the largest")
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
    _finish(axis, "", "Patch probe accuracy (%)")
    return figure


def layer_probe(files: AnalysisFiles) -> "Figure | None":
    found = files.having("layers/accuracy")
    if not found:
        return None
    figure, axes = panels(1, 1, 5.0, 4.0)
    for encoder in found:
        accuracy = 100 * np.asarray(encoder.arrays["layers/accuracy"], dtype=np.float64)
        _curve(axes[0, 0], line_of(files, encoder), np.asarray(encoder.arrays["layers/depth"]), accuracy)
    axes[0, 0].set_ylim(0, 100)
    _whole_numbers(axes[0, 0])
    _finish(axes[0, 0], "Depth (0 = patch embedding)", "Linear probe, held-out images (top-1, %)")
    return figure


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
                _curve(axis, line, ratios, values)
            if array == "agreement":
                spread = np.asarray(encoder.arrays["masking/agreement_std"], dtype=np.float64)
                axis.fill_between(ratios, values - spread, values + spread, color=line.colour, alpha=0.15, linewidth=0)
        axis.set_ylim(top=1.02)
        if array != "agreement":
            axis.set_ylim(bottom=0)
        _finish(axis, "Share of patches dropped", label, legend=bool(axis.lines))
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
            _picture(line[0], arrays["images/shown"][0])
            _picture(line[1], _half_hidden(arrays["images/shown"][0], arrays["masking/hidden"][0, mask], encoder))
            for axis, place in zip(line[2:], arrays["masking/nearest"][0, mask], strict=True):
                _picture(axis, arrays["masking/gallery"][places.index(int(place))])
            names.append(f"{plain(encoder.row.name)}\nmask {mask + 1}")
    for axis, title in zip(
        axes[0], ["whole query", "what is seen", *(f"near {k + 1}" for k in range(most))], strict=True
    ):
        axis.set_title(title, fontsize=8)
    _row_names(axes, names)
    _title(figure, "Nearest whole images of a half-seen one (retrieval, not generation)")
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


def noise_robustness(files: AnalysisFiles) -> "Figure | None":
    found = files.having("noise/frequencies")
    if not found:
        return None
    accurate = files.having("noise/accuracy_change")
    figure, axes = panels(1, 2 if accurate else 1)
    for encoder in found:
        frequency = np.asarray(encoder.arrays["noise/frequencies"], dtype=np.float64) / np.pi
        agreement = np.asarray(encoder.arrays["noise/agreement"], dtype=np.float64)
        _curve(axes[0, -1], line_of(files, encoder), frequency, agreement)
        if encoder in accurate:
            change = 100 * np.asarray(encoder.arrays["noise/accuracy_change"], dtype=np.float64)
            _curve(axes[0, 0], line_of(files, encoder), frequency, change)
    if accurate:
        axes[0, 0].axhline(0, color="0.4", linestyle=":", linewidth=1)
        _finish(axes[0, 0], "Frequency of the noise (× π)", "Δ accuracy (percentage points)")
    _finish(axes[0, -1], "Frequency of the noise (× π)", "Cosine of noisy and clean image")
    return figure


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
                _picture(axes[3 * number + row, column], picture)
        score = encoder.row.numbers.get("psnr_pixel_masked")
        names += ["original", "masked", plain(encoder.row.name) + ("" if score is None else f"\n{score:.1f} dB hidden")]
    _row_names(axes, names)
    return figure


def _title(figure: "Figure", text: str) -> None:
    """A title that is broken into lines where the figure is narrow."""
    import textwrap

    figure.suptitle("\n".join(textwrap.wrap(text, int(13 * figure.get_size_inches()[0]))), fontsize=9)


def _picture(axis: "Axes", picture: NDArray[np.generic]) -> None:
    axis.imshow(picture, interpolation="nearest")
    _bare(axis)


def _bare(axis: "Axes") -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _row_names(axes: NDArray[np.object_], names: Sequence[str]) -> None:
    for line, name in zip(axes, names, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)


def _box(axis: "Axes", encoder: AnalyzedEncoderFiles, query: NDArray[np.generic], pixels: bool) -> None:
    """A red square around the patch that looks."""
    size = encoder.row.patch_size if pixels else 1.0
    _rectangle(axis, (int(query[0]), int(query[1])), size, -0.5)


def _rectangle(axis: "Axes", place: tuple[int, int], size: float, offset: float = -0.5) -> None:
    from matplotlib.patches import Rectangle

    corner = (place[1] * size + offset, place[0] * size + offset)
    axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor="tab:red", linewidth=2))


def _shade(share: float) -> tuple[float, float, float, float]:
    """A colour of the plasma map, without its palest end."""
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["plasma"](0.92 * float(share))
    return red, green, blue, alpha


def _depth_bar(figure: "Figure", axes: NDArray[np.object_], found: Sequence[AnalyzedEncoderFiles]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("depth", [_shade(share) for share in np.linspace(0, 1, 64)])
    figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axes, label="normalised depth", shrink=0.8)


FIGURES: "dict[str, Callable[[AnalysisFiles], Figure | None]]" = {
    "attention_distance": attention_distance,
    "normalized_mi": attention_information,
    "attention": attention_maps,
    "attention_heads": attention_heads,
    "fourier_analysis": fourier_depth,
    "fourier_curves": fourier_curves,
    "fourier_sublayers": fourier_sublayers,
    "feature_variance": feature_variance,
    "singular_values": singular_values,
    "singular_values_images": singular_values_of_images,
    "singular_change": singular_change,
    "cka_images": alignment_of_images,
    "cka_tokens": alignment_of_tokens,
    "cosine_distance": cosine_distance,
    "variance": variance_parts,
    "similarity": similarity_maps,
    "pca_rgb": token_colours,
    "token_level_tsne": tokens_tsne,
    "token_level_pca": tokens_pca,
    "pre_post_attention": before_and_after,
    "post_attention": after_attention,
    "eigenvalues": eigenvalues,
    "patch_probe": patch_probe,
    "layer_probe": layer_probe,
    "masked_agreement": masked_agreement,
    "masked_neighbours": masked_neighbours,
    "noise_robustness": noise_robustness,
    "reconstruction": reconstruction,
}
"""File name -> what draws it; None where the analysis has no arrays for it."""

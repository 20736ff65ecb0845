"""Static pictures (PNG) from the arrays of a run; drawn with matplotlib, without a display."""

from pathlib import Path

import numpy as np

from halfseen.reports.figures.canvas import new_figure, plain, show_picture
from halfseen.reports.runfiles import PictureSet, read_pictures, read_segmentation

MOST_IMAGES = 8
CELL_INCHES = 1.15
TAB_COLOURS = 10
MOST_NAMED = 24


def draw_reconstructions(arrays: Path, out: Path | None = None) -> Path:
    """Draw `reconstruction.npz`: a column per image; rows original, then masked, predicted and pasted per mask ratio.

    Args:
        arrays: what `analysis.reconstruct` wrote.
        out: the PNG to write; None = beside the arrays.
    Raises:
        CheckpointError: if the arrays can't be read.
    """
    pictures = read_pictures(arrays)
    rows = _rows(pictures)
    columns = min(MOST_IMAGES, len(pictures.original))
    figure = new_figure(CELL_INCHES * (columns + 1.5), CELL_INCHES * len(rows) + 0.8)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, stack) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for axis, picture in zip(line, stack, strict=False):
            show_picture(axis, picture)
    figure.suptitle(plain(pictures.note), fontsize=8, wrap=True)
    out = arrays.with_suffix(".png") if out is None else out
    figure.savefig(out, dpi=150)
    return out


def _rows(pictures: PictureSet) -> list[tuple[str, np.ndarray]]:
    rows: list[tuple[str, np.ndarray]] = [("original", pictures.original)]
    for number, share in enumerate(pictures.hidden_share):
        score = float(np.mean(pictures.psnr_hidden[number]))
        rows += [
            (f"masked\n{100 * share:.0f} % hidden", pictures.masked[number]),
            (f"predicted\n{score:.1f} dB (hidden)", pictures.predicted[number]),
            ("prediction\npasted in", pictures.pasted[number]),
        ]
    return rows


def draw_segmentation(arrays: Path, out: Path | None = None) -> Path:
    """Draw `segmentation_example.npz`: a row per image with the image, the target and the prediction.

    Args:
        arrays: what `evaluation.segmentation.saved` wrote.
        out: the PNG to write; None = beside the arrays.
    Raises:
        CheckpointError: if the arrays can't be read.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    content = read_segmentation(arrays)
    names = [plain(name) for name in content.names]
    palette = colormaps["tab10" if len(names) <= TAB_COLOURS else "turbo"]
    colours = palette(np.arange(len(names)) if len(names) <= TAB_COLOURS else np.linspace(0, 1, len(names)))[:, :3]
    # One colour more for pixels of no class.
    table = np.concatenate([colours, np.ones((256 - len(names), 3))])
    rows = len(content.images)
    width = max(CELL_INCHES * 1.6 * 3, 4.5)
    figure = new_figure(width, CELL_INCHES * 1.6 * rows + 0.9)
    axes = figure.subplots(rows, 3, squeeze=False)
    for line, image, target, prediction, miou in zip(
        axes, content.images, content.targets, content.predictions, content.miou, strict=True
    ):
        line[0].set_ylabel(f"IoU {100 * miou:.0f} %", fontsize=8)
        for axis, picture in zip(line, (image, table[target], table[prediction]), strict=True):
            show_picture(axis, picture)
    for axis, title in zip(axes[0], ("image", "target", "prediction"), strict=True):
        axis.set_title(title, fontsize=9)
    shown = np.unique(np.concatenate([content.targets.ravel(), content.predictions.ravel()]))
    handles = [Patch(color=table[label], label=names[label]) for label in shown[shown < len(names)][:MOST_NAMED]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    out = arrays.with_suffix(".png") if out is None else out
    figure.savefig(out, dpi=150)
    return out

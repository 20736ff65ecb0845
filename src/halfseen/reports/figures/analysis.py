"""Figures of an analysis, PNG and SVG, from its files alone: a figure for each question, encoders on one scale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from halfseen.reports.analysis_files import AnalysisFiles, read_analysis
from halfseen.reports.figures import attention, geometry, masked, measures, spectrum, tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160


def draw_analysis(summary: Path) -> list[Path]:
    """Draw every figure that an analysis has arrays for, into the folder `figures` beside them.

    Figures of an older analysis there go.

    Args:
        summary: its `analysis.json`, or the folder that holds it.
    Returns:
        the PNG files; an SVG of the same name is beside each, and `similarity.json` says what that figure shows.
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
    facts, beside = tokens.similarity_facts(files), folder / "similarity.json"
    if facts is None:
        beside.unlink(missing_ok=True)
    else:
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return drawn


def remove_figures(folder: Path) -> None:
    """Remove the figures of an older analysis in a folder: they'd stand beside numbers that aren't theirs."""
    for name in FIGURES:
        for suffix in (".png", ".svg"):
            (folder / "figures" / f"{name}{suffix}").unlink(missing_ok=True)
    (folder / "figures" / "similarity.json").unlink(missing_ok=True)


FIGURES: "dict[str, Callable[[AnalysisFiles], Figure | None]]" = {
    "attention_distance": attention.attention_distance,
    "normalized_mi": attention.attention_information,
    "attention": attention.attention_maps,
    "attention_heads": attention.attention_heads,
    "fourier_analysis": spectrum.fourier_depth,
    "fourier_curves": spectrum.fourier_curves,
    "fourier_sublayers": spectrum.fourier_sublayers,
    "feature_variance": spectrum.feature_variance,
    "singular_values": spectrum.singular_values,
    "singular_values_images": spectrum.singular_values_of_images,
    "singular_change": spectrum.singular_change,
    "cka_images": geometry.alignment_of_images,
    "cka_tokens": geometry.alignment_of_tokens,
    "cosine_distance": geometry.cosine_distance,
    "variance": geometry.variance_parts,
    "similarity": tokens.similarity_maps,
    "pca_rgb": tokens.token_colours,
    "token_level_tsne": tokens.tokens_tsne,
    "token_level_pca": tokens.tokens_pca,
    "pre_post_attention": tokens.before_and_after,
    "post_attention": tokens.after_attention,
    "eigenvalues": measures.eigenvalues,
    "patch_probe": measures.patch_probe,
    "layer_probe": measures.layer_probe,
    "masked_agreement": masked.masked_agreement,
    "masked_training": masked.masked_training,
    "masked_neighbours": masked.masked_neighbours,
    "noise_robustness": measures.noise_robustness,
    "reconstruction": masked.reconstruction,
}
"""File name -> what draws it; None where the analysis has no arrays for it."""

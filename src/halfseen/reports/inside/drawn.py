"""The figures of an analysis, small, with a sentence that says what to look for and a text in place of the picture."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from halfseen.reports.analysis_files import AnalysisFiles, AnalyzedEncoderFiles
from halfseen.reports.figures.analysis import FIGURES
from halfseen.reports.inside.looked_at import Inside
from halfseen.reports.inside.numbers import number_text
from halfseen.reports.inside.packing import Packed

LARGEST_WIDTH = 1400
"""Pixels; a figure is shown at about half of it, a wide one whole."""
COLOURS = 96
"""Of the palette of a small PNG."""
DPI = 120
BUDGET = 2_000_000
"""Characters of all figures together."""


class Caption(NamedTuple):
    """What a figure is about.

    Attributes:
        title: its heading.
        lesson: what is to be seen, in a sentence.
        axes: what is drawn along which axis.
        numbers: the analysis's numbers that the figure shows.
    """

    title: str
    lesson: str
    axes: str
    numbers: tuple[str, ...] = ()


CAPTIONS: dict[str, Caption] = {
    "attention_distance": Caption(
        "Attention distance",
        "How far a patch looks; a distance on the dotted line is what attention to everything alike would give.",
        "Across: block. Up: attention distance in pixels, a dot for each head, a line through their means",
        ("attention_distance_first", "attention_distance_last", "attention_distance_uniform"),
    ),
    "normalized_mi": Caption(
        "Attention information",
        "Near zero all patches of an image have the same attention map; the higher, the more each looks its own way.",
        "Across: block. Up: normalised mutual information of queries and keys, a dot for each head",
        ("attention_information_first", "attention_information_last"),
    ),
    "fourier_analysis": Caption(
        "High frequencies over the depth",
        "Falling lines: the tokens become smoother from block to block.",
        "Across: depth. Up: log amplitude of the tokens at the highest frequency, relative to frequency zero",
        ("high_frequency_last",),
    ),
    "fourier_curves": Caption(
        "Spectra of the tokens",
        "The darker the curve, the earlier the block; what falls towards the right is smooth over the image.",
        "Across: frequency in units of pi. Up: log amplitude relative to frequency zero, a curve for each block",
        ("high_frequency_last",),
    ),
    "fourier_sublayers": Caption(
        "Who smooths: attention or MLP",
        "Where the line falls inside a shaded strip, attention has smoothed; MLPs often sharpen again.",
        "Across: normalised depth, attention shaded. Up: log amplitude at the highest frequency",
        ("high_frequency_last",),
    ),
    "feature_variance": Caption(
        "Variance of the tokens",
        "How different the patches of an image are from each other, from block to block.",
        "Across: normalised depth. Up: variance over the patches",
        ("variance_last",),
    ),
    "singular_values": Caption(
        "Singular values of the tokens",
        "Curves that fall at once: tokens that differ in few directions. The last row shows what attention changed.",
        "Across: rank. Up: log singular value relative to the largest, before and after attention, and its change",
        ("spectrum_change_last",),
    ),
    "singular_values_images": Caption(
        "Singular values of the images",
        "The same for the images' mean tokens: in how many directions whole images differ.",
        "Across: rank. Up: log singular value relative to the largest, before and after attention",
    ),
    "singular_change": Caption(
        "What attention does to the spectrum",
        "Below zero attention makes the tokens of an image more alike.",
        "Across: block. Up: change of the log singular value at a quarter of the ranks",
        ("spectrum_change_last",),
    ),
    "cka_images": Caption(
        "Alignment of layers, image by image",
        "Yellow blocks are layers that arrange the images in the same way.",
        "Across and up: layers. Colour: linear CKA of mean tokens, 0 to 1",
    ),
    "cka_tokens": Caption(
        "Alignment of layers, token by token",
        "The same for single patches: stricter, because places count too.",
        "Across and up: layers. Colour: linear CKA of tokens, 0 to 1",
        ("cka_first_last",),
    ),
    "cosine_distance": Caption(
        "Similarity against distance",
        "A steep fall: patches know where they are or what is there; a flat line: all patches say the same.",
        "Across: Manhattan distance in patches. Up: mean cosine similarity of patch tokens",
        ("cosine_at_1", "cosine_least"),
    ),
    "variance": Caption(
        "Variance within and across images",
        "What of the patch tokens' variance lies inside images, and what between them.",
        "Bars: variance of patch tokens, within images below, across images above",
        ("variance_within", "variance_across"),
    ),
    "token_level_tsne": Caption(
        "Tokens as points: t-SNE",
        "Patches of the first images; islands of one colour are classes or images that keep to themselves.",
        "Two dimensions of t-SNE without a unit; colour: class or image",
    ),
    "token_level_pca": Caption(
        "Tokens as points: PCA",
        "The same patches along the two directions of largest variance.",
        "First and second principal component; colour: class or image",
    ),
    "pre_post_attention": Caption(
        "Before and after the last attention",
        "If the clouds shrink, attention has mixed the patches of an image; crosses mark their centres.",
        "First and second principal component of the tokens of one image, and of two",
    ),
    "post_attention": Caption(
        "After the last attention",
        "Whether the images stay apart once their patches have been mixed.",
        "First and second principal component; colour: class or image",
    ),
    "eigenvalues": Caption(
        "Eigenvalues of the features",
        "The longer a curve stays high, the more directions the features use; RankMe counts them.",
        "Across: rank (log). Up: eigenvalue of the covariance over the largest (log)",
        ("rankme_mean", "alpha_req_mean"),
    ),
    "patch_probe": Caption(
        "Linear patch probe",
        "What a single patch token says about what it shows, against always naming the commonest class.",
        "Bars: accuracy in percent on learned patches, on held-out images, and of the commonest class",
        ("probe_held_out", "probe_train", "probe_most_frequent"),
    ),
    "layer_probe": Caption(
        "Linear probes of the layers",
        "Which layer knows most about the classes; after pixel prediction it is often not the last.",
        "Across: depth. Up: accuracy of a linear classifier on held-out images, in percent",
        ("layer_probe_best", "layer_probe_last"),
    ),
    "masked_agreement": Caption(
        "Half-seen images",
        "How long the encoder still recognises an image of which more and more is hidden.",
        "Across: share of patches dropped. Up: cosine to the whole image, own image nearest, neighbours of its class",
        ("agreement_least", "own_first_least"),
    ),
    "masked_training": Caption(
        "Learning from half-seen images",
        "What a classifier knows of whole images that has learned from half-seen ones only; a flat line means that "
        "little is lost.",
        "Across: share of patches dropped while learning. Up: accuracy on whole images",
        ("learned_whole", "learned_least"),
    ),
    "noise_robustness": Caption(
        "Robustness to noise",
        "Which frequencies the encoder relies on: noise there moves its features most.",
        "Across: frequency of the noise in units of pi. Up: change of accuracy, and cosine to the clean image",
        ("noise_agreement_low", "noise_agreement_high"),
    ),
}
"""The figures that the page shows, in its order."""
MOVING = frozenset({"attention", "attention_heads", "similarity", "pca_rgb", "masked_neighbours", "reconstruction"})
"""Figures that the page leaves out: it has sections that move in their place."""
LIGHT = frozenset(
    {
        "attention_distance", "normalized_mi", "fourier_analysis", "feature_variance", "singular_change", "cka_images",
        "cosine_distance", "variance", "eigenvalues", "patch_probe", "layer_probe", "masked_agreement",
        "masked_training",
    }
)  # fmt: skip
"""Figures of a few lines, drawn while the page is written where an analysis has left none: together two seconds."""
BETWEEN = ("cka_images", "cka_tokens")
"""Figures that need what single analyses don't have: pairs of encoders."""


class DrawnFigure(NamedTuple):
    """A figure, ready for the page; the picture itself is in a block at its end."""

    key: str
    title: str
    lesson: str
    alt: str
    width: int
    height: int


class Drawn(NamedTuple):
    """All figures, the pictures that go to the end of the page, and sentences about those that are left out."""

    figures: list[DrawnFigure]
    blocks: list[Packed]
    notes: list[str]


def build_figures(inside: Inside) -> Drawn:
    """The drawn files of a single analysis, or light figures where it has none; of several, figures of all encoders."""
    figures, blocks, notes = [], [], []
    several = len(inside.analyses) > 1
    files, folder = _together(inside) if several else inside.analyses[0], inside.analyses[0].folder / "figures"
    from_files = not several and any((folder / f"{key}.png").is_file() for key in CAPTIONS)
    spent = 0
    for key, caption in CAPTIONS.items():
        if (several and key in BETWEEN) or (not several and not from_files and key not in LIGHT):
            continue
        try:
            picture = _from_files(folder, key) if from_files else _draw(files, key)
        except (OSError, ValueError, KeyError, IndexError) as error:
            notes.append(f"The figure '{caption.title}' can't be shown ({type(error).__name__}).")
            continue
        if picture is None:
            continue
        if spent + len(picture.uri) > BUDGET:
            notes.append(f"The figure '{caption.title}' is left out, so that the page stays small.")
            continue
        spent += len(picture.uri)
        block = f"figure-{key}"
        alt = f"{caption.title}. {caption.axes}. {_numbers(inside, caption)}".strip()
        figures.append(DrawnFigure(block, caption.title, caption.lesson, alt, picture.width, picture.height))
        blocks.append(Packed(block, picture.uri))
    if not several and not from_files:
        notes.append("Only the light figures are here: `halfseen analyze` draws all of them.")
    if several and inside.having("cka/images"):
        notes.append(
            "Without the alignment of layers (CKA) between these encoders: `halfseen analyze` with all of them at once "
            "measures it, `halfseen report --analysis FOLDER` shows it."
        )
    return Drawn(figures, blocks, notes)


def _numbers(inside: Inside, caption: Caption) -> str:
    """The figure's main numbers in words, encoder by encoder."""
    sentences = []
    for each in inside.encoders:
        known = {key: value for key in caption.numbers if (value := each.files.row.numbers.get(key)) is not None}
        if known:
            values = ", ".join(f"{_short(key)} {number_text(key, value)}" for key, value in known.items())
            sentences.append(f"{each.label}: {values}.")
    return " ".join(sentences)


def _short(key: str) -> str:
    return key.replace("_", " ")


class _Small(NamedTuple):
    uri: str
    width: int
    height: int


def _from_files(folder: Path, key: str) -> _Small | None:
    """The SVG as it is or the PNG made small, whichever takes fewer characters."""
    path = folder / f"{key}.png"
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        small = _palette(picture)
    vector = path.with_suffix(".svg")
    if vector.is_file():
        text = base64.b64encode(vector.read_bytes()).decode("ascii")
        if len(text) < len(small.uri):
            return small._replace(uri=f"data:image/svg+xml;base64,{text}")
    return small


def _palette(picture: Image.Image) -> _Small:
    """A PNG of few colours, which is what a figure has."""
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    if flat.width > LARGEST_WIDTH:
        flat.thumbnail((LARGEST_WIDTH, 4 * LARGEST_WIDTH), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return _Small(uri, flat.width, flat.height)


def _together(inside: Inside) -> AnalysisFiles:
    """One analysis of all encoders, under the names that they have on the page."""
    encoders = [
        AnalyzedEncoderFiles(each.files.row.model_copy(update={"name": each.label}), each.arrays)
        for each in inside.encoders
    ]
    return replace(inside.analyses[0], encoders=encoders, between={})


def _draw(files: AnalysisFiles, key: str) -> _Small | None:
    figure = FIGURES[key](files)
    if figure is None:
        return None
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    with Image.open(file) as picture:
        return _palette(picture)

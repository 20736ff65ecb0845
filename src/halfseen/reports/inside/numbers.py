"""The numbers of an analysis that stand for all, in words, and its notes as sentences."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from halfseen.reports.inside.looked_at import Inside
from halfseen.reports.tables import visible


class Words(NamedTuple):
    """A number in words; `unit` is empty for shares and ratios, `percent` shows a share as percent."""

    text: str
    unit: str = ""
    percent: bool = False


GROUPS: dict[str, dict[str, Words]] = {
    "Attention": {
        "attention_distance_first": Words("attention distance, first block", "px"),
        "attention_distance_last": Words("attention distance, last block", "px"),
        "attention_distance_uniform": Words("the same if attention were uniform", "px"),
        "attention_information_first": Words("mutual information of queries and keys, first block"),
        "attention_information_last": Words("mutual information of queries and keys, last block"),
    },
    "Layers": {
        "high_frequency_last": Words("log amplitude at the highest frequency, last block"),
        "variance_last": Words("variance over the patches, last block"),
        "spectrum_change_last": Words("change of log singular values by the last attention"),
        "cka_first_last": Words("CKA of the first and the last block's tokens"),
        "layer_probe_best": Words("linear probe of the best layer, held-out images", "%", True),
        "layer_probe_last": Words("linear probe of the last layer, held-out images", "%", True),
    },
    "Patch tokens": {
        "variance_within": Words("variance within images"),
        "variance_across": Words("variance across images"),
        "variance_total": Words("variance, total"),
        "cosine_at_1": Words("cosine of neighbouring patches"),
        "cosine_least": Words("smallest mean cosine at any distance"),
        "probe_held_out": Words("patch probe, held-out images", "%", True),
        "probe_train": Words("patch probe, the patches it learned", "%", True),
        "probe_most_frequent": Words("the same by always naming the commonest class", "%", True),
    },
    "Features of images": {
        "rankme_mean": Words("RankMe of mean tokens"),
        "rankme_cls": Words("RankMe of class tokens"),
        "alpha_req_mean": Words("alpha-ReQ of mean tokens"),
        "alpha_req_cls": Words("alpha-ReQ of class tokens"),
        "lidar": Words("LiDAR"),
        "noise_agreement_low": Words("cosine to the clean image under low-frequency noise"),
        "noise_agreement_high": Words("cosine to the clean image under high-frequency noise"),
    },
    "Half-seen images": {
        "agreement_least": Words("cosine to the whole image at the largest mask ratio"),
        "own_first_least": Words("own image is the nearest at the largest mask ratio", "%", True),
        "shared_neighbours": Words("neighbours that all masks share", "%", True),
        "learned_whole": Words("classifier learned from whole images, on whole ones", "%", True),
        "learned_least": Words("the same, learned from images at the largest mask ratio", "%", True),
        "average_distance": Words("distance of hidden pixels to the nearest visible one", "px"),
        "psnr_pixel_masked": Words("PSNR, hidden pixels", "dB"),
        "psnr_pixel_composite": Words("PSNR, prediction pasted in", "dB"),
        "psnr_pixel_all": Words("PSNR, whole prediction", "dB"),
        "psnr_normalized_all": Words("PSNR, KAMIM's convention", "dB"),
        "ssim_pixel_masked": Words("SSIM, hidden pixels"),
        "ssim_pixel_composite": Words("SSIM, prediction pasted in"),
        "ssim_pixel_all": Words("SSIM, whole prediction"),
        "ssim_normalized_all": Words("SSIM, KAMIM's convention"),
    },
}
"""The numbers by the question that they answer."""
WORDS = {key: words for group in GROUPS.values() for key, words in group.items()}
TOPICS = {
    "attention": "Attention",
    "fourier": "Frequencies",
    "spectra": "Singular values",
    "cka": "CKA",
    "geometry": "Geometry of patches",
    "similarity": "Similarities",
    "embedding": "Points of the plane",
    "rank": "Effective ranks",
    "layers": "Probes of layers",
    "probe": "Patch probe",
    "masking": "Masked queries",
    "noise": "Noise",
    "reconstruction": "Reconstructions",
}


class NumberRow(NamedTuple):
    """A number of every encoder, empty where it has none."""

    words: str
    cells: list[str]


class NumberGroup(NamedTuple):
    """The numbers of one question."""

    title: str
    rows: list[NumberRow]


class Note(NamedTuple):
    """A sentence of the analysis: on what, of whom (empty = of all encoders)."""

    topic: str
    whose: str
    sentence: str


def number_groups(inside: Inside) -> list[NumberGroup]:
    """The table; numbers without words of their own come last, under their own names."""
    known = [each.files.row.numbers for each in inside.encoders]
    other = sorted({key for numbers in known for key in numbers} - WORDS.keys())
    groups = {**{title: list(keys) for title, keys in GROUPS.items()}, "More": other}
    found = []
    for title, keys in groups.items():
        told = [key for key in keys if any(numbers.get(key) is not None for numbers in known)]
        rows = [number_row(key, [each.get(key) for each in known]) for key in told]
        if rows:
            found.append(NumberGroup(title, rows))
    return found


def number_text(key: str, value: float) -> str:
    """A number with its unit."""
    words = WORDS[key]
    return f"{_cell(value, words)}{' ' + words.unit if words.unit else ''}"


def number_row(key: str, values: Sequence[float | None]) -> NumberRow:
    """A number of several encoders with its unit in its words; a cell without a finite value is empty."""
    words = WORDS.get(key, Words(visible(key.replace("_", " "))))
    unit = f" ({words.unit})" if words.unit else ""
    return NumberRow(f"{words.text}{unit}", [_cell(value, words) for value in values])


def _cell(value: float | None, words: Words) -> str:
    if value is None or not math.isfinite(value):
        return ""
    if words.percent:
        return f"{100 * value:.1f}"
    if 0.99 < abs(value) < 1:
        return f"{value:.5f}"  # Cosines near one differ behind the third digit.
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def analysis_notes(inside: Inside) -> list[Note]:
    """Every sentence once, with those whom it is about."""
    notes = [Note(TOPICS.get(topic, visible(topic)), whose, sentence) for topic, whose, sentence in inside.said()]
    order = list(TOPICS.values())
    notes.sort(key=lambda note: order.index(note.topic) if note.topic in order else len(order))
    general = dict.fromkeys([*inside.remarks, *(note for each in inside.analyses for note in each.summary.notes)])
    return [*(Note("All", "", visible(note)) for note in general), *notes]

"""Representation analyses of one or several encoders: one shared forward pass each, and a few passes of their own.

Writes plain arrays (`NAME.npz` for each encoder, `between.npz`) and `analysis.json`; drawing them is the business of
`reports`. An analysis that isn't defined for an encoder leaves a sentence and the others run.
"""

import itertools
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from halfseen.analysis.analyze_config import ANALYSES, AnalysisName, AnalyzeConfig
from halfseen.analysis.findings import Analysis, AnalyzedEncoder, EncoderAnalysis
from halfseen.analysis.look import Look, OnProgress
from halfseen.analysis.reconstruct import spread_indices
from halfseen.analysis.shared_pass import look_at
from halfseen.analysis.watchers.base import Arrays
from halfseen.analysis.watchers.layers import AlignmentWatcher, align
from halfseen.data.sources import Source
from halfseen.data.subsets import share_of_each_class
from halfseen.errors import DataError, HalfseenError
from halfseen.ops.precision import Precision


def analyze(
    encoders: Sequence[AnalyzedEncoder],
    source: Source,
    config: AnalyzeConfig,
    only: Sequence[AnalysisName] = ANALYSES,
    *,
    split: str = "all",
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> Analysis:
    """Analyse encoders side by side on the same images.

    Args:
        encoders: one after the other goes to the device.
        source: where the images come from; a spread over the classes is taken.
        only: names of the analyses that are wanted.
        split: what part of the data `source` is, for the record.
        seed: draws tokens, masks, noise and the start of t-SNE.
        device, precision: of the forward passes.
        workers: loader processes.
        on_progress: called with (what is being done, images done, all).
    Raises:
        DataError: no image at all, or none that can be read.
    """
    if len(source) == 0:
        raise DataError(f"'{source.name}' holds no image to analyse. Name a folder with some.")
    wanted = chosen_images(source, config)
    tell = on_progress or (lambda what, done, of: None)
    results, alignments = [], []
    for subject in encoders:
        look = Look(subject, source, wanted, config, only, seed, device, precision, workers, tell)
        results.append(look_at(look))
        alignments.append(look.alignment)
        subject.encoder.to("cpu")
    between, notes = _between(results, alignments)
    notes += _sizes_note(results)
    facts: dict[str, object] = {
        "analyses": list(only),
        "data": {
            "source": source.name,
            "split": split,
            "n": int(results[0].arrays["images/indices"].size),
            "asked": len(wanted),
            "fingerprint": source.fingerprint(),
        },
        "class_names": list(source.class_names),
        "mask_names": list(source.mask_names) if source.has_masks else [],
        "settings": config.model_dump(mode="json"),
        "precision": precision,
        "seed": seed,
        "halfseen_version": version("halfseen"),
    }
    return Analysis(results, between, notes, facts)


def chosen_images(source: Source, config: AnalyzeConfig) -> NDArray[np.int64]:
    """Rows of the source that are analysed.

    Raises:
        DataError: a share of each class that comes to no image at all.
    """
    if config.fraction_per_class is None:
        return spread_indices(source, config.images)
    rows = share_of_each_class(np.asarray(source.labels), config.fraction_per_class)
    if not len(rows):
        raise DataError(
            f"fraction_per_class: {config.fraction_per_class:g} of each class of '{source.name}' is no image at all. "
            "Raise it, or use images=N."
        )
    return rows


def _between(
    results: Sequence[EncoderAnalysis], alignments: Sequence[AlignmentWatcher | None]
) -> tuple[Arrays, list[str]]:
    """CKA of every pair of encoders, "first|second/array"."""
    arrays: Arrays = {}
    notes = []
    for (i, ours), (j, theirs) in itertools.combinations(enumerate(alignments), 2):
        if ours is None or theirs is None:
            continue
        names = f"{results[i].subject.name}|{results[j].subject.name}"
        try:
            found = align(ours, theirs)
        except HalfseenError as error:
            notes.append(f"{names}: {error}")
            continue
        arrays |= {f"{names}/{key}": array for key, array in found.arrays.items()}
        notes += [f"{names}: {note}" for note in found.notes]
    return arrays, notes


def _sizes_note(results: Sequence[EncoderAnalysis]) -> list[str]:
    """What to know where encoders cut images in different ways."""
    sizes = {(each.subject.encoder.image_size, each.subject.encoder.stride) for each in results}
    if len(sizes) < 2:
        return []
    cuts = "; ".join(
        f"{each.subject.name}: {each.subject.encoder.image_size} px in tokens of {each.subject.encoder.stride} px"
        for each in results
    )
    return [
        f"The encoders cut images in different ways ({cuts}). Distances in pixels and frequencies relative to the "
        "highest can be compared; token by token, nothing can."
    ]

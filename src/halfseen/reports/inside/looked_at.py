"""Which analyses go onto a page side by side: those that looked at the same images in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.errors import CheckpointError
from halfseen.reports.analysis_files import FOLDER, AnalysisFiles, AnalyzedEncoderFiles, Arrays, read_analysis
from halfseen.reports.tables import visible

UNTRAINED = "random_init"
"""What an analysis calls the network of a run with fresh weights."""


class Looked(NamedTuple):
    """An encoder of the page.

    Attributes:
        label: what it is called on the page, unique there.
        colour: number of its colour, the same as its run's in the curves where it belongs to one.
    """

    label: str
    colour: int
    files: AnalyzedEncoderFiles

    @property
    def arrays(self) -> Arrays:
        return self.files.arrays

    @property
    def grid(self) -> tuple[int, int]:
        return self.files.row.grid


@dataclass
class Inside:
    """Encoders that were looked into on the same images.

    Attributes:
        encoders: in the order of the page.
        analyses: the analyses that they come from.
        problems: sentences about what can't be shown.
        remarks: sentences about what was chosen.
    """

    encoders: list[Looked] = field(default_factory=list)
    analyses: list[AnalysisFiles] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def having(self, *arrays: str) -> list[Looked]:
        """The encoders that have all these arrays."""
        return [each for each in self.encoders if all(name in each.arrays for name in arrays)]

    def said(self) -> list[tuple[str, str, str]]:
        """Every sentence of the analyses once: its analysis, whom it is about (empty = everybody), and itself."""
        found: dict[tuple[str, str], list[str]] = {}
        for each in self.encoders:
            for topic, sentences in each.files.row.notes.items():
                for sentence in sentences:
                    found.setdefault((topic, visible(sentence)), []).append(each.label)
        everybody = len(self.encoders)
        return [
            (topic, "" if len(whose) == everybody else ", ".join(whose), sentence)
            for (topic, sentence), whose in found.items()
        ]

    def notes(self, topic: str, beginnings: tuple[str, ...] = ("",)) -> list[str]:
        """An analysis's sentences that begin so, each with those whom it is about unless that is everybody."""
        return [
            f"{whose}: {sentence}" if whose else sentence
            for about, whose, sentence in self.said()
            if about == topic and sentence.startswith(beginnings)
        ]

    @property
    def class_names(self) -> list[str]:
        return self.analyses[0].summary.class_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of all images, -1 where there is none."""
        return np.asarray(self.encoders[0].arrays["images/labels"], dtype=np.int64)

    def class_of(self, place: int) -> str:
        """The class of an image, by its place among all; empty where it has none."""
        label, names = int(self.labels[place]), self.class_names
        return visible(names[label]) if 0 <= label < len(names) else ""

    def name_of(self, place: int) -> str:
        """The file's name of an image, or its number in the data where no path is on record."""
        paths = max((each.arrays["images/paths"] for each in self.having("images/paths")), key=len, default=())
        if place < len(paths) and str(paths[place]):
            return visible(str(paths[place]).replace("\\", "/").rsplit("/", 1)[-1])
        return f"number {int(self.encoders[0].arrays['images/indices'][place])}"


def gather(folders: Sequence[tuple[str, Path]], joint: Path | None = None) -> Inside:
    """The analyses of runs, or a joint one, as far as they can stand side by side.

    Args:
        folders: (name, folder) of the page's runs.
        joint: the folder of an analysis that is shown in place of the runs' own.
    Returns:
        No encoder at all where there is no analysis; what is left out and why is among the problems.
    """
    found, problems = _read(folders, joint)
    if not found:
        return Inside(problems=problems)
    groups: dict[tuple[object, ...], list[tuple[str, int, AnalysisFiles]]] = {}
    for each in found:
        groups.setdefault(_images_of(each[2]), []).append(each)
    together = max(groups.values(), key=len)  # the first of the largest ones
    for name, _, files in (each for group in groups.values() for each in group if group is not together):
        data = files.summary.data
        problems.append(
            f"{visible(name)}: its analysis looked at other images ({data.n:,} of {visible(data.source)}) than that of "
            f"{visible(together[0][0])}, so they are not shown side by side. "
            "`halfseen analyze` with all runs at once looks at the same ones."
        )
    encoders: list[Looked] = []
    remarks = []
    compared, names = joint is None and len(folders) > 1, [name for name, _ in folders]
    for name, place, files in together:
        shown = files.encoders
        if compared and len(trained := [each for each in shown if each.row.name != UNTRAINED]) < len(shown):
            shown = trained
            remarks = ["Networks with fresh weights are left out of a comparison; each run's own report shows its."]
        for number, encoder in enumerate(shown):
            own = visible(encoder.row.name)
            label = own if not compared else visible(name) if len(shown) == 1 else f"{visible(name)}: {own}"
            colour = place + number
            if joint is not None:  # A run keeps the colour of its curves; what is none of the runs comes behind them.
                known = encoder.row.name in names
                colour = names.index(encoder.row.name) if known else max(len(names), _next_colour(encoders))
            encoders.append(Looked(_distinct(label, encoders), colour, encoder))
    return Inside(encoders, [files for _, _, files in together], problems, remarks)


def _next_colour(encoders: Sequence[Looked]) -> int:
    return 1 + max((each.colour for each in encoders), default=-1)


def _distinct(label: str, encoders: Sequence[Looked]) -> str:
    taken = {each.label for each in encoders}
    return (
        label
        if label not in taken
        else next(name for number in range(2, len(taken) + 3) if (name := f"{label} ({number})") not in taken)
    )


def _read(
    folders: Sequence[tuple[str, Path]], joint: Path | None
) -> tuple[list[tuple[str, int, AnalysisFiles]], list[str]]:
    """(name, place of the run, files) of every analysis that can be read, and sentences about the others."""
    found, problems, missing = [], [], []
    wanted = [(name, place, folder / FOLDER) for place, (name, folder) in enumerate(folders)]
    if joint is not None:
        wanted = [(joint.resolve().name, -1, joint)]
    for name, place, folder in wanted:
        if joint is None and not (folder / "analysis.json").is_file():
            missing.append(visible(name))
            continue
        own: list[str] = []
        try:
            files = read_analysis(folder, own)
        except CheckpointError as error:
            problems.append(f"{visible(name)}: {visible(error)}")
            continue
        problems += [f"{visible(name)}: {visible(problem)}" for problem in own]
        usable = [each for each in files.encoders if each.arrays.keys() >= _IMAGES]
        problems += [
            f"{visible(name)}: '{visible(each.row.file)}' doesn't say which images were looked at; left out."
            for each in files.encoders
            if not each.arrays.keys() >= _IMAGES
        ]
        if usable:
            found.append((name, place, replace(files, encoders=usable)))
    if missing and len(missing) < len(wanted):
        problems.append(f"Without an analysis: {', '.join(missing)}. `halfseen analyze RUN` makes one.")
    return found, problems


_IMAGES = {"images/indices", "images/labels", "images/shown"}


def _images_of(files: AnalysisFiles) -> tuple[object, ...]:
    """What two analyses must share to be about the same pictures."""
    summary = files.summary
    indices = files.encoders[0].arrays["images/indices"]
    cut = tuple(str(summary.settings.get(key)) for key in ("resize", "crop_ratio"))
    return (summary.data.fingerprint or summary.data.source, summary.data.split, cut, indices.tobytes())

"""Reads what `halfseen analyze` has written, without the library that wrote it."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from halfseen.errors import CheckpointError

Arrays = dict[str, NDArray[np.generic]]

FOLDER = "analysis"
"""A run's own analysis, in its folder."""


class AnalyzedRow(BaseModel):
    """One encoder of `analysis.json`; what newer versions add is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    file: str
    origin: str = ""
    role: str = ""
    image_size: int
    patch_size: int
    grid: tuple[int, int]
    num_layers: int
    embed_dim: int
    numbers: dict[str, float | None] = Field(default_factory=dict)
    notes: dict[str, list[str]] = Field(default_factory=dict)


class AnalyzedData(BaseModel):
    """The images that were analysed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    split: str = ""
    n: int
    fingerprint: str = ""


class AnalysisSummary(BaseModel):
    """`analysis.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    data: AnalyzedData
    encoders: list[AnalyzedRow]
    class_names: list[str] = Field(default_factory=list)
    mask_names: list[str] = Field(default_factory=list)
    between: str | None = None
    notes: list[str] = Field(default_factory=list)
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = 0


class AnalyzedEncoderFiles(NamedTuple):
    """An encoder's line in the summary and its arrays, "analysis/array"."""

    row: AnalyzedRow
    arrays: Arrays


@dataclass(frozen=True)
class AnalysisFiles:
    """A finished analysis as it lies in a folder.

    Attributes:
        folder: where.
        summary: `analysis.json`.
        encoders: in the order of the comparison.
        between: arrays of pairs of encoders, "first|second/array".
    """

    folder: Path
    summary: AnalysisSummary
    encoders: list[AnalyzedEncoderFiles]
    between: Arrays

    def having(self, array: str) -> list[AnalyzedEncoderFiles]:
        """The encoders for which an array is there."""
        return [each for each in self.encoders if array in each.arrays]


def read_analysis(summary: Path, problems: list[str] | None = None) -> AnalysisFiles:
    """An analysis from its `analysis.json` (or the folder that holds it).

    Args:
        problems: where sentences about arrays that can't be read go; what is whole is read then. None = they raise.
    Raises:
        CheckpointError: a file that is missing or can't be read.
    """
    path = summary / "analysis.json" if summary.is_dir() else summary
    try:
        found = AnalysisSummary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"'{path}' can't be read as an analysis: {reason}. Run `halfseen analyze` again."
        ) from error
    folder = path.parent
    # Names come from a file that may be anybody's: they never lead out of its folder.
    read = [(row, _read(folder / Path(row.file).name, problems)) for row in found.encoders]
    encoders = [AnalyzedEncoderFiles(row, arrays) for row, arrays in read if arrays is not None]
    between = None if found.between is None else _read(folder / Path(found.between).name, problems)
    return AnalysisFiles(folder, found, encoders, between or {})


def _read(path: Path, problems: list[str] | None) -> Arrays | None:
    try:
        # Opened here, so that it is closed where what it holds turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        sentence = f"'{path}' can't be read: {error}. Run `halfseen analyze` again."
        if problems is None:
            raise CheckpointError(sentence) from error
        problems.append(sentence)
        return None

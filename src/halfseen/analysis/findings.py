"""What an analysis is of and what it found: encoders, their arrays and numbers, and the files they become."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfseen.analysis.watchers.base import Arrays, Found
from halfseen.backbones.base import Encoder
from halfseen.methods.base import Method
from halfseen.ops.pixels import Channels

FORMAT_VERSION = 1
SUMMARY_FILE = "analysis.json"
BETWEEN_FILE = "between.npz"
RANDOM_INIT = "random_init"
"""Name of the same network with fresh weights."""


@dataclass(frozen=True)
class AnalyzedEncoder:
    """An encoder that is analysed.

    Attributes:
        name: its name in files and figures, unique in a comparison.
        encoder, mean, std: the network, and what its images are normalised with, on the scale 0 to 1.
        origin, role: where it comes from, for the record.
        method: the pre-training method it belongs to, for reconstructions; None where there is none.
    """

    name: str
    encoder: Encoder
    mean: Channels
    std: Channels
    origin: str
    role: str = "student"
    method: Method | None = None


@dataclass
class EncoderAnalysis:
    """What was found of one encoder.

    Attributes:
        arrays: "analysis/array" -> what figures are drawn from.
        numbers: the few that stand for all.
        notes: analysis -> sentences: what couldn't be measured, and what to know about it.
        seconds: of the shared pass and of each pass of its own.
    """

    subject: AnalyzedEncoder
    grid: tuple[int, int] = (0, 0)
    arrays: Arrays = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, found: Found) -> None:
        """Take what an analysis has found."""
        self.arrays |= {f"{name}/{key}": array for key, array in found.arrays.items()}
        self.numbers |= found.numbers
        if found.notes:
            self.notes.setdefault(name, []).extend(found.notes)

    def refuse(self, name: str, reason: Exception) -> None:
        """Remember why an analysis was left out."""
        self.notes.setdefault(name, []).append(f"Left out: {reason}")


@dataclass
class Analysis:
    """A finished comparison."""

    encoders: list[EncoderAnalysis]
    between: Arrays
    notes: list[str]
    facts: dict[str, object]

    def write(self, folder: Path) -> Path:
        """Write everything into a folder; the path of `analysis.json`, which names the other files.

        The json comes last, so it never speaks of files that aren't there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for found in self.encoders:
            _write_arrays(folder / f"{found.subject.name}.npz", found.arrays)
        if self.between:
            _write_arrays(folder / BETWEEN_FILE, self.between)
        else:
            (folder / BETWEEN_FILE).unlink(missing_ok=True)
        path = folder / SUMMARY_FILE
        beside = path.with_suffix(".json.part")
        beside.write_text(json.dumps(self.summary(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        beside.replace(path)
        return path

    def summary(self) -> dict[str, object]:
        """All but the arrays, as plain data; a number that isn't finite is null."""
        return {
            "format_version": FORMAT_VERSION,
            **self.facts,
            "notes": self.notes,
            "between": BETWEEN_FILE if self.between else None,
            "encoders": [
                {
                    "name": found.subject.name,
                    "file": f"{found.subject.name}.npz",
                    "origin": found.subject.origin,
                    "role": found.subject.role,
                    "image_size": found.subject.encoder.image_size,
                    "patch_size": found.subject.encoder.patch_size,
                    "grid": list(found.grid),
                    "num_layers": found.subject.encoder.num_layers,
                    "embed_dim": found.subject.encoder.embed_dim,
                    "numbers": {
                        key: value if math.isfinite(value) else None for key, value in sorted(found.numbers.items())
                    },
                    "notes": found.notes,
                    "seconds": {key: round(value, 3) for key, value in found.seconds.items()},
                }
                for found in self.encoders
            ],
        }


def file_name(text: str, taken: Sequence[str] = ()) -> str:
    """A short name for an encoder's files and figures out of any text, none of the `taken` ones."""
    base = re.sub(r"[^\w.+-]+", "_", text).strip("._") or "encoder"
    reserved = (*taken, Path(SUMMARY_FILE).stem, Path(BETWEEN_FILE).stem, RANDOM_INIT)
    count = 1
    while (name := base if count == 1 else f"{base}-{count}") in reserved:
        count += 1
    return name


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """The file appears whole or not at all."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    beside.replace(path)

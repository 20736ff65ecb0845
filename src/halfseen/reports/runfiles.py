"""Reads what a run has left in its folder, tolerant of what is missing: a killed run has a report too."""

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halfseen.errors import CheckpointError, DataError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Finding(NamedTuple):
    """A sentence of the health watch."""

    name: str
    sentence: str
    step: int | None


class SkippedEntry(NamedTuple):
    """A file that was not used."""

    path: str
    reason: str


class ClassRow(BaseModel):
    """One class of an evaluation."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    n: int
    encoder: float
    baselines: dict[str, float] = Field(default_factory=dict)


class SplitRow(BaseModel):
    """One side of an evaluation's data."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    split: str = ""
    n: int


class Evaluation(BaseModel):
    """A file of `evaluations/`; what newer versions add is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    protocol: str
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]] = Field(default_factory=dict)
    n: int
    seed: int
    protocol_text: str = ""
    headline: dict[str, float] = Field(default_factory=dict)
    primary: str = "top1"
    features: str = ""
    feature_dim: int | None = None
    role: str = "student"
    encoder: str = ""
    data: dict[str, SplitRow] = Field(default_factory=dict)
    split: str = ""
    n_train: int | None = None
    num_classes: int | None = None
    confidence_interval: dict[str, tuple[float, float]] = Field(default_factory=dict)
    confidence_text: str = ""
    per_class: list[ClassRow] = Field(default_factory=list)
    confusion: list[list[int]] | None = None
    notes: list[str] = Field(default_factory=list)


class PictureSet(NamedTuple):
    """The arrays of `figures/reconstruction.npz`; see `analysis.reconstruct.ReconstructionSet` for their meaning."""

    original: NDArray[np.uint8]
    masked: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    pasted: NDArray[np.uint8]
    hidden_share: NDArray[np.float64]
    psnr_hidden: NDArray[np.float64]
    psnr_whole: NDArray[np.float64]
    ssim_hidden: NDArray[np.float64]
    ssim_whole: NDArray[np.float64]
    paths: NDArray[np.str_]
    note: str


class SegmentationSet(NamedTuple):
    """The arrays of a `segmentation_example.npz`.

    Attributes:
        images: uint8 [n, H, W, 3].
        targets, predictions: uint8 [n, H, W], class of each pixel; targets of 255 belong to none.
        miou: float64 [n], mean intersection over union of each image, in [0, 1].
        names: of the classes.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    predictions: NDArray[np.uint8]
    miou: NDArray[np.float64]
    names: NDArray[np.str_]


@dataclass(frozen=True)
class RunFiles:
    """All that a report tells about one run.

    Attributes:
        name: the folder's name.
        folder: the run's folder.
        config_text: `config.yaml` as written, empty if missing.
        config: the same, parsed; empty if missing.
        environment, data: the json files; empty if missing.
        records: logged steps, rising; numbers only, non-finite ones left out.
        findings: health sentences, the newest of each kind, in the order of their steps.
        evaluations: by protocol name.
        pictures: reconstructions, if there are any.
        segmentations: protocol -> example images of a segmentation.
    """

    name: str
    folder: Path
    config_text: str
    config: dict[str, Json]
    environment: dict[str, Json]
    data: dict[str, Json]
    records: list[dict[str, float]]
    findings: list[Finding]
    evaluations: list[Evaluation]
    pictures: PictureSet | None
    segmentations: dict[str, SegmentationSet]
    problems: list[str] = field(default_factory=list)

    def setting(self, dotted: str) -> Json:
        """The value of a dotted key of the config, None if it isn't there."""
        value: Json = self.config
        for part in dotted.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(part)
        return value

    def last(self, key: str) -> float | None:
        """The newest logged value of a metric."""
        return next((record[key] for record in reversed(self.records) if key in record), None)

    @property
    def skipped(self) -> list[SkippedEntry]:
        """Files that were skipped before or during training."""
        entries = []
        for key in ("left_out", "skipped"):
            listed = self.data.get(key)
            rows = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
            entries += [SkippedEntry(str(item.get("path", "?")), str(item.get("reason", ""))) for item in rows]
        return list(dict.fromkeys(entries))


def read_run(folder: Path) -> RunFiles:
    """Everything in a run's folder that the report shows.

    Raises:
        DataError: if `folder` isn't a run: no folder, or neither config.yaml nor metrics.jsonl in it.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a run: there is no such folder. Give one that `halfseen pretrain` wrote.")
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"'{folder}' is not a run: it holds neither config.yaml nor metrics.jsonl. "
            "Give the folder that `halfseen pretrain` wrote."
        )
    problems: list[str] = []
    config_text = _read_text(folder / "config.yaml")
    return RunFiles(
        name=folder.resolve().name,
        folder=folder,
        config_text=config_text,
        config=_parse_yaml(config_text, problems),
        environment=_read_json(folder / "environment.json", problems),
        data=_read_json(folder / "data.json", problems),
        records=read_metrics(folder / "metrics.jsonl"),
        findings=read_findings(folder / "metrics.jsonl", folder / "health.jsonl"),
        evaluations=_read_evaluations(folder / "evaluations", problems),
        pictures=_read_pictures(folder / "figures" / "reconstruction.npz", problems),
        segmentations=_read_segmentations(folder / "evaluations", problems),
        problems=problems,
    )


def pretraining_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the images that a run was trained on, None where it isn't on record."""
    fingerprint = _read_json(folder / "data.json", []).get("fingerprint")
    return fingerprint if isinstance(fingerprint, str) else None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Logged steps of a `metrics.jsonl`, rising; the finite numbers of each.

    Where a step stands there twice the later line counts. A line that was cut short is left out.
    """
    steps: dict[int, dict[str, float]] = {}
    for entry in _lines(path):
        step = entry.get("step")
        if isinstance(step, int) and "health" not in entry:
            steps[step] = _numbers(entry)
    return [steps[step] for step in sorted(steps)]


def read_findings(*paths: Path) -> list[Finding]:
    """The sentences of the health watch, the newest of each kind, in the order of their steps."""
    findings: dict[str, Finding] = {}
    for path in paths:
        for entry in _lines(path):
            if "health" in entry:
                name, step = str(entry["health"]), entry.get("step")
                findings[name] = Finding(name, str(entry.get("sentence", "")), step if isinstance(step, int) else None)
    return sorted(findings.values(), key=lambda finding: finding.step or 0)


def _lines(path: Path) -> Iterator[dict[str, Json]]:
    for line in _read_text(path).splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict):
            yield entry


def _numbers(entry: Mapping[str, Json]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _read_evaluations(folder: Path, problems: list[str]) -> list[Evaluation]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(Evaluation.model_validate_json(_read_text(path)))
        except ValidationError as error:
            problems.append(
                f"evaluations/{path.name} is not a complete result ({error.error_count()} faults); left out."
            )
    return found


def _read_pictures(path: Path, problems: list[str]) -> PictureSet | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in PictureSet._fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problems.append(f"figures/{path.name} can't be read ({type(error).__name__}); left out.")
        return None
    return PictureSet(**values | {"note": str(values["note"])})


def read_pictures(path: Path) -> PictureSet:
    """The reconstructions of a `reconstruction.npz`.

    Raises:
        CheckpointError: if the file can't be read.
    """
    problems: list[str] = []
    pictures = _read_pictures(path, problems)
    if pictures is None:
        raise CheckpointError(f"'{path}' holds no reconstructions. {' '.join(problems)}".strip())
    return pictures


def read_segmentation(path: Path) -> SegmentationSet:
    """The examples of a `segmentation_example.npz`.

    Raises:
        CheckpointError: if the file can't be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = SegmentationSet(**{name: arrays[name] for name in SegmentationSet._fields})
            _check_examples(found)
            return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"'{path}' holds no examples of a segmentation ({type(error).__name__}).") from None


def _check_examples(examples: SegmentationSet) -> None:
    """Raises ValueError where arrays don't belong together."""
    n, height, width, *_ = examples.images.shape
    pixels = (n, height, width)
    fit = examples.images.shape == (*pixels, 3) and examples.targets.shape == examples.predictions.shape == pixels
    bytes_ = {examples.images.dtype, examples.targets.dtype, examples.predictions.dtype} == {np.dtype(np.uint8)}
    if not (fit and bytes_ and examples.miou.shape == (n,) and 0 < examples.names.size <= 255):
        raise ValueError("arrays of other shapes")


def _read_segmentations(folder: Path, problems: list[str]) -> dict[str, SegmentationSet]:
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            found[path.stem] = read_segmentation(path)
        except CheckpointError:
            problems.append(f"evaluations/{path.name} can't be read; left out.")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_json(path: Path, problems: list[str]) -> dict[str, Json]:
    text = _read_text(path)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        problems.append(f"{path.name} is not valid json; left out.")
        return {}
    return value if isinstance(value, dict) else {"value": value}


def _parse_yaml(text: str, problems: list[str]) -> dict[str, Json]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append("config.yaml is not valid yaml; shown as it stands.")
        return {}
    return value if isinstance(value, dict) else {}

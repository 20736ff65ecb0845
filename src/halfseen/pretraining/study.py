"""A study as one call: pre-training size x intermediate stage x fine-tuning size x seed, as ViNy's paper asks.

    pre-training runs -> intermediate stages -> segmentations -> study.json -> table and figures

Everything lies in one folder. What is finished there is read, what was interrupted goes on, so a study can be stopped
at any moment and grown afterwards.
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from halfseen.engine.folder import hold_folder, write_json, write_whole
from halfseen.pretraining.study_config import StudyConfig
from halfseen.pretraining.study_parts import STUDY, Parts, Watching
from halfseen.reports.study import draw_study, read_study, study_markdown

TABLE = "study.md"


class StudyResult(NamedTuple):
    """What a study has left in its folder.

    Attributes:
        study: all cells and settings, json.
        table: the same as a table with sentences, Markdown.
        figures: PNG and SVG.
    """

    study: Path
    table: Path
    figures: list[Path]


class Plan(NamedTuple):
    """A study's trainings, and how many of them the folder holds already.

    Attributes:
        pretrainings, stages, segmentations: (all, finished).
    """

    pretrainings: tuple[int, int]
    stages: tuple[int, int]
    segmentations: tuple[int, int]


def run_study(
    config: StudyConfig, out: Path, *, name: str = "study", watching: Watching = lambda: nullcontext(None)
) -> StudyResult:
    """Train and measure the whole grid, and draw its table and figures.

    Args:
        config: the grid.
        out: the study's folder; parts that are finished there are read, not repeated.
        name: of the study, for the table.
        watching: where progress goes.
    Raises:
        ConfigError, DataError: settings or images that don't go together, said before anything is trained.
        CheckpointError: a part in the folder was trained with other settings.
        KeyboardInterrupt: a signal asked to stop; the same call goes on from there.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862.
    """
    parts = Parts(config, out)
    parts.check()
    # Sums depend on it, so stages must not care whether pre-training, which sets it too, has been done before.
    torch.set_num_threads(parts.settings.runtime.threads)
    out.mkdir(parents=True, exist_ok=True)
    with hold_folder(out):
        _write(parts, name)  # Settings that differ are noticed from the first training on.
        for cell in config.cells:
            if parts.finished(cell) is None:
                parts.segment(cell, watching)
            _write(parts, name)
    table = out / TABLE
    write_whole(table, study_markdown(read_study(out / STUDY)))
    return StudyResult(out / STUDY, table, draw_study(out / STUDY))


def plan_study(config: StudyConfig, out: Path) -> Plan:
    """Count a study's trainings, after all checks; nothing is trained.

    Raises:
        ConfigError, DataError: as `run_study`.
    """
    parts = Parts(config, out)
    parts.check()
    runs = {parts.run_dir(size, seed) for size in config.pretrain_sizes if size for seed in config.seeds}
    stages = {
        parts.stage_dir(condition, seed): parts.stage_file(condition, seed)
        for condition in config.conditions
        if condition.intermediate != "none"
        for seed in config.seeds
    }
    return Plan(
        (len(runs), sum((folder / "encoder.json").is_file() for folder in runs)),
        (len(stages), sum(path.is_file() for path in stages.values())),
        (len(config.cells), sum(parts.finished(cell) is not None for cell in config.cells)),
    )


def _write(parts: Parts, name: str) -> None:
    """Write study.json: what is finished so far."""
    write_json(
        parts.out / STUDY,
        {
            "name": name,
            "data": parts.config.data_of("segmentation"),
            "planned": len(parts.config.cells),
            "cells": list(_entries(parts)),
            "stages": list(_stage_entries(parts)),
            "settings": parts.config.model_dump(mode="json"),
            "images": parts.images,
        },
    )


def _entries(parts: Parts) -> Iterator[dict[str, float | int | str]]:
    for cell in parts.config.cells:
        path = parts.finished(cell)
        if path is not None:
            content = json.loads(path.read_text(encoding="utf-8"))
            yield {
                "pretrain": cell.condition.pretrain,
                "intermediate": cell.condition.intermediate,
                "finetune": cell.finetune,
                "seed": cell.seed,
                "miou": content["metrics"]["miou"],
                "accuracy": content["metrics"]["accuracy"],
                "miou_dataset": content["metrics"]["miou_dataset"],
                "seconds": content["seconds"],
            }


def _stage_entries(parts: Parts) -> Iterator[dict[str, object]]:
    """What the intermediate stages themselves learned."""
    for condition in parts.config.conditions:
        for seed in parts.config.seeds:
            if condition.intermediate == "none" or not parts.stage_file(condition, seed).is_file():
                continue
            content = json.loads(parts.stage_file(condition, seed).read_text(encoding="utf-8"))
            yield {
                "pretrain": condition.pretrain,
                "intermediate": condition.intermediate,
                "seed": seed,
                "metrics": content["metrics"],
                "baselines": content["baselines"],
                "seconds": content["seconds"],
            }

"""A study's table, sentences and figures, from a study.json."""

import json
from pathlib import Path

import pytest
from PIL import Image

from halfseen.errors import CheckpointError
from halfseen.reports.study import (
    change_series,
    draw_study,
    read_study,
    study_markdown,
    study_sentences,
    study_series,
)


def written(folder: Path, cells: list[tuple[int, str, int, int, float]], planned: int | None = None) -> Path:
    """A study.json of (pretrain, intermediate, finetune, seed, miou)."""
    content = {
        "name": "tiny",
        "data": "scenes",
        "planned": len(cells) if planned is None else planned,
        "cells": [
            {
                "pretrain": pretrain,
                "intermediate": stage,
                "finetune": finetune,
                "seed": seed,
                "miou": miou,
                "accuracy": miou + 20,
                "miou_dataset": miou + 1,
            }
            for pretrain, stage, finetune, seed, miou in cells
        ],
    }
    path = folder / "study.json"
    path.write_text(json.dumps(content))
    return path


CELLS = [
    (0, "none", 10, 0, 20.0),
    (0, "none", 10, 1, 22.0),
    (500, "none", 10, 0, 30.0),
    (500, "none", 10, 1, 33.0),
    (500, "none", 40, 0, 40.0),
    (500, "classification", 10, 0, 25.0),
    (500, "classification", 10, 1, 27.0),
    (500, "classification", 40, 0, 41.0),
]


def test_means_and_spreads_are_those_of_the_seeds(tmp_path: Path) -> None:
    study = read_study(written(tmp_path, CELLS))
    scratch, plain, stage = study_series(study)
    assert (scratch.sizes, scratch.means[0].mean, scratch.means[0].n) == ([10], 21.0, 2)
    assert scratch.means[0].std == pytest.approx(2**0.5)  # of a sample
    assert plain.sizes == [10, 40] and plain.means[1].std is None
    (change,) = change_series(study)
    assert (change.pretrain, change.intermediate, change.sizes) == (500, "classification", [10, 40])
    assert [mean.mean for mean in change.means] == [-5.5, 1.0]  # seed by seed: -5 and -6
    assert change.means[0].std == pytest.approx(0.5**0.5)
    assert stage.means[0].mean == 26.0


def test_the_table_says_what_is_there(tmp_path: Path) -> None:
    study = read_study(written(tmp_path, CELLS, planned=9))
    text = study_markdown(study)
    assert "| encoder | 10 images | 40 images |" in text
    assert "| from scratch | 41.00 ± 1.41 / 21.00 ± 1.41 / 22.00 ± 1.41 |  |" in text
    row = next(line for line in text.splitlines() if line.startswith("| pre-trained on 500 images, then class"))
    assert row.endswith("| 46.00 ± 1.41 / 26.00 ± 1.41 / 27.00 ± 1.41 | 61.00 / 41.00 / 42.00 |")
    assert "8 of 9 cells are finished" in text
    sentences = study_sentences(study)
    assert sentences[0].startswith("Pre-training on 500 images instead of none changes mIoU by +10.50 ± 0.71 at 10")
    assert "classification after pre-training on 500 images changes mIoU by -5.50 ± 0.71 at 10" in sentences[1]


def test_both_figures_are_drawn_as_png_and_svg(tmp_path: Path) -> None:
    drawn = draw_study(written(tmp_path, CELLS))
    assert [path.name for path in drawn] == [
        "miou_by_finetune_size.png",
        "miou_by_finetune_size.svg",
        "change_by_intermediate.png",
        "change_by_intermediate.svg",
    ]
    for path in drawn[::2]:
        with Image.open(path) as picture:
            assert picture.size[0] > 600
    svg = drawn[1].read_text()
    assert svg.lstrip().startswith("<?xml") and "#000000" in svg and "#0072b2" in svg.lower()


def test_without_stages_there_is_one_figure_and_without_cells_none(tmp_path: Path) -> None:
    assert len(draw_study(written(tmp_path, CELLS[:4]))) == 2
    empty = written(tmp_path, [], planned=4)
    assert draw_study(empty) == []
    assert "0 of 4 cells" in study_markdown(read_study(empty))


def test_a_broken_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    with pytest.raises(CheckpointError, match="holds no study"):
        read_study(path)
    path.write_text('{"cells": []}')
    with pytest.raises(CheckpointError, match="holds no study"):
        draw_study(path)

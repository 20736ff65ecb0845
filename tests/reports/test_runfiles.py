"""Reading what runs write, also when it was cut short or is not what it seems."""

import json

import numpy as np
import pytest

from halfseen.errors import CheckpointError
from halfseen.reports.runfiles import (
    pretraining_fingerprint,
    read_findings,
    read_metrics,
    read_pictures,
    read_run,
)
from reports.written_run import HOSTILE, write_run


def test_steps_rise_and_the_later_line_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 20, "loss": 2.0}, {"step": 10, "loss": 3.0}, {"step": 20, "loss": 1.5, "lr": 0.1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo')
    assert read_metrics(path) == [{"step": 10.0, "loss": 3.0}, {"step": 20.0, "loss": 1.5, "lr": 0.1}]


def test_what_is_not_a_finite_number_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "a": null, "b": true, "c": "x", "d": Infinity, "e": 2}\n[1]\n"x"\n')
    assert read_metrics(path) == [{"step": 1.0, "e": 2.0}]


def test_each_kind_of_finding_once(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"health": "x", "step": 50, "sentence": "old"}\n{"step": 3, "loss": 1}\n')
    second.write_text('{"health": "x", "step": 70, "sentence": "new"}\n{"health": "y", "step": 0, "sentence": "few"}\n')
    found = read_findings(first, second, tmp_path / "missing")
    assert [(finding.name, finding.sentence, finding.step) for finding in found] == [("y", "few", 0), ("x", "new", 70)]


def test_a_whole_run(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert run.setting("data.image_size") == 32
    assert run.setting("data.image_size.nothing") is None
    assert run.last("loss") == pytest.approx(100 / 2100)
    assert [entry.path for entry in run.skipped] == list(HOSTILE)
    assert run.evaluations[0].metrics["top1"] == 71.25
    assert run.pictures.hidden_share.tolist() == [0.5, 0.75]
    assert run.problems == []
    assert pretraining_fingerprint(run.folder) == "ab" * 32
    assert pretraining_fingerprint(tmp_path) is None


def test_pictures_never_unpickle(tmp_path):
    path = tmp_path / "reconstruction.npz"
    np.savez(path, original=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="holds no reconstructions"):
        read_pictures(path)

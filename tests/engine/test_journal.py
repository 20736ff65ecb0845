"""The files that a run writes while it trains."""

import json
import math
import struct
from pathlib import Path

import pytest

from halfseen.engine.finding import Finding
from halfseen.engine.journal import Journal, open_journal


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_journal_has_no_step_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(1, 8):
        journal.write({"step": step, "loss": step / 3})
    journal.write_finding(Finding("few_steps", "Few.", 0))
    journal.write_finding(Finding("data_wait", "Waiting.", 6))
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    journal = Journal(tmp_path, resume_step=5)
    journal.write({"step": 6, "loss": 2.0})
    journal.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": s, "loss": s / 3} for s in range(1, 6)] + [
        {"step": 6, "loss": 2.0}
    ]
    assert [entry["health"] for entry in read(tmp_path / "health.jsonl")] == ["few_steps"]
    assert journal.said == {"few_steps"}


def test_a_new_run_starts_new_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    Journal(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_finding_is_said_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.write_finding(Finding("a", "First.", 1))
    assert not journal.write_finding(Finding("a", "Again.", 2))
    journal.close()
    assert read(tmp_path / "health.jsonl") == [{"health": "a", "step": 1, "sentence": "First."}]


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write({"step": 1, "grad_norm": math.inf, "loss": math.nan})
    journal.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "grad_norm": None, "loss": None}]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "run", writes=False, tensorboard=True)
    journal.write({"step": 1, "loss": 1.0})
    assert journal.write_finding(Finding("a", "First.", 1))
    journal.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = open_journal(tmp_path, tensorboard=True)
    journal.write({"step": 3, "loss": 0.625})
    journal.close()
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in content and struct.pack("<f", 0.625) in content

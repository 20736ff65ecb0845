"""No vector is overlooked: every file has a kind, every kind a test, and the copies kept here are the originals."""

import ast
import hashlib
from pathlib import Path

import pytest

from parity.discovery import KINDS, kind_of, parity_dir, parity_files, vectors

HERE = Path(__file__).parent


def test_the_folder_of_vectors_is_there_and_not_empty() -> None:
    """A mistyped HALFSEEN_PARITY_DIR would skip every parity test."""
    assert any(vectors(topic) for topic in KINDS), f"{parity_dir()} holds no vectors of {', '.join(KINDS)}"


@pytest.mark.parametrize("topic", sorted(KINDS))
def test_every_vector_belongs_to_a_kind(topic: str) -> None:
    unknown = [path.name for path in vectors(topic) if kind_of(path, topic) is None]
    assert not unknown, f"{parity_dir() / topic}: no test knows {unknown}. Kinds: {', '.join(KINDS[topic])}"


def test_a_stray_vector_is_noticed_and_a_readme_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mae").mkdir()
    for name in ("tiny_mae_b.npz", "huge_mae.npz", "tiny_mae.json", "README.md"):
        (tmp_path / "mae" / name).touch()
    monkeypatch.setenv("HALFSEEN_PARITY_DIR", str(tmp_path))
    assert [path.name for path in vectors("mae") if kind_of(path, "mae") is None] == ["huge_mae.npz", "tiny_mae.json"]
    assert [case.id for case in parity_files("mae", "tiny_mae")] == ["tiny_mae_b"]
    assert [mark.name for mark in parity_files("mae", "finetune_vit")[0].marks] == ["skip"]


def test_the_longest_prefix_names_the_kind() -> None:
    assert kind_of(Path("vit_official_tiny_b.npz"), "simmim") == "vit_official"
    assert kind_of(Path("vit_official_finetune_from_pretrain_b.npz"), "simmim") == "vit_official_finetune_from_pretrain"
    assert kind_of(Path("vit_tiny_b.npz"), "localmim") == "vit_"
    assert kind_of(Path("vit_tiny_b_finetune_c.npz"), "localmim") == "_finetune"


def test_every_kind_has_a_test() -> None:
    asked = set()
    for path in HERE.glob("test_*.py"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "parity_files":
                asked.add(tuple(ast.literal_eval(argument) for argument in node.args))
    assert asked == {(topic, prefix) for topic, kinds in KINDS.items() for prefix in kinds}


def test_the_repository_copies_are_the_recorded_originals() -> None:
    recorded = dict(reversed(line.split("  ")) for line in (HERE / "SHA256SUMS").read_text().splitlines())
    present = {
        f"{topic}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for topic in KINDS
        for path in (HERE / topic).glob("*")
        if path.suffix in {".npz", ".json", ".safetensors"}
    }
    assert present == recorded

"""Files that a run begins with are needed at its first step only."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import TINY, final_weights, run

WORDS = ("pretrain", "photos", *TINY["mae"], "train.checkpoint_every_steps=2", "train.epochs=2")
SMALL = ("evaluate.knn=true", "evaluate.max_train=20", "evaluate.max_test=10")


@pytest.mark.parametrize("key", ["method.attention_mask.encoder", "init"])
def test_a_run_goes_on_without_the_file_that_it_began_with(
    key: str, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    make_images(tmp_path / "photos", count=24)
    words = (*WORDS, *SMALL)
    done = run(*words, "seed=7", "train.max_steps=2", "--name", "given", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, words_of_run in (("unbroken", ()), ("broken", ("train.max_steps=3",))):
        done = run(*words, f"{key}=runs/given", *words_of_run, "--name", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "runs" / "given")
    done = run("pretrain", "--resume", "runs/broken", "train.max_steps=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert final_weights(tmp_path / "runs" / "broken") == final_weights(tmp_path / "runs" / "unbroken")
    (tmp_path / "runs" / "broken").rename(tmp_path / "moved")
    for command in (("knn", "moved", "--train", "photos", "--test", "photos"), ("reconstruct", "moved")):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run(*words, f"{key}=runs/given", "--name", "another", cwd=tmp_path)
    assert done.returncode == 2 and "runs/given" in done.stderr

"""One tiny run, trained through the real command line, that the tests of the commands look at."""

from pathlib import Path

import pytest

from command_line import TINY, run


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on a few bundled images, with encoder, evaluation, pictures and report."""
    folder = tmp_path_factory.mktemp("trained")
    settings = [word for word in TINY["mae"] if not word.startswith(("evaluate.", "data.", "model.patch_size"))]
    done = run(
        "pretrain", "bundled:fashion", *settings, "data.image_size=28", "model.patch_size=7", "data.subset_size=64",
        "evaluate.max_test=40", "evaluate.crop_ratio=1.0", "evaluate.analyze=none", "train.max_steps=4", "run_dir=run",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"

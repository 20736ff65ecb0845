"""A run that must collapse is named as such within its first epochs; the same run with its balance in place is not."""

import json
from pathlib import Path

import pytest

from command_line import run

SMALL = (
    "pretrain", "bundled:fashion", "data.subset_size=3200", "model.patch_size=7", "model.embed_dim=64", "model.depth=2",
    "model.num_heads=2", "train.batch_size=64", "train.epochs=4", "train.lr.warmup_epochs=0.5",
    "train.log_every_steps=5", "train.health_every_steps=50", "evaluate.knn=false", "evaluate.analyze=none",
    "runtime.threads=1", "runtime.workers=0", "runtime.precision=fp32",
)  # fmt: skip
BALANCES = {
    "msn": ("msn_small", ("method.focal_size=14",), ("method.me_max=false", "method.use_sinkhorn=false")),
    "ibot": (
        "ibot_small",
        (
            "method.local_crops_number=0",
            "method.warmup_teacher_temp_epochs=0",
            "method.freeze_last_layer=0",
            "method.norm_in_head=null",
        ),
        ("method.centering=false",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", BALANCES)
def test_a_collapse_is_named_within_the_first_epochs(method: str, tmp_path: Path) -> None:
    recipe, fitting, without = BALANCES[method]
    found = {}
    for name, words in (("healthy", ()), ("collapsed", without)):
        done = run(*SMALL, "--recipe", recipe, *fitting, *words, "--name", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        file = tmp_path / "runs" / name / "health.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        found[name] = {entry["health"]: entry for entry in map(json.loads, lines)}
    assert "one_output" not in found["healthy"]
    assert found["collapsed"]["one_output"]["step"] <= 2 * 50, "two epochs of 50 steps"
    assert "Collapse" in done.stdout + done.stderr

    records = [json.loads(line) for line in (tmp_path / "runs" / "healthy" / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert {"teacher_entropy", "assignment_entropy", "prototypes_used", "agreement", "rankme", "rankme_cls"} <= set(
        last
    )
    assert last["rankme_patches"] > 1

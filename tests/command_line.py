"""The real command line in a process of its own, and settings of tiny runs that take seconds."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = (sys.executable, "-m", "halfseen")
_ALL = (
    "data.image_size=32", "model.patch_size=8", "model.embed_dim=32", "model.depth=2", "model.num_heads=2",
    "train.batch_size=8", "train.lr.warmup_epochs=0", "train.log_every_steps=1", "train.health_every_steps=null",
    "evaluate.knn=false", "evaluate.analyze=none", "runtime.threads=1", "runtime.workers=0",
)  # fmt: skip
TINY: dict[str, tuple[str, ...]] = {
    "mae": ("--recipe", "mae_small", *_ALL, "method.decoder_embed_dim=16", "method.decoder_num_heads=2"),
    "simmim": ("--recipe", "simmim_small", *_ALL, "method.mask_cell_size=8", "model.drop_path=0.2"),
    "kamim": ("--recipe", "kamim_small", *_ALL, "method.mask_cell_size=8", "method.weight_patch_size=8"),
    "localmim": (
        "--recipe",
        "localmim_small",
        *_ALL,
        "method.taps=[1,2]",
        "method.scales=[2,0.5]",
        "method.decoder_embed_dim=16",
        "method.decoder_num_heads=2",
    ),
    "ibot": (
        "--recipe",
        "attmask_small",
        *_ALL,
        "method.out_dim=24",
        "method.head_hidden_dim=16",
        "model.drop_path=0.2",
        "method.head_bottleneck_dim=8",
        "method.warmup_teacher_temp_epochs=1",
        "method.norm_in_head=null",
    ),
    "msn": (
        "--recipe",
        "msn_small",
        *_ALL,
        "method.num_prototypes=8",
        "method.hidden_dim=16",
        "method.output_dim=8",
        "train.lr.warmup_start=0",
    ),
}
"""By method, the words of a run of a few thousand weights; length and data are the test's."""


def environment() -> dict[str, str]:
    """One thread for each process, for several tests run side by side; wide lines, so that sentences aren't broken."""
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "250"}


def run(*words: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`halfseen WORDS` to its end."""
    return subprocess.run(
        [*PROGRAM, *words], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def start(*words: str, cwd: Path) -> "subprocess.Popen[str]":
    """`halfseen WORDS`, going on in the background."""
    return subprocess.Popen(
        [*PROGRAM, *words], cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def final_weights(run_dir: Path) -> str:
    """sha256 of the weights and of the optimiser's moments in the newest checkpoint."""
    newest = checkpoints(run_dir)[-1]
    found = hashlib.sha256(newest.name.encode())
    for name in ("model.safetensors", "optimizer.safetensors"):
        found.update((newest / name).read_bytes())
    return found.hexdigest()

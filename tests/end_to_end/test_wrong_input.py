"""Each mistake a person can make ends in one clear sentence, exit code 2, and nothing lost."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from command_line import TINY, checkpoints, environment, final_weights, run

MAE, IBOT, MSN, LOCALMIM = TINY["mae"], TINY["ibot"], TINY["msn"], TINY["localmim"]
NO_VIT = ("model.depth=null", "model.depths=[1,1]", "model.num_heads=[1,2]", "model.patch_size=4",
          "model.position_rule=size")  # fmt: skip

MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": (("pretrain", "photos", *MAE, "train.epohcs=3"), ("train.epohcs", "train.epochs")),
    "wrong type": (("pretrain", "photos", *MAE, "train.batch_size=many"), ("train.batch_size", "'many'", "integer")),
    "bool for a number": (("pretrain", "photos", *MAE, "train.epochs=true"), ("train.epochs", "true")),
    "all faults at once": (
        ("pretrain", "photos", *MAE, "train.epohcs=3", "method.mask_ratio=75", "sed=1"),
        ("train.epohcs", "method.mask_ratio", "0.75", "sed"),
    ),
    "freezing after the end": (("pretrain", "photos", *MAE, "train.freeze.t0=1.5"), ("train.freeze.t0", "1.5")),
    "freezing before the beginning": (("pretrain", "photos", *MAE, "train.freeze.t0=0"), ("train.freeze.t0", "0")),
    "one unit to freeze": (
        ("pretrain", "photos", *MAE, "model.depth=1", "train.freeze.freeze_patch_embed=false"),
        ("train.freeze", "two units"),
    ),
    "mask out of range": (("pretrain", "photos", *MAE, "method.mask_ratio=75"), ("method.mask_ratio", "75", "0.75")),
    "mask that hides all": (("pretrain", "photos", *MAE, "method.mask_ratio=0.99"), ("mask_ratio", "0.99")),
    "image not made of patches": (("pretrain", "photos", *MAE, "data.image_size=33"), ("33", "8")),
    "patch larger than image": (("pretrain", "photos", *MAE, "model.patch_size=64"), ("64", "32")),
    "cells that don't fit": (
        ("pretrain", "photos", *TINY["simmim"], "method.mask_cell_size=12"), ("method.mask_cell_size", "12")),
    "heads that don't divide": (("pretrain", "photos", *MAE, "model.num_heads=5"), ("num_heads", "5", "32")),
    "setting without effect": (("pretrain", "photos", *MAE, "train.lr.gamma=0.5"), ("train.lr", "gamma", "no effect")),
    "setting without effect in a method": (
        ("pretrain", "photos", *IBOT, "method.local_crops_number=0", "method.local_crop_size=24"),
        ("method.local_crop_size", "24", "no effect with local_crops_number=0")),
    "too few blocks for the taps": (
        ("pretrain", "photos", *LOCALMIM, "method.taps=null", "method.scales=[4,2,1,0.5]", "model.depth=6"),
        ("method.taps", "2, 4, 4, 6", "6 blocks", "at least 7")),
    "taps that end below the last block": (
        ("pretrain", "photos", *LOCALMIM, "model.depth=4"), ("method.taps", "4 blocks", "learn nothing", "End with 4")),
    "cells that are not whole pixels": (
        ("pretrain", "photos", *LOCALMIM, "model.patch_size=4", "method.scales=[8,1]"), ("method.scales", "8", "4 px")),
    "groups of patches that leave one over": (
        ("pretrain", "photos", *LOCALMIM, "data.image_size=40"), ("method.scales", "0.5", "5x5")),
    "method that does not exist": (("pretrain", "photos", "method.name=mea"), ("method.name", "'mea'", "'mae'")),
    "empty folder": (("pretrain", "empty", *MAE), ("empty", "image")),
    "missing folder": (("pretrain", "photoz", *MAE), ("photoz", "photos")),
    "only bad files": (("pretrain", "bad", *MAE), ("bad",)),
    "fewer images than a batch": (("pretrain", "photos", *MAE, "train.batch_size=64"), ("64", "24")),
    "recipe typo": (("pretrain", "photos", "--recipe", "mae_smal"), ("mae_smal", "mae_small")),
    "config file missing": (("pretrain", "photos", "--config", "nowhere.yaml"), ("nowhere.yaml",)),
    "resume of nothing": (("pretrain", "--resume", "runs/none"), ("runs/none",)),
    "device that is not there": (("pretrain", "photos", *MAE, "runtime.device=cuda"), ("runtime.device", "cuda")),
    "attention masks on a Swin": (
        ("pretrain", "photos", *IBOT, "model.name=swin_tiny", *NO_VIT, "model.window_size=4"),
        ("method.mask", "class token", "vit_")),
    "attention in another method on a Swin": (
        ("pretrain", "photos", *TINY["simmim"], "model.name=swin_tiny", *NO_VIT, "model.window_size=4",
         "method.attention_mask.select=high"), ("method.attention_mask", "class token", "vit_")),
    "masks for other crops": (
        ("pretrain", "photos", *IBOT, "method.mask=[{kind: attention}]"), ("mask", "1", "2", "global_crops_number")),
    "hints that show nothing": (
        ("pretrain", "photos", *IBOT, "method.mask.select=hint"), ("method.mask.show_max", "0.1", "16", "high")),
    "a layer that is not there": (
        ("pretrain", "photos", *IBOT, "method.mask.layer=5"), ("method.mask.layer", "5", "1 to 2")),
    "a ratio that reaches above 1": (
        ("pretrain", "photos", *IBOT, "method.mask.pred_ratio=0.9"), ("pred_ratio_var", "0.2", "0.9")),
    "too many anchors": (
        ("pretrain", "photos", *IBOT, "method.contrastive.k_anchors=9"), ("k_anchors", "9", "16")),
    "temperatures longer than the run": (
        ("pretrain", "photos", *IBOT, "method.warmup_teacher_temp_epochs=30"), ("train.epochs", "30", "temperature")),
    "one output": (("pretrain", "photos", *IBOT, "method.out_dim=1"), ("method.out_dim", "1", "2")),
    "local crops of no whole patch": (
        ("pretrain", "photos", *IBOT, "method.local_crop_size=20"), ("20", "8")),
    "one prototype": (("pretrain", "photos", *MSN, "method.num_prototypes=1"), ("method.num_prototypes", "1", "2")),
    "drop that keeps nothing": (
        ("pretrain", "photos", *MSN, "method.patch_drop=0.99"), ("method.patch_drop", "0.99", "16")),
    "no anchors": (
        ("pretrain", "photos", *MSN, "method.rand_views=0", "method.focal_views=0"), ("rand_views", "focal_views")),
    "prototypes on a Swin": (
        ("pretrain", "photos", *MSN, "model.name=swin_tiny", *NO_VIT, "model.window_size=4"), ("MSN", "vit_")),
    "micro-batches of a whole-batch loss": (
        ("pretrain", "photos", *MSN, "train.micro_batch_size=4"), ("train.micro_batch_size", "4", "8")),
    "decay without an end": (
        ("pretrain", "photos", *MSN, "train.optimizer.weight_decay_end=null"), ("weight_decay_end", "msn_cosine")),
    "unknown command": (("pretrian",), ("pretrian", "pretrain")),
    "unknown option": (("pretrain", "photos", "--recpie", "x"), ("--recpie",)),
    "encoder that is not there": (("knn", "nothing", "--train", "photos", "--test", "photos"), ("nothing",)),
    "data that is not there": (("data", "check", "nothing"), ("nothing",)),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """A working folder with `photos`, `empty` and `bad`."""
    make_images(tmp_path / "photos", count=24)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for number in range(10):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"not an image")
    return tmp_path


def assert_sentence(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Exit code 2, and on stderr short sentences with these words instead of a traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, place: Path) -> None:
    words, expected = MISTAKES[mistake]
    done = run(*words, cwd=place)
    assert_sentence(done, *expected)
    sentences = done.stderr.strip().splitlines()
    assert len(sentences) == (3 if mistake == "all faults at once" else 1), done.stderr
    assert not list(place.glob("runs/*/checkpoints/*"))


@pytest.fixture
def first_run(place: Path) -> Path:
    """A finished run with two checkpoints."""
    words = (*MAE, "train.epochs=2", "train.checkpoint_every_steps=3")
    done = run("pretrain", "photos", *words, "--name", "first", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "first"


def test_a_run_is_not_overwritten(place: Path, first_run: Path) -> None:
    before = final_weights(first_run)
    done = run("pretrain", "photos", *MAE, "--name", "first", cwd=place)
    assert_sentence(done, "runs/first", "--resume")
    assert final_weights(first_run) == before


def test_resume_with_other_settings_is_refused(place: Path, first_run: Path) -> None:
    before = final_weights(first_run)
    done = run("pretrain", "--resume", "runs/first", "method.mask_ratio=0.6", cwd=place)
    assert_sentence(done, "method.mask_ratio", "0.6", "0.5")
    done = run("pretrain", "--resume", "runs/first", "method.name=simmim", cwd=place)
    assert_sentence(done, "method")
    assert final_weights(first_run) == before


def test_resume_with_other_images_is_refused(place: Path, first_run: Path) -> None:
    before = final_weights(first_run)
    one = next((place / "photos").rglob("*.png"))
    one.rename(place / "elsewhere.png")
    assert_sentence(run("pretrain", "--resume", "runs/first", cwd=place), "photos", "24", "23")
    (place / "elsewhere.png").rename(one)
    assert run("pretrain", "--resume", "runs/first", cwd=place).returncode == 0
    assert final_weights(first_run) == before


def test_a_truncated_checkpoint_is_named_and_the_one_before_goes_on(place: Path, first_run: Path) -> None:
    wanted = final_weights(first_run)
    newest = checkpoints(first_run)[-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = run("pretrain", "--resume", "runs/first", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "Damaged" in done.stderr
    assert newest.name in done.stderr
    assert final_weights(first_run) == wanted


def test_only_damaged_checkpoints_are_a_sentence(place: Path, first_run: Path) -> None:
    for folder in checkpoints(first_run):
        (folder / "model.safetensors").write_bytes(b"")
    assert_sentence(run("reconstruct", "runs/first", cwd=place), "checkpoint")


def test_a_checkpoint_of_another_method_is_refused(place: Path, first_run: Path) -> None:
    done = run("pretrain", "photos", *TINY["simmim"], "train.epochs=1", "--name", "other", cwd=place)
    assert done.returncode == 0, done.stderr
    newest = checkpoints(first_run)[-1]
    for folder in checkpoints(place / "runs" / "other"):
        folder.rename(folder.with_name("gone"))
    newest.rename(place / "runs" / "other" / "checkpoints" / "step-00000099")
    assert_sentence(run("pretrain", "--resume", "runs/other", cwd=place), "'mae'", "'simmim'")


class Malicious:
    """Unpickling it writes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch hacked",))


def test_a_malicious_pickle_is_refused_and_not_run(place: Path) -> None:
    torch.save({"model": Malicious()}, place / "evil.pth")
    (place / "bare.pth").write_bytes(pickle.dumps(Malicious()))
    for name in ("evil.pth", "bare.pth"):
        assert_sentence(run("import", name, "--out", "imported", cwd=place), name)
        assert_sentence(run("pretrain", "photos", *MAE, f"init={name}", cwd=place), name)
        assert not (place / "hacked").exists()


@pytest.mark.parametrize(
    ("largest", "expected"), [(20_000, ("checkpoint", "step-00000003")), (2_000, ("A file can't be written",))]
)
def test_a_full_disk_leaves_the_previous_checkpoint(place: Path, largest: int, expected: tuple[str, ...]) -> None:
    """The size of a file is limited by the system, as by a quota: first checkpoints can't be written, then metrics."""
    words = [*MAE, "train.epochs=2", "train.checkpoint_every_steps=3"]
    assert run("pretrain", "photos", *words, "train.max_steps=3", "--name", "full", cwd=place).returncode == 0
    before = final_weights(place / "runs" / "full")
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest})); from halfseen.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "pretrain", "--resume", "runs/full", "train.max_steps=null"],
        cwd=place, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert_sentence(done, *expected)
    assert final_weights(place / "runs" / "full") == before
    assert run("pretrain", "--resume", "runs/full", "train.max_steps=null", cwd=place).returncode == 0
    assert checkpoints(place / "runs" / "full")[-1].name == "step-00000006"

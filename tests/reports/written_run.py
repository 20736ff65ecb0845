"""Writes a run's folder as a run leaves it, with hostile names, for the tests of the report."""

import json
from pathlib import Path

import numpy as np

SCRIPT = "<script>document.title='owned'</script>"
HOSTILE = (SCRIPT, "\u202egnp.exe", "a\n\"b' onerror=x", "{{ 7*7 }}", "]]></script>")
CLASSES = ("shirt", "<b>bag</b>", "boot\u202e")


def write_run(folder: Path, seed: int = 0, loss: float = 1.0) -> Path:
    """Config, environment, data, 200 logged steps, a finding, a k-NN result and reconstructions."""
    drawing = np.random.default_rng(seed)
    (folder / "evaluations").mkdir(parents=True)
    (folder / "figures").mkdir()
    (folder / "config.yaml").write_text(
        f"seed: {seed}  # override\nmethod:\n  name: mae\nmodel:\n  name: vit_tiny\ndata:\n  source: my_photos\n"
        "  image_size: 32\n"
    )
    _write(folder / "environment.json", {"command": f"halfseen pretrain my_photos seed={seed}", "cores": 2})
    skipped = [{"index": 1, "path": name, "reason": "truncated", "replaced_by": 2} for name in HOSTILE]
    _write(folder / "data.json", {"images": 4321, "fingerprint": "ab" * 32, "skipped": skipped, "left_out": []})
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(10, 2010, 10):
            record = {
                "step": step, "epoch": step / 100, "samples_seen": 8 * step, "loss": loss * 100 / (100 + step),
                "lr": 1e-3 * min(1, step / 500), "images_per_second": 100.0, "data_wait_share": 0.1,
                "seconds": step / 10, "mse": 0.5,
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    finding = {"health": "mean", "step": 200, "sentence": f"The loss is flat {SCRIPT}. Change train.lr.base."}
    (folder / "health.jsonl").write_text(json.dumps(finding) + "\n")
    _write(folder / "evaluations" / "knn.json", result(seed))
    _write_pictures(folder / "figures" / "reconstruction.npz", drawing)
    return folder


def result(seed: int = 0) -> dict[str, object]:
    """A complete k-NN result; the encoder lies between the baselines."""
    return {
        "protocol": "knn", "protocol_text": "Nothing is trained.", "settings": {}, "n": 300, "n_train": 1000,
        "headline": {"k": 20, "temperature": 0.07}, "features": "mean of patch tokens", "feature_dim": 24,
        "role": "student", "encoder": "x", "split": "test", "seed": seed, "num_classes": 3,
        "data": {"train": {"source": "my_photos", "split": "train", "n": 1000},
                 "test": {"source": "my_photos", "split": "test", "n": 300}},
        "metrics": {"top1": 71.25 + seed, "top1_k10": 70.0, "top1_k20": 71.25 + seed},
        "baselines": {"random_init": {"top1": 60.5, "top1_k10": 60.0, "top1_k20": 60.5},
                      "raw_pixels": {"top1": 81.125, "top1_k10": 80.0, "top1_k20": 81.125}},
        "confidence_interval": {"encoder": [66.0, 76.1], "random_init": [54.9, 65.9], "raw_pixels": [76.3, 85.1]},
        "confidence_text": "95 % Wilson interval.",
        "per_class": [
            {"name": name, "n": 100, "encoder": 70.0 + index, "baselines": {"random_init": 60.0, "raw_pixels": 80.0}}
            for index, name in enumerate(CLASSES)
        ],
        "confusion": [[70, 20, 10], [15, 71, 14], [13, 15, 72]],
        "notes": ["The encoder is 9.9 points worse than raw pixels."],
        "seconds": 1.0, "halfseen_version": "0.1.0", "added_by_a_later_version": [1],
    }  # fmt: skip


def clusters() -> dict[str, object]:
    """A result that uses no labels and has another first number than top-1."""
    return result() | {
        "protocol": "cluster",
        "primary": "acc",
        "headline": {"clusters": 3, "runs": 5},
        "n_train": 0,
        "data": {"test": {"source": "my_photos", "split": "test", "n": 300}},
        "metrics": {"nmi": 32.5, "nmi_std": 1.25, "acc": 41.75, "acc_std": 2.0},
        "baselines": {"raw_pixels": {"nmi": 61.0, "nmi_std": 0.5}},
        "confidence_interval": {"encoder": [36.0, 47.6]},
        "confidence_text": "Of acc.",
    }


def _write_pictures(path: Path, drawing: np.random.Generator) -> None:
    original = drawing.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    stack = drawing.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    score = drawing.uniform(10, 20, (2, 3))
    np.savez(
        path, original=original, masked=stack, predicted=stack, pasted=stack, hidden_share=np.array([0.5, 0.75]),
        psnr_hidden=score, psnr_whole=score, ssim_hidden=score / 20, ssim_whole=score / 20, indices=np.arange(3),
        paths=np.array([f"folder/{SCRIPT.replace('/', '|')}.png", "folder/b$x$.png", "c.png"]),
        note="Pixels $as$ they are.",
    )  # fmt: skip


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))

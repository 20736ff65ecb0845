"""Writes the folder of an analysis as `halfseen analyze` leaves it, small and made up, for the tests of the report."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reports.written_run import HOSTILE

IMAGES, SHOWN, SIZE, HEADS = 7, 3, 16, 2
CLASS_NAMES = ["shirt", "</script><script>alert(1)</script>", "boot\u202e"]

Arrays = dict[str, NDArray[np.generic]]


def write_analysis(
    folder: Path,
    names: tuple[str, ...] = ("run",),
    grids: tuple[tuple[int, int], ...] = ((4, 4),),
    layers: int = 2,
    seed: int = 0,
    fingerprint: str = "ab",
    notes: dict[str, list[str]] | None = None,
) -> Path:
    """`analysis.json` and an `.npz` for each name; the images are the same whatever the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, grid) in enumerate(zip(names, grids, strict=True)):
        arrays = images() | encoder_arrays(grid, layers, seed + number)
        np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
        rows.append(
            {
                "name": name, "file": f"{name}.npz", "origin": "x", "role": "student", "image_size": SIZE,
                "patch_size": SIZE // grid[0], "grid": list(grid), "num_layers": layers, "embed_dim": 8,
                "numbers": {"cosine_at_1": 0.75 + number / 100, "probe_held_out": 0.5, "rankme_mean": None,
                            "new_one": 3},
                "notes": notes or {},
            }
        )  # fmt: skip
    summary = {
        "data": {"source": "my_photos", "split": "test", "n": IMAGES, "fingerprint": fingerprint},
        "class_names": CLASS_NAMES, "settings": {"resize": "crop", "crop_ratio": 1.0}, "notes": [], "between": None,
        "encoders": rows, "added_by_a_later_version": 1,
    }  # fmt: skip
    (folder / "analysis.json").write_text(json.dumps(summary))
    return folder


def images() -> Arrays:
    drawing = np.random.default_rng(99)
    return {
        "images/indices": np.arange(IMAGES) * 3,
        "images/labels": np.array([0, 1, 2, 0, 1, 2, -1]),
        "images/shown": drawing.integers(0, 256, (SHOWN, SIZE, SIZE, 3), dtype=np.uint8),
        "images/thumbnails": drawing.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8),
        "images/paths": np.array([f"folder/{name}".replace("</", "<|") for name in HOSTILE[:4]]),
    }


def encoder_arrays(grid: tuple[int, int], layers: int, seed: int) -> Arrays:
    drawing = np.random.default_rng(seed)
    patches = grid[0] * grid[1]
    names = [*map(str, range(1, layers + 1)), "final"]
    arrays: Arrays = {"similarity/layers": np.array(names)}
    for name in names:
        tokens = drawing.normal(size=(SHOWN, patches, 8))
        tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
        arrays[f"similarity/pairs.{name}"] = (tokens @ tokens.swapaxes(1, 2)).astype(np.float16)
        arrays[f"similarity/colours.{name}"] = drawing.integers(0, 256, (SHOWN, *grid, 3), dtype=np.uint8)
        arrays[f"similarity/grid.{name}"] = np.array(grid)
    weights = drawing.dirichlet(np.ones(patches), (layers, SHOWN, HEADS, 2))
    arrays |= {
        "attention/maps": weights.reshape(layers, SHOWN, HEADS, 2, *grid).astype(np.float16),
        "attention/queries": np.array([[1, 2]]),
        "rank/nearest": np.array([[4, 5], [3, 6], [0, 1]]),
        "rank/nearest_similarity": np.array([[0.9, 0.8], [0.7, 0.6], [0.5, -0.25]], np.float32),
        "masking/nearest": drawing.integers(0, IMAGES, (5, 2, 2)),
        "masking/similarity": drawing.uniform(0, 1, (5, 2, 2)).astype(np.float32),
        "masking/hidden": drawing.uniform(size=(SHOWN, 2, patches)) < 0.8,
        "embedding/images_pca": drawing.normal(size=(IMAGES, 2)).astype(np.float32),
        "embedding/images_tsne": drawing.normal(size=(IMAGES, 2)).astype(np.float32),
        "geometry/distances": np.arange(1, 5),
        "geometry/cosines": drawing.uniform(0, 1, 4),
    }
    return arrays

"""Finds the reference arrays that the parity tests compare against.

The arrays lie in one sub-folder per topic of `HALFSEEN_PARITY_DIR` (default: this folder). A file's *kind* is the
longest known prefix of its name; whatever follows the prefix tells files of one kind apart. A kind that begins with an
underscore goes before: it claims every file that holds it. Each parity test runs for every file of its kind that is
found, so vectors with other sizes and seeds can be dropped in without touching a test.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

KINDS: dict[str, dict[str, str]] = {
    "simmim": {
        "vit_official": ".npz",
        "vit_official_finetune_from_pretrain": ".npz",
        "swin_official": ".npz",
        "mask_generator": ".npz",
        "param_groups": ".json",
        "lr_schedule": ".npz",
        "rpb_resize": ".npz",
        "vit_seed_simmim": ".npz",
        "vit_seed_encoder": ".npz",
        "vit_seed_finetune": ".npz",
    },
    "mae": {"tiny_mae": ".npz", "finetune_vit": ".npz", "schedules_and_utils": ".npz"},
    "kamim": {
        "weights_": ".npz",
        "loss_": ".npz",
        "masks": ".npz",
        "lr_": ".npz",
        "vit_step": ".npz",
        "swin_step": ".npz",
    },
    "knn_linear": {
        "knn": ".npz",
        "clustering": ".npz",
        "features": ".npz",
        "linear_probe": ".npz",
        "attention_threshold": ".npz",
    },
    "ibot": {
        "train_": ".npz",
        "ibot_loss": ".npz",
        "schedules": ".npz",
        "lars": ".npz",
        "block_masks": ".npz",
        "head": ".npz",
        "vit_backbone_io": ".npz",
        "swin_backbone_io": ".npz",
    },
    "msn_logistic": {"": ".npz"},
    "msn": {
        "train_step_": ".npz",
        "loss": ".npz",
        "loss_": ".npz",
        "schedules": ".npz",
        "features": ".npz",
        "linear_eval": ".npz",
    },
    "freezeout": {"lr_timelines": ".npz", "train_trace_": ".npz"},
    "localmim": {
        "ilsvrc2012_mapping": ".npz",
        "hog_targets": ".npz",
        "vit_": ".npz",
        "swin_": ".npz",
        "_finetune": ".npz",
        "_layer_decay": ".npz",
    },
    "attention_masking": {
        "thesis_masks_": ".npz",
        "rollout_": ".npz",
        "attmask": ".npz",
        "contrastive": ".npz",
        "vit12_attention": ".npz",
    },
    "geometry": {
        "feature_geometry": ".npz",
        "patch_labels": ".npz",
        "probe_and_spatial": ".npz",
        "segmentation_metrics": ".npz",
        "evaluation_end_to_end": ".npz",
        "split_seed42_n": ".npz",
        "trimap_transform": ".npz",
    },
    "representation": {
        "vit_analysis": ".npz",
        "attention": ".npz",
        "fourier": ".npz",
        "reconstruction": ".npz",
        "spectra": ".npz",
        "frequency_noise": ".npz",
    },
}
"""Topic -> prefix (with an underscore: any part) of the file names of a kind -> suffix of its files."""

COMPANIONS: dict[str, dict[str, str]] = {
    "ibot": {
        "head": ".safetensors",
        "train_": ".safetensors",
        "vit_backbone": ".safetensors",
        "swin_backbone": ".safetensors",
    },
    "freezeout": {"train_trace_": ".safetensors"},
    "knn_linear": {"feature_backbone": ".safetensors"},
    "localmim": {"vit_": ".safetensors", "swin_": ".safetensors"},
    "attention_masking": {"vit12_backbone": ".safetensors"},
}
"""Files that the test of another kind reads beside its own, e.g. the weights of a training trace."""

NOT_YET: dict[str, dict[str, str]] = {}
"""Kinds of parts that the library doesn't have yet: no strays, but without a test."""

VECTOR_SUFFIXES = (".npz", ".json", ".safetensors")


def parity_dir() -> Path:
    """The folder that holds one sub-folder of vectors per topic."""
    return Path(os.environ.get("HALFSEEN_PARITY_DIR") or Path(__file__).parent)


def vectors(topic: str) -> list[Path]:
    """All vector files of a topic, sorted by name; anything else (a README) is no vector."""
    folder = parity_dir() / topic
    return sorted(path for path in folder.glob("*") if path.suffix in VECTOR_SUFFIXES)


def kind_of(path: Path, topic: str) -> str | None:
    """The kind that a vector file belongs to, or None where no kind claims it."""
    kinds = [*KINDS[topic].items(), *NOT_YET.get(topic, {}).items(), *COMPANIONS.get(topic, {}).items()]
    fitting = [kind for kind, suffix in kinds if path.suffix == suffix]
    inside = [kind for kind in fitting if kind.startswith("_") and kind in path.name]
    return max(inside or [kind for kind in fitting if path.name.startswith(kind)], key=len, default=None)


def parity_files(topic: str, prefix: str) -> list:
    """Parameters for `pytest.mark.parametrize("path", ...)`: every file of a kind; one skipped case if none is."""
    if prefix not in KINDS[topic]:
        raise KeyError(f"{prefix!r} is no kind of topic {topic!r}. Known: {', '.join(KINDS[topic])}.")
    suffix = KINDS[topic][prefix]
    found = [path for path in vectors(topic) if kind_of(path, topic) == prefix and path.suffix == suffix]
    if not found:
        reason = f"no {prefix}*{suffix} in {parity_dir() / topic}"
        return [pytest.param(None, id=f"no-{prefix}", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=path.stem) for path in found]


def companion(path: Path, prefix: str, other: str) -> Path:
    """The file beside `path` whose name has `other` where that of `path` has `prefix`; a missing one fails the test."""
    beside = path.with_name(other + path.name.removeprefix(prefix))
    if not beside.is_file():
        pytest.fail(f"{path.name} needs {beside.name} beside it, which isn't there")
    return beside


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file; pickled objects are refused."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def state_under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The arrays whose names start with `prefix`, as tensors, without it: "sd/" gives the state dict."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(prefix)
    }

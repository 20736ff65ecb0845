"""What is wrong with images, labels or encoder of an evaluation is one sentence and exit code 2, in every command."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import export_encoder
from halfseen.cli.main import run

VIT = {"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
SWIN = {"name": "swin_tiny", "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


def write_masks(folder: Path, values: Sequence[int], side: int = 32) -> None:
    """Four pictures of 32 pixels with masks of `side` pixels that hold these values."""
    for number in range(4):
        for kind, size in (("images", 32), ("masks", side)):
            pixels = np.random.default_rng(number).choice(values, (size, size)).astype(np.uint8)
            picture = np.repeat(pixels[..., None] * 30, 3, axis=2) if kind == "images" else pixels
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / kind / f"{number}.png")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By word: encoders, and folders and lists of images that are wrong in one way each."""
    root = tmp_path_factory.mktemp("wrong")
    for name, settings in {"VIT": VIT, "SWIN": SWIN}.items():
        torch.manual_seed(0)
        built = build_encoder(ModelConfig.model_validate(settings), 32)
        export_encoder(built, root / name, mean=(0.5,) * 3, std=(0.25,) * 3, role="student")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for folder, classes in {"TWO": 2, "THREE": 3, "FLAT": 0}.items():
        for number, picture in enumerate(pixels):
            place = root / folder / f"class{number % classes}" if classes else root / folder
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.png")
    lines = "".join(f"FLAT/{number}.png,cat\n" for number in range(12))
    (root / "one.csv").write_text(f"image,label\n{lines}")
    (root / "absent.txt").write_text("class0/0.png\nclass0/99.png\n")
    save_file({"weight": torch.zeros(3)}, root / "foreign.safetensors")
    write_masks(root / "SMALL_MASKS", (0, 1), side=16)
    write_masks(root / "ONE_MASK", (0,))
    write_masks(root / "MASKS", (0, 1))
    write_masks(root / "OTHER_MASKS", (0, 1, 2))
    found = {
        "VIT": root / "VIT" / "encoder.safetensors",
        "SWIN": root / "SWIN" / "encoder.safetensors",
        "FOREIGN": root / "foreign.safetensors",
        "ONE_CLASS": root / "one.csv",
        "LIST": root / "absent.txt",
    }
    folders = ("TWO", "THREE", "FLAT", "SMALL_MASKS", "ONE_MASK", "MASKS", "OTHER_MASKS")
    return {word: str(path) for word, path in (found | {name: root / name for name in folders}).items()}


SEGMENT = "segment VIT --own-splits --train"
CASES: dict[str, tuple[str, str]] = {
    # labels are missing
    "knn without labels": ("knn VIT --train FLAT", "none of the 12 training images has one"),
    "linear without labels": ("linear VIT --train FLAT", "none of the 12"),
    "logistic without labels": ("logistic VIT --train FLAT", "has no labels to draw from"),
    "cluster without labels": ("cluster VIT --data FLAT", "have 0 classes"),
    "finetune without labels": ("finetune VIT --train FLAT", "label"),
    "segment without masks": (f"{SEGMENT} TWO", "Put masks into a folder `masks`"),
    "intermediate without labels": ("intermediate VIT --data FLAT --out OUT", "label"),
    # test images without labels
    "knn without test labels": ("knn VIT --train TWO --test FLAT", "label"),
    "linear without test labels": ("linear VIT --train TWO --test FLAT", "none of the 12 test images has one"),
    "logistic without test labels": (
        "logistic VIT --train TWO --test FLAT --per-class 1", "no labelled image is left to classify"
    ),
    "finetune without test labels": ("finetune VIT --train TWO --test FLAT", "label"),
    # the splits have different classes
    "knn with new classes": ("knn VIT --train TWO --test THREE", "has classes that"),
    "linear with new classes": ("linear VIT --train TWO --test THREE", "has classes that"),
    "logistic with new classes": ("logistic VIT --train TWO --test THREE", "has classes that"),
    "finetune with new classes": ("finetune VIT --train TWO --test THREE", "has classes that"),
    "segment with new classes": (f"{SEGMENT} MASKS --test OTHER_MASKS", "have the classes 0, 1, 2, those of"),
    # one class only
    "knn of one class": ("knn VIT --train ONE_CLASS", "at least 2 classes"),
    "linear of one class": ("linear VIT --train ONE_CLASS", "at least 2 classes"),
    "logistic of one class": ("logistic VIT --train ONE_CLASS --per-class 2", "at least 2"),
    "cluster of one class": ("cluster VIT --data ONE_CLASS", "have 1 classes"),
    "finetune of one class": ("finetune VIT --train ONE_CLASS", "class"),
    "segment of one class": (f"{SEGMENT} ONE_MASK", "hold 1 class, but at least 2 are needed"),
    "intermediate of one class": ("intermediate VIT --data ONE_CLASS --out OUT", "class"),
    # images that aren't there, too few of them
    "logistic of absent images": ("logistic VIT --train TWO --split LIST", "1 of the 2 images in"),
    "knn of too many neighbours": ("knn VIT --train TWO --k 50", "only 11 labelled training images can vote"),
    "logistic of too many images": ("logistic VIT --train TWO --per-class 50", "50 images per class were asked for"),
    "cluster of too many clusters": ("cluster VIT --data TWO --clusters 50", "50 clusters of 12 labelled images"),
    "segment of too many images": (
        "segment VIT --train MASKS --train-size 50 --test-size 2", "50"
    ),
    # masks of another size
    "segment with small masks": (f"{SEGMENT} SMALL_MASKS", "has 32 x 32 pixels, but its mask 16 x 16"),
    # an encoder that doesn't fit
    **{
        f"{name} with a foreign file": (f"{name} FOREIGN {option} TWO", "no known layout")
        for name, option in {
            "knn": "--train", "linear": "--train", "logistic": "--train", "cluster": "--data", "finetune": "--train",
            "segment": "--own-splits --train",
        }.items()
    },
    **{
        f"{name} at a size that patches don't fill": (f"{name} VIT {option} TWO --image-size 30", "30")
        for name, option in {
            "knn": "--train", "linear": "--train", "logistic": "--train", "cluster": "--data", "finetune": "--train",
        }.items()
    },
    "segment at a size that patches don't fill": (f"{SEGMENT} MASKS --image-size 30", "30"),
    "knn without a class token": ("knn SWIN --train TWO --feature cls", "has no class token"),
    "linear without a class token": ("linear SWIN --train TWO --protocol mae-linear", "has no class token"),
    "logistic without a class token": ("logistic SWIN --train TWO --per-class 1 --feature cls", "has no class token"),
    "cluster without a class token": ("cluster SWIN --data TWO --feature cls", "has no class token"),
    "finetune without a class token": ("finetune SWIN --train TWO feature=cls", "class token"),
    "cluster by a head that isn't there": ("cluster VIT --data TWO --source head", "is not a run"),
    "linear of blocks that aren't there": ("linear VIT --train TWO --layer 9", "has the blocks 1 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_one_sentence(
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, sentence = CASES[name]
    known = places | {"OUT": str(tmp_path / "out")}
    code = run([known.get(word, word) for word in words.split()])
    said = capsys.readouterr().err
    assert code == 2, said
    assert known.get(sentence, sentence) in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    assert said.strip().endswith((".", "?", "'")), said
    # A folder that was begun is marked as a segmentation's, but holds no result.
    assert [path for path in tmp_path.rglob("*.json") if path.name != "segmentation.json"] == []

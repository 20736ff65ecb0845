"""Segmentation's splits, transform, metrics and whole evaluation against recorded numbers of ViNy's original."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Integer
from numpy.typing import NDArray
from PIL import Image

from halfseen.data.resident import flip_some, read_resident
from halfseen.data.sources import open_source
from halfseen.data.subsets import draw_train_and_test
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.protocol import measure_again
from halfseen.evaluation.segmentation.saved import load_trained
from halfseen.evaluation.statements import Split
from halfseen.ops.pixels import normalise
from halfseen.ops.segmentation import dataset_class_iou, image_scores, pixel_confusion
from parity.discovery import load_arrays, parity_files, state_under


@pytest.mark.parametrize("path", parity_files("geometry", "segmentation_metrics"))
def test_metrics(path: Path) -> None:
    arrays = load_arrays(path)
    num_classes = arrays["out/per_image_class_iou"].shape[1]
    confusion = pixel_confusion(torch.from_numpy(arrays["in/pred"]), torch.from_numpy(arrays["in/target"]), num_classes)
    scores = image_scores(confusion)
    close = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(scores.accuracy.numpy(), arrays["out/per_image_accuracy"], **close)
    np.testing.assert_allclose(scores.class_iou.numpy(), arrays["out/per_image_class_iou"], **close)
    np.testing.assert_allclose(scores.miou.numpy(), arrays["out/per_image_miou"], **close)
    assert float(scores.accuracy.mean()) == pytest.approx(float(arrays["out/mean_accuracy"]), abs=1e-9)
    assert float(scores.miou.mean()) == pytest.approx(float(arrays["out/mean_miou"]), abs=1e-9)
    pooled = dataset_class_iou(confusion)
    np.testing.assert_allclose(pooled.numpy(), arrays["alt/dataset_level_class_iou"], **close)
    assert float(pooled.mean()) == pytest.approx(float(arrays["alt/dataset_level_miou"]), abs=1e-9)


@pytest.mark.parametrize("path", parity_files("geometry", "split_seed42_n"))
def test_the_permutation_of_the_splits(path: Path) -> None:
    order = load_arrays(path)["perm"]
    first, rest = draw_train_and_test(len(order), len(order) // 3, len(order) - len(order) // 3)
    np.testing.assert_array_equal(np.concatenate([first, rest]), order)


@pytest.mark.parametrize("path", parity_files("geometry", "trimap_transform"))
def test_image_and_trimap_are_resized_together(path: Path, tmp_path: Path) -> None:
    """Through the files of Oxford-IIIT Pets, as its archives unpack."""
    arrays = load_arrays(path)
    write_pets(tmp_path, arrays["in/image"], arrays["in/trimap"])
    source = open_source(str(tmp_path))
    np.testing.assert_array_equal(source.mask(0), arrays["out/labels_fullres"][0])
    found = read_resident(source, int(arrays["meta/size"]), masks=True)
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks.numpy(), arrays["out/labels"])
    flipped = flip_some(found.images, torch.tensor([True]))
    for views, expected in ((found.images, "out/image"), (flipped, "out/image_hflip")):
        shown = normalise(views, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[0]
        np.testing.assert_allclose(shown.numpy(), arrays[expected], rtol=0, atol=1e-7)


@pytest.mark.parametrize("path", parity_files("geometry", "evaluation_end_to_end"))
def test_the_whole_evaluation(path: Path, tmp_path: Path) -> None:
    """A fine-tuned model of the original, images in files, both splits drawn by seed 42: the four printed numbers."""
    arrays = load_arrays(path)
    targets = arrays["in/targets"][:, 0]
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number, (image, target) in enumerate(zip(arrays["in/images"], targets, strict=True)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "data/images" / f"{number:05d}.png")
        Image.fromarray(target).save(tmp_path / "data/masks" / f"{number:05d}.png")
    torch.save(state_under(arrays, "sd/"), tmp_path / "finetuned.pth")
    train_size, test_size = int(arrays["meta/train_size"]), int(arrays["meta/test_size"])
    order = arrays["meta/perm_seed42"]
    rows = draw_train_and_test(len(targets), train_size, test_size)
    np.testing.assert_array_equal(np.concatenate(rows), order[: train_size + test_size])
    settings = SegmentationConfig.model_validate(
        {"train_size": train_size, "test_size": test_size, "flip": 0.0, "contrast": 0.0}
    )
    trained = load_trained(tmp_path / "finetuned.pth", settings, num_heads=int(arrays["meta/heads"]))
    found = measure_again(trained, Split(open_source(str(tmp_path / "data")), "train"), None)
    ours = [found.metrics[name] / 100 for name in ("miou", "accuracy", "miou_train", "accuracy_train")]
    np.testing.assert_allclose(ours, arrays["out/printed_test_miou_acc_train_miou_acc"], rtol=0, atol=6e-5)


def write_pets(root: Path, image: Integer[np.ndarray, "H W 3"], trimap: NDArray[np.uint8]) -> None:
    """One photograph in the layout of Oxford-IIIT Pets, without loss."""
    (root / "images").mkdir()
    (root / "annotations" / "trimaps").mkdir(parents=True)
    with (root / "images" / "Abyssinian_1.jpg").open("wb") as file:
        Image.fromarray(image).save(file, format="PNG")  # Files are known by their content.
    Image.fromarray(trimap).save(root / "annotations" / "trimaps" / "Abyssinian_1.png")
    (root / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\n")

"""Nothing leaks: labels that say nothing teach nothing, and test images change nothing on the training side.

The pictures are of twenty colours, so that any honest evaluation with true labels is far above chance. With shuffled
labels a classifier may still give all pictures of one colour the same class: in the worst case the twenty colours, not
the pictures, are the independent draws of a binomial, and the bound is made for that.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from evaluation.subjects import subject_of
from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.config.load import Layer, load_config
from halfseen.data.label_splits import draw_label_splits
from halfseen.data.sources import ArraySource
from halfseen.evaluation.finetuning.config import FinetuneConfig
from halfseen.evaluation.finetuning.protocol import finetune
from halfseen.evaluation.finetuning.published import finetune_settings
from halfseen.evaluation.intermediate.config import IntermediateConfig, intermediate_settings
from halfseen.evaluation.intermediate.protocol import intermediate_stage
from halfseen.evaluation.knn.protocol import knn_protocol
from halfseen.evaluation.linear.config import LinearConfig, linear_protocol_settings
from halfseen.evaluation.linear.protocol import linear_protocol
from halfseen.evaluation.low_shot.config import LogisticConfig
from halfseen.evaluation.low_shot.protocol import logistic_protocol
from halfseen.evaluation.results import EvaluateConfig, Result
from halfseen.evaluation.segmentation.config import SegmentationConfig, segmentation_settings
from halfseen.evaluation.segmentation.protocol import segmentation_protocol
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import Subject

MODEL = ModelConfig.model_validate({"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2})
NUM_CLASSES = 20
SIDE = 16
COLOURS = np.array(list(product((40, 128, 215), repeat=3)))[:NUM_CLASSES]
SHUFFLES = 2


def pictures(per_class: int, seed: int, noise: float = 8.0) -> ArraySource:
    """Plain colours, one for each class, with noise."""
    drawing = np.random.default_rng(seed)
    labels = np.repeat(np.arange(NUM_CLASSES), per_class)
    colours = COLOURS[labels] + drawing.normal(scale=noise / 2, size=(len(labels), 3))
    pixels = colours[:, None, None] + drawing.normal(scale=noise, size=(len(labels), SIDE, SIDE, 3))
    images = np.clip(pixels, 0, 255).astype(np.uint8)
    return ArraySource(f"colours {seed}", images, labels, [f"colour {number}" for number in range(NUM_CLASSES)])


def shuffled(source: ArraySource, seed: int) -> ArraySource:
    labels = np.random.default_rng(seed).permutation(source.labels)
    return ArraySource(source.name, source.images, labels, source.class_names)


def built() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder(MODEL, SIDE)


def subject() -> Subject:
    return subject_of(built(), built)[0]


def knn(train: ArraySource, test: ArraySource, folder: Path) -> Result:
    config = EvaluateConfig.model_validate({"crop_ratio": 1.0, "k": (5,)})
    return knn_protocol(subject(), Split(train, "train"), Split(test, "test"), config)


def linear(train: ArraySource, test: ArraySource, folder: Path, protocol: str = "linear", **changes: object) -> Result:
    quick = {"epochs": 12, "batch_size": 40, "crop_ratio": 1.0, "lr": (0.1, 1.0)}
    config = LinearConfig.model_validate(linear_protocol_settings(protocol) | quick | changes)
    return linear_protocol(subject(), Split(train, "train"), Split(test, "test"), config)


def logistic(train: ArraySource, test: ArraySource, folder: Path) -> Result:
    config = LogisticConfig.model_validate({"crop_ratio": 1.0, "sweep": (0.01, 0.1)})
    splits = draw_label_splits(train, per_class=(5,), draw=0, seed=0)
    return logistic_protocol(subject(), Split(train, "train"), Split(test, "test"), splits, config)


def fine_tuned(train: ArraySource, test: ArraySource, folder: Path, *changes: str) -> Result:
    settings = finetune_settings("finetune", built())
    words = [
        "train.epochs=4", "train.batch_size=20", "train.lr.warmup_epochs=0", "train.lr.base=0.1", "layer_decay=1",
        "runtime.device=cpu", "runtime.precision=fp32", "runtime.threads=1", "runtime.workers=0", "augment.hflip=0",
        f"data.image_size={SIDE}", f"run_dir={folder}", "baselines=false", "evaluate_every_epochs=2", *changes,
    ]  # fmt: skip
    layers = [Layer("protocol", settings.settings), Layer("encoder", {"encoder": "here"})]
    config = load_config(FinetuneConfig, layers, words)
    result = finetune(subject(), Split(train, "train"), Split(test, "test"), config, settings).result
    assert result is not None
    return result


def stage(train: ArraySource, test: ArraySource, folder: Path) -> Result:
    config = IntermediateConfig.model_validate({"epochs": 6, "batch_size": 20, "lr": 5e-3, "contrast": 0.0})
    return intermediate_stage(subject(), Split(train, "train"), Split(test, "test"), config, out=folder).result


class Case(NamedTuple):
    """An evaluation of images with one label each.

    Attributes:
        measure: (train, test, an empty folder) to its result.
        least: top-1 in percent that true labels must give the best of the contestants.
        chooses_on_test: whether its own rule looks at the test images.
    """

    measure: Callable[[ArraySource, ArraySource, Path], Result]
    least: float = 80.0
    chooses_on_test: bool = False


def _fine_tuned(*changes: str) -> Callable[[ArraySource, ArraySource, Path], Result]:
    return lambda train, test, folder: fine_tuned(train, test, folder, *changes)


CASES: dict[str, Case] = {
    "knn": Case(knn),
    "linear, cached": Case(linear),
    "linear, augmented": Case(partial(linear, augmentation="crop", epochs=4)),
    "linear, last epoch": Case(partial(linear, choose="last", lr=(1.0,))),
    "ibot-linear": Case(
        partial(linear, protocol="ibot-linear", augmentation="none", last_blocks=1, lr=(1.0,)), chooses_on_test=True
    ),
    "msn-linear": Case(partial(linear, protocol="msn-linear", augmentation="none", lr=(0.5,)), chooses_on_test=True),
    "logistic": Case(logistic),
    "finetune": Case(_fine_tuned(), least=50.0),
    "finetune, held-out": Case(_fine_tuned("choose=held-out"), least=50.0),
    "finetune, best on test": Case(_fine_tuned("choose=test"), least=50.0, chooses_on_test=True),
    "intermediate": Case(stage, least=50.0),
}


def contestants(result: Result) -> Mapping[str, float]:
    every = {"encoder": result.metrics, **result.baselines}
    return {name: each["top1"] for name, each in every.items() if "top1" in each}


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("finetune, held-out", "finetune, best on test")]
)
def test_shuffled_labels_teach_nothing(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    train, test = pictures(10, seed=1), pictures(5, seed=2)
    honest = contestants(case.measure(train, test, tmp_path / "honest"))
    chance, draws = 1 / NUM_CLASSES, NUM_CLASSES * SHUFFLES
    bound = 100 * (chance + 3.5 * (chance * (1 - chance) / draws) ** 0.5)
    assert bound < 20
    assert max(honest.values()) > case.least > 2 * bound, honest
    found = [contestants(case.measure(shuffled(train, seed), test, tmp_path / str(seed))) for seed in range(SHUFFLES)]
    for who in honest:
        assert np.mean([each[who] for each in found]) < bound, (who, found)


def disturbed(test: ArraySource) -> ArraySource:
    """The second half of the classes shows other pictures under other labels; the first half is as it was."""
    late = test.labels >= NUM_CLASSES // 2
    drawing = np.random.default_rng(5)
    images, labels = test.images.copy(), test.labels.copy()
    images[late] = drawing.integers(0, 256, images[late].shape, dtype=np.uint8)
    labels[late] = drawing.permutation(labels[late])
    return ArraySource(test.name, images, labels, test.class_names)


def training_side(result: Result, folder: Path) -> dict[str, object]:
    """What a result tells of training and choice, all weights that it wrote, and what becomes of undisturbed images."""
    early = [row for row in result.per_class if int(row.name.split()[1]) < NUM_CLASSES // 2]
    assert len(early) == NUM_CLASSES // 2
    return {
        "headline": result.headline,
        "train": result.data["train"],
        "curves": {name: values for name, values in result.curves.items() if not name.startswith("test_")},
        "settings": result.settings,
        "per class": early,
        "predictions": None if result.confusion is None else result.confusion[: NUM_CLASSES // 2],
        "weights": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*.safetensors")
        },
    }


@pytest.mark.parametrize("name", CASES)
def test_test_images_change_nothing_on_the_training_side(name: str, tmp_path: Path) -> None:
    """Trained on shuffled labels, so that predictions are shaky: any change of a weight would turn some of them."""
    case = CASES[name]
    train, test = shuffled(pictures(10, seed=1, noise=60.0), 7), pictures(8, seed=2, noise=60.0)
    folders = tmp_path / "usual", tmp_path / "other"
    usual, other = (
        case.measure(train, each, folder) for each, folder in zip((test, disturbed(test)), folders, strict=True)
    )
    one, two = training_side(usual, folders[0]), training_side(other, folders[1])
    words = f"{usual.protocol_text} {' '.join(usual.notes)}"
    assert ("on the test images" in words and "the number is optimistic" in words) is case.chooses_on_test
    if case.chooses_on_test:
        # The classifiers are the same in every epoch; only which of them is reported may change.
        one, two = ({key: side[key] for key in ("train", "settings", "curves")} for side in (one, two))
    assert one == two
    assert usual.confusion is None or usual.confusion != other.confusion  # the disturbance was seen


def test_a_choice_on_the_test_images_is_one(tmp_path: Path) -> None:
    """What the words of such a result warn of does happen: with other test labels another epoch or rate is reported."""
    train, test = shuffled(pictures(10, seed=1, noise=60.0), 7), pictures(8, seed=2, noise=60.0)
    measure = partial(linear, protocol="ibot-linear", augmentation="none", last_blocks=1)
    results = [measure(train, each, tmp_path) for each in (test, *(shuffled(test, seed) for seed in range(4)))]
    assert len({(each.headline["lr"], each.headline["epoch"]) for each in results}) > 1


NUM_PIXEL_CLASSES = 8
QUARTERS = ((0, 0), (0, 8), (8, 0), (8, 8))


class Quarters(ArraySource):
    """Pictures of four plain squares, a patch each; the class of a pixel is the colour of its square."""

    def __init__(self, count: int, seed: int) -> None:
        drawing = np.random.default_rng(seed)
        self.kinds = drawing.integers(0, NUM_PIXEL_CLASSES, (count, 4))
        images = np.zeros((count, SIDE, SIDE, 3))
        for number, (row, column) in enumerate(QUARTERS):
            images[:, row : row + 8, column : column + 8] = COLOURS[self.kinds[:, number], None, None]
        images += drawing.normal(scale=6, size=images.shape)
        pixels = np.clip(images, 0, 255).astype(np.uint8)
        super().__init__(f"quarters {seed}", pixels, np.full(count, -1), [])

    @property
    def has_masks(self) -> bool:
        return True

    @property
    def mask_names(self) -> tuple[str, ...]:
        return tuple(f"colour {number}" for number in range(NUM_PIXEL_CLASSES))

    def mask(self, index: int) -> np.ndarray:
        return np.kron(self.kinds[index].reshape(2, 2), np.ones((8, 8))).astype(np.uint8)

    def fingerprint(self) -> str:
        return hashlib.sha256(super().fingerprint().encode() + self.kinds.tobytes()).hexdigest()


SEGMENTATIONS: dict[str, dict[str, object]] = {
    "viny-segmentation": {
        "train_size": None, "test_size": None, "epochs": 12, "batch_size": 16, "lr": 5e-3, "class_softmax": "plain",
        "contrast": 0.0, "augment_test": False,
    },
    "linear-segmentation": {"epochs": 30, "batch_size": 16, "lr": 5e-2},
    "knn-segmentation": {"k": 5},
}  # fmt: skip


STAGE = "viny-spatial"
"""The intermediate stage that learns from masks, too."""


def segmented(protocol: str, train: Quarters, test: Quarters, folder: Path) -> Result:
    if protocol == STAGE:
        quick = {"epochs": 12, "batch_size": 16, "lr": 1e-2, "contrast": 0.0}
        stage = IntermediateConfig.model_validate(intermediate_settings(protocol) | quick)
        return intermediate_stage(subject(), Split(train, "train"), Split(test, "test"), stage, out=folder).result
    config = SegmentationConfig.model_validate(segmentation_settings(protocol) | SEGMENTATIONS[protocol])
    return segmentation_protocol(subject(), Split(train, "train"), Split(test, "test"), config, run_dir=folder)


def accuracy(result: Result) -> float:
    """Share of pixels, or of patches."""
    return result.metrics["top1_test" if result.protocol == STAGE else "accuracy"]


@pytest.mark.parametrize("protocol", [*SEGMENTATIONS, STAGE])
def test_shuffled_masks_teach_nothing(protocol: str, tmp_path: Path) -> None:
    train, test = Quarters(60, seed=1), Quarters(40, seed=2)
    honest = accuracy(segmented(protocol, train, test, tmp_path / "honest"))
    found = []
    for seed in range(SHUFFLES):
        train.kinds = np.random.default_rng(seed).permuted(train.kinds.flatten()).reshape(train.kinds.shape)
        found.append(accuracy(segmented(protocol, train, test, tmp_path / str(seed))))
    chance, draws = 1 / NUM_PIXEL_CLASSES, NUM_PIXEL_CLASSES * SHUFFLES
    bound = 100 * (chance + 3.5 * (chance * (1 - chance) / draws) ** 0.5)
    assert honest > 80 > 1.5 * bound
    assert np.mean(found) < bound, found


@pytest.mark.parametrize("protocol", [*SEGMENTATIONS, STAGE])
def test_test_masks_change_no_weight(protocol: str, tmp_path: Path) -> None:
    train, test = Quarters(24, seed=1), Quarters(10, seed=2)
    other = Quarters(10, seed=3)
    other.kinds = 7 - other.kinds
    results = [segmented(protocol, train, each, tmp_path / each.name) for each in (test, other)]
    sides = [
        {
            str(path.relative_to(tmp_path / each.name)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / each.name).rglob("*.safetensors")
        }
        for each in (test, other)
    ]
    assert bool(sides[0]) is (protocol != "knn-segmentation")  # nothing is trained there
    assert sides[0] == sides[1]
    assert results[0].curves == results[1].curves
    assert results[0].data["train"] == results[1].data["train"]
    assert results[0].metrics != results[1].metrics
    assert all(each.labelled == each.n > 0 for each in results[0].data.values())  # by masks: no picture has a label

"""Segmentation protocols: complete results, what every option changes, resume, models measured again, faults."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from evaluation.subjects import subject_of
from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import load_encoder
from halfseen.data.config import DataConfig
from halfseen.data.sources import JoinedSource, SubsetSource, open_source
from halfseen.errors import CheckpointError, ConfigError, DataError, ShapeError, WeightsError
from halfseen.evaluation.results import Result
from halfseen.evaluation.segmentation.config import SEGMENTATION_PROTOCOLS, SegmentationConfig, segmentation_settings
from halfseen.evaluation.segmentation.protocol import measure_again, segmentation_protocol
from halfseen.evaluation.segmentation.saved import load_trained
from halfseen.evaluation.segmentation.scores import bootstrap_interval
from halfseen.evaluation.segmentation.task import prepare_task
from halfseen.evaluation.statements import Split

VINY = ModelConfig.model_validate(
    {"name": "viny_4m", "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8, "mlp_ratio": 2}
)
VIT = ModelConfig.model_validate({"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2})
SWIN = ModelConfig.model_validate(
    {"name": "swin_tiny", "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
)
SIZE = 32
METRICS = {"miou", "accuracy", "miou_present", "miou_dataset"}


def network(config: ModelConfig = VINY, seed: int = 0) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_encoder(config, SIZE)


def settings(protocol: str = "viny-segmentation", **changes: object) -> SegmentationConfig:
    few = {"train_size": None, "test_size": None} | ({} if protocol == "knn-segmentation" else {"epochs": 1})
    return SegmentationConfig.model_validate(segmentation_settings(protocol) | few | changes)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Split]:
    config = DataConfig(source="bundled:fashion-scenes", image_size=48)
    return {
        "train": Split(open_source(config.source, "train", config=config).subset(range(24)), "train"),
        "test": Split(open_source(config.source, "test", config=config).subset(range(10)), "test"),
    }


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Split]:
    """`halves(12, seed=0)`: pictures whose left or right half is red and labelled 1, on a blue ground labelled 0."""

    def write(count: int, seed: int = 0) -> Split:
        root = tmp_path_factory.mktemp("halves")
        drawing = np.random.default_rng(seed)
        for folder in ("images", "masks"):
            (root / folder).mkdir()
        for number in range(count):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            first = drawing.integers(0, 2) * SIZE // 2
            mask[:, first : first + SIZE // 2] = 1
            image = np.where(mask[..., None] == 1, np.array([220, 30, 30]), np.array([30, 30, 220]))
            image = image + drawing.integers(-20, 20, image.shape)
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number:03d}.png")
            Image.fromarray(mask).save(root / "masks" / f"{number:03d}.png")
        (root / "mask_names.txt").write_text("ground\nhalf\n")
        return Split(open_source(str(root)), "train")

    return write


def measure(
    train: Split,
    test: Split | None,
    config: SegmentationConfig,
    encoder: Encoder | None = None,
    random_encoder: Callable[[], Encoder] | None = None,
    **changes: object,
) -> Result:
    subject, others = subject_of(encoder or network(), random_encoder, **changes)
    return segmentation_protocol(subject, train, test, config, **others)


@pytest.mark.parametrize("protocol", SEGMENTATION_PROTOCOLS)
def test_a_result_is_complete(protocol: str, scenes: dict[str, Split], tmp_path: Path) -> None:
    found = measure(
        scenes["train"],
        scenes["test"],
        settings(protocol),
        random_encoder=lambda: network(seed=1),
        run_dir=tmp_path / "run",
        seed=3,
    )
    written = json.loads((tmp_path / "run" / f"{protocol}.json").read_text())
    assert written["protocol"] == protocol and written["primary"] == "miou"
    assert (written["n"], written["n_train"], written["seed"], written["num_classes"]) == (10, 24, 3, 11)
    frozen = protocol != "viny-segmentation"
    rivals = {"random_init", "largest_class"} | ({"raw_pixels"} if frozen else set())
    assert set(found.baselines) == rivals
    assert set(found.confidence_interval) == {"encoder", *rivals}
    wanted = METRICS if protocol == "knn-segmentation" else METRICS | {f"{name}_train" for name in METRICS}
    for metrics in (found.metrics, *found.baselines.values()):
        assert set(metrics) == wanted
        assert all(0 <= value <= 100 for value in metrics.values())
    low, high = found.confidence_interval["encoder"]
    assert low <= found.metrics["miou"] <= high
    assert {row.name for row in found.per_class} <= {"background", *scenes["test"].source.class_names}
    assert found.per_class[0].n == 10
    # The constant answers background, whose IoU is its share of the pixels; ten other classes count as 0.
    constant = found.baselines["largest_class"]
    assert constant["miou"] == pytest.approx(constant["accuracy"] / 11, abs=1e-3)
    assert constant["miou_present"] > constant["miou"]
    arrays = np.load(tmp_path / "run" / "figures" / "segmentation_example.npz")
    assert arrays["images"].shape == (4, SIZE, SIZE, 3) and arrays["predictions"].shape == (4, SIZE, SIZE)
    assert not list((tmp_path / "run").rglob("model.safetensors")), "checkpoints of a finished run are of no use"


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        ("viny-segmentation", {"epochs": 10, "lr": 5e-3, "batch_size": 4, "normalise": True}),
        ("linear-segmentation", {"epochs": 12, "batch_size": 4}),
        ("knn-segmentation", {"k": 5}),
    ],
)
def test_what_can_be_learned_is_learned(
    protocol: str, changes: dict[str, object], halves: Callable[..., Split]
) -> None:
    right = measure(halves(16), halves(8, seed=1), settings(protocol, **changes))
    assert right.metrics["accuracy"] > 95


class OthersMasks(SubsetSource):
    """Images with the masks of other images."""

    def mask(self, index: int) -> np.ndarray:
        return super().mask((index + 1) % len(self))

    def read_with_mask(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.read(index), self.mask(index)


@pytest.mark.parametrize(
    ("protocol", "changes"), [("linear-segmentation", {"epochs": 20}), ("knn-segmentation", {"k": 9})]
)
def test_masks_of_other_images_teach_no_more_than_the_largest_class(
    protocol: str, changes: dict[str, object], scenes: dict[str, Split]
) -> None:
    source = scenes["train"].source
    assert isinstance(source, SubsetSource)
    wrong = Split(OthersMasks(source.whole, source.indices), "train")
    found = measure(wrong, scenes["test"], settings(protocol, **changes))
    assert found.metrics["accuracy"] <= found.baselines["largest_class"]["accuracy"] + 2
    assert found.metrics["miou_dataset"] <= found.baselines["largest_class"]["miou_dataset"] + 2


def test_the_first_subject_is_left_as_it_was(scenes: dict[str, Split]) -> None:
    encoder = network()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    measure(scenes["train"], scenes["test"], settings(), encoder)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "bilinear"},
        {"normalise": True},
        {"flip": 0.0},
        {"contrast": 0.0},
        {"freeze_augmentation": False},
        {"augment_test": False},
        {"class_softmax": "plain"},
        {"batch_size": 5},
        {"lr": 1e-3},
        {"weight_decay": 0.5},
        {"milestone_ratios": [0.5]},
        {"gamma": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_of_the_training_changes_something(
    changes: dict[str, object], scenes: dict[str, Split], whole: "list[torch.Tensor]", tmp_path: Path
) -> None:
    config = settings(epochs=2, batch_size=12).model_copy()
    changed = SegmentationConfig.model_validate(config.model_dump() | changes)
    measured = measure(scenes["train"], scenes["test"], changed, run_dir=tmp_path / "run")
    state = load_file(tmp_path / "run" / "encoder.safetensors")
    differs = any(not torch.equal(value, state[name]) for name, value in whole[0].items())
    if "augment_test" in changes:  # Touches the test images only.
        assert not differs and measured.metrics["accuracy"] != whole[1].metrics["accuracy"]
    else:
        assert differs


@pytest.fixture(scope="module")
def whole(scenes: dict[str, Split], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Weights and result of two epochs by the protocol's own settings."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    found = measure(scenes["train"], scenes["test"], settings(epochs=2, batch_size=12), run_dir=folder)
    return [load_file(folder / "encoder.safetensors"), found]


@pytest.mark.parametrize("change", [{"k": 2}, {"temperature": 5.0}, {"max_patches": 30}], ids=lambda c: next(iter(c)))
def test_every_setting_of_the_vote_changes_something(change: dict[str, object], scenes: dict[str, Split]) -> None:
    first = measure(scenes["train"], scenes["test"], settings("knn-segmentation"))
    second = measure(scenes["train"], scenes["test"], settings("knn-segmentation", **change))
    assert first.metrics != second.metrics


def test_the_sizes_of_the_published_splits_and_a_test_split_that_stays(scenes: dict[str, Split]) -> None:
    def files(train_size: int, fixed: bool) -> tuple[list[str], list[str]]:
        config = settings("knn-segmentation", train_size=train_size, test_size=6, fixed_test_split=fixed)
        task = prepare_task(scenes["train"], scenes["test"], config, 0)
        return tuple([part.source.path(i) for i in range(len(part.source))] for part in (task.train, task.test))

    order = torch.randperm(34, generator=torch.Generator().manual_seed(42)).tolist()
    both = JoinedSource("both", scenes["train"].source, scenes["test"].source)
    names = [both.path(index) for index in order]
    assert files(5, False) == (names[:5], names[5:11])
    assert files(9, False)[1] == names[9:15]
    assert files(9, True) == (names[:9], names[-6:]) and files(5, True)[1] == names[-6:]
    with pytest.raises(DataError, match=r"got 30 \+ 6, but there are 34 images"):
        files(30, False)
    assert settings(train_size=5, test_size=2, split_seed=7).settings["split_seed"] == 7


def test_another_seed_of_the_split_draws_others(scenes: dict[str, Split]) -> None:
    config = {"train_size": 10, "test_size": 6}
    first = measure(scenes["train"], scenes["test"], settings("knn-segmentation", **config))
    second = measure(scenes["train"], scenes["test"], settings("knn-segmentation", **config, split_seed=1))
    assert first.data["test"].fingerprint != second.data["test"].fingerprint
    assert any("train_size; fixed_test_split=true" in note for note in first.notes)


def test_one_split_only_is_cut_in_two(halves: Callable[..., Split]) -> None:
    found = measure(halves(10), None, settings("knn-segmentation"))
    assert (found.n_train, found.n) == (8, 2)
    assert any("a fifth" in note for note in found.notes)


@pytest.mark.parametrize("config", [VIT, SWIN], ids=["vit", "swin"])
@pytest.mark.parametrize("protocol", SEGMENTATION_PROTOCOLS)
def test_any_encoder_will_do(protocol: str, config: ModelConfig, scenes: dict[str, Split]) -> None:
    found = measure(scenes["train"], scenes["test"], settings(protocol), network(config))
    assert found.feature_dim == network(config).embed_dim


def test_a_size_that_tokens_do_not_divide(scenes: dict[str, Split]) -> None:
    with pytest.raises(ShapeError, match=r"got 44, which is no multiple of the 8 pixels .* Write 40 or 48"):
        measure(scenes["train"], scenes["test"], settings(), network(VIT), image_size=44)


def test_a_stopped_training_goes_on_bit_by_bit(
    scenes: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    config = settings(epochs=4, batch_size=12, freeze_augmentation=False)

    def run(folder: Path, stop_at: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
        def on_progress(words: str, done: int, of: int) -> None:
            if words == "training: encoder" and done == stop_at:
                signal.raise_signal(signal.SIGINT)

        measure(scenes["train"], scenes["test"], config, run_dir=folder, resume=resume, on_progress=on_progress)
        return {**load_file(folder / "encoder.safetensors"), **load_file(folder / "head.safetensors")}

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=4)
    with pytest.raises(ConfigError, match=r"holds a segmentation already\. Add --resume"):
        run(tmp_path / "broken")
    resumed = run(tmp_path / "broken", resume=True)
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    again = measure(scenes["train"], scenes["test"], config, run_dir=tmp_path / "broken", resume=True)
    assert again.n == 10, "what is finished is read"
    with pytest.raises(CheckpointError, match="begun with other settings, images or weights"):
        measure(scenes["train"], scenes["test"], config, run_dir=tmp_path / "broken", resume=True, seed=1)


@pytest.mark.parametrize("protocol", ["viny-segmentation", "linear-segmentation"])
def test_a_model_is_measured_again_with_the_same_numbers(
    protocol: str, scenes: dict[str, Split], tmp_path: Path
) -> None:
    config = settings(protocol, train_size=12, test_size=6)
    first = measure(scenes["train"], scenes["test"], config, network(VIT), run_dir=tmp_path / "run", seed=2)
    names = load_file(tmp_path / "run" / "encoder.safetensors")
    assert not any("head" in name for name in names)
    assert load_encoder(tmp_path / "run").encoder.embed_dim == 24
    trained = load_trained(tmp_path / "run", settings())
    again = measure_again(trained, scenes["train"], scenes["test"])
    assert again.metrics == first.metrics
    assert again.baselines == {"largest_class": first.baselines["largest_class"]}
    assert again.confidence_interval["encoder"] == first.confidence_interval["encoder"]
    swapped = measure_again(trained, scenes["test"], scenes["train"])
    assert any("Careful: these are other images" in note for note in swapped.notes)


def test_a_head_that_an_intermediate_stage_left_is_ignored(tmp_path: Path) -> None:
    """Files of the original's fine-tuning after a stage hold `encoder.head.*`, which its own evaluation refuses."""
    from halfseen.evaluation.segmentation.models import import_segmentation_model
    from parity.discovery import load_arrays, parity_dir, state_under

    path = next((parity_dir() / "geometry").glob("evaluation_end_to_end*.npz"))
    arrays = load_arrays(path)
    state = state_under(arrays, "sd/")
    width = state["mlp.weight"].shape[1]
    state |= {"encoder.head.weight": torch.zeros(6, width), "encoder.head.bias": torch.zeros(6)}
    torch.save(state, tmp_path / "with_head.pth")
    model = import_segmentation_model(tmp_path / "with_head.pth", num_heads=int(arrays["meta/heads"]))
    assert torch.equal(model.head.bias, state["mlp.bias"])
    del state["mlp.weight"]
    torch.save(state, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"none\.pth' holds no segmentation model of ViNy"):
        import_segmentation_model(tmp_path / "none.pth", num_heads=int(arrays["meta/heads"]))


def test_other_classes_than_the_models_are_refused(
    scenes: dict[str, Split], halves: Callable[..., Split], tmp_path: Path
) -> None:
    measure(halves(6), None, settings("linear-segmentation"), run_dir=tmp_path / "run")
    trained = load_trained(tmp_path / "run", settings())
    with pytest.raises(DataError, match=r"but the model .* has 2: ground, half"):
        measure_again(trained, scenes["train"], scenes["test"])
    (tmp_path / "run" / "head.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no segmentation model"):
        load_trained(tmp_path / "run", settings())


def test_another_runs_folder_is_left_alone(halves: Callable[..., Split], tmp_path: Path) -> None:
    for name in ("config.yaml", "encoder.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("kept")
        with pytest.raises(ConfigError, match="holds another run, whose encoder would be overwritten"):
            measure(halves(6), None, settings("linear-segmentation"), run_dir=folder)
        assert [path.name for path in folder.iterdir()] == [name]


def test_faults_of_the_data(scenes: dict[str, Split], halves: Callable[..., Split], tmp_path: Path) -> None:
    plain = Split(open_source("bundled:fashion"), "train")
    with pytest.raises(DataError, match="has no masks at all"):
        measure(plain, None, settings())
    with pytest.raises(DataError, match=r"\(test\) have the classes background, .*, those of .* ground, half"):
        measure(halves(4), scenes["test"], settings())
    with pytest.raises(DataError, match="has the classes of pixels ground, half, but 'bundled:fashion-scenes' backgr"):
        measure(halves(4), scenes["test"], settings(train_size=2, test_size=2))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(5):
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(np.full((SIZE, SIZE), 255 * (number % 2), np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    with pytest.raises(DataError, match=r"hold 1 class, but at least 2 are needed.* write an object as 1"):
        measure(Split(open_source(str(tmp_path)), "train"), None, settings())


def test_ignored_pixels_neither_teach_nor_count(halves: Callable[..., Split], tmp_path: Path) -> None:
    train, test = halves(6), halves(4, seed=1)
    root = Path(train.source.name)
    for mask in sorted((root / "masks").iterdir()):
        values = np.array(Image.open(mask))
        values[: SIZE // 2] = 255
        Image.fromarray(values).save(mask)
    ignoring = Split(open_source(str(root)), "train")
    found = measure(ignoring, test, settings())
    assert found.metrics["accuracy_train"] > 0
    assert all(np.isfinite(value) for value in found.metrics.values())


def test_settings_without_effect_and_impossible_ones_are_refused() -> None:
    for protocol, change, sentence in (
        ("knn-segmentation", {"lr": 0.1}, "lr: got 0.1, but it has no effect with method=knn"),
        ("linear-segmentation", {"k": 3}, "k: got 3, but it has no effect with method=linear"),
        ("linear-segmentation", {"class_softmax": "plain"}, "class_softmax: got plain, but it has no effect"),
        ("viny-segmentation", {"fixed_test_split": True}, "fixed_test_split: got true, but it has no effect with"),
        ("viny-segmentation", {"flip": 0, "contrast": 0, "augment_test": False}, "augment_test: got false"),
        ("viny-segmentation", {"train_size": 5}, "test_size: missing beside train_size=5"),
        ("viny-segmentation", {"milestone_ratios": [0.5, 0.4]}, "expected ascending shares"),
    ):
        with pytest.raises(ValueError, match=sentence.replace("[", r"\[")):
            settings(protocol, **change)
    with pytest.raises(ConfigError, match="protocol: got 'pets', expected one of viny-segmentation"):
        segmentation_settings("pets")


def test_the_published_recipe() -> None:
    config = SegmentationConfig.model_validate(segmentation_settings("viny-segmentation"))
    train = config.training(steps_per_epoch=94, num_images=6000)
    assert (train.epochs, train.batch_size, train.drop_last) == (100, 64, False)
    assert (train.lr.base, train.lr.milestones, train.lr.gamma) == (2e-3, (70, 90, 95), 0.5)
    assert (train.optimizer.name, train.optimizer.weight_decay) == ("adamw", 1e-4)
    assert (config.train_size, config.test_size, config.split_seed) == (6000, 1000, 42)


def test_the_bootstrap_is_a_function_of_the_seed() -> None:
    values = torch.rand(200, dtype=torch.float64)
    low, high = bootstrap_interval(values, 0)
    assert (low, high) == bootstrap_interval(values, 0) != bootstrap_interval(values, 1)
    reach = 196 * float(values.std()) / 200**0.5
    assert high - low == pytest.approx(2 * reach, rel=0.15)

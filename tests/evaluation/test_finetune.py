"""Fine-tuning: the run and its folder, resuming, what each setting changes, which weights are reported."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from evaluation.subjects import subject_of
from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import load_encoder
from halfseen.config.load import Layer, Loaded, load_config
from halfseen.data.sources import ArraySource
from halfseen.engine.distributed import Distributed
from halfseen.errors import CheckpointError, ConfigError, DataError, ShapeError
from halfseen.evaluation.finetuning.classifier import classifier_from, load_classifier
from halfseen.evaluation.finetuning.config import FinetuneConfig, check_effects
from halfseen.evaluation.finetuning.protocol import FinetuneOutcome, finetune
from halfseen.evaluation.finetuning.published import (
    FINETUNE_PROTOCOLS,
    IMAGE_SIZES,
    Protocol,
    departures,
    finetune_settings,
)
from halfseen.evaluation.finetuning.run import RANDOM, START
from halfseen.evaluation.finetuning.training import Images, score
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import Subject
from halfseen.ops.pixels import normalise
from processes import run_two

SIDE = 16
SHORT = (
    "train.epochs=2", "train.batch_size=8", "train.lr.warmup_epochs=0", "train.log_every_steps=1",
    "train.health_every_steps=null", "runtime.device=cpu", "runtime.precision=fp32", "runtime.threads=1",
    "data.image_size=16",
)  # fmt: skip
LEARNS = ("train.epochs=12", "train.lr.base=0.2", "layer_decay=1", "augment.crop=squash",
          "augment.crop_scale=[0.08,1]", "augment.hflip=0")  # fmt: skip
EVERYTHING = (
    "drop_path=0.2", "augment.policy=rand-m9-mstd0.5-inc1", "augment.erase=0.5", "mix.mixup=0.8", "mix.cutmix=1",
    "ema_decay=0.9", "train.clip_norm=1",
)  # fmt: skip


def encoder(name: str = "vit_tiny", seed: int = 0, **sizes: object) -> Encoder:
    torch.manual_seed(seed)
    given = {"embed_dim": 16, "num_heads": 2} | ({"depth": 2, "patch_size": 8} if name == "vit_tiny" else {}) | sizes
    return build_encoder(ModelConfig.model_validate({"name": name, **given}), SIDE)


def images(count: int = 24, classes: int = 3, seed: int = 0) -> ArraySource:
    """Squares at a place that tells the class."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 90, (count, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(count) % classes
    for picture, label in zip(pixels, labels, strict=True):
        picture[4 * label : 4 * label + 5, 4 * label : 4 * label + 5] += 150
    return ArraySource(f"squares-{seed}", pixels, labels, [f"place {number}" for number in range(classes)])


def prepare(
    folder: Path | None, *words: str, protocol: str = "finetune", start: Encoder | None = None, short: bool = True
) -> tuple[Subject, Loaded[FinetuneConfig], Protocol]:
    """What the command line makes of its words."""
    own = start or encoder()
    subject, _ = subject_of(own, lambda: encoder(own.config.name, 1) if start is None else start, pretrained_on="x")
    settings = finetune_settings(protocol, own)
    given = [*(SHORT if short else ()), *words] + ([] if folder is None else [f"run_dir={folder}"])
    layers = [Layer("protocol", settings.settings, gives_way=True), Layer("encoder", {"encoder": "here"})]
    return subject, load_config(FinetuneConfig, layers, given), settings


def run(folder: Path, *words: str, resume: bool = False, **prepared: object) -> FinetuneOutcome:
    subject, loaded, settings = prepare(folder, "baselines=false", *words, **prepared)
    return finetune(subject, Split(images(), "train"), TEST, loaded, settings, resume=resume)


TEST = Split(images(12, seed=1), "test")


def weights(folder: Path, stem: str = "classifier") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{stem}.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_activation_checkpointing_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal runs
        runs += 1
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr("halfseen.ops.recompute.checkpoint", counting)
    run(tmp_path / "plain", *EVERYTHING)
    assert runs == 0
    run(tmp_path / "saving", *EVERYTHING, "runtime.activation_checkpointing=true")
    assert runs == 2 * 3 * 2  # Epochs, steps and blocks.
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "saving"))


def test_a_run_leaves_a_result_with_baselines_and_files_that_timm_loads(tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", "baselines=true", *LEARNS)
    assert outcome.finished and outcome.result is not None
    result, folder = outcome.result, outcome.run_dir
    assert set(result.baselines) == {"random_init", "raw_pixels"}
    assert (result.n, result.n_train, result.num_classes, result.protocol) == (12, 24, 3, "finetune")
    assert result.metrics["top1"] > 50
    assert len(result.curves["test_top1_encoder"]) == 12 == len(result.curves["test_top1_random_init"])
    assert json.loads((folder / "evaluations" / "finetune.json").read_text()) == result.model_dump(mode="json")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["test_top1"] == pytest.approx(result.metrics["top1"], abs=1e-3)
    about = json.loads((folder / "classifier.json").read_text())
    model = timm.create_model(about["timm"]["model_name"], **about["timm"]["kwargs"])
    model.load_state_dict(weights(folder), strict=True)
    pixels = torch.from_numpy(np.stack([images(12, seed=1).read(index) for index in range(12)])).permute(0, 3, 1, 2)
    views = normalise(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        theirs, ours = model.eval()(views), load_classifier(folder / "classifier.safetensors").eval()(views)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert 100 * float((ours.argmax(1) == torch.arange(12) % 3).double().mean()) == pytest.approx(
        result.metrics["top1"], abs=1e-3
    )
    assert load_encoder(folder).role == "fine-tuned"
    assert load_encoder(folder / START).encoder.config.final_norm == "tokens"
    assert (folder / RANDOM / "classifier.safetensors").is_file()


def test_a_resumed_run_ends_as_an_unbroken_one_bit_by_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *EVERYTHING)
    parts = run(tmp_path / "parts", *EVERYTHING, "train.max_steps=4", "choose=last")
    assert not equal(weights(whole.run_dir), weights(parts.run_dir))
    resumed = run(tmp_path / "parts", *EVERYTHING, "runtime.workers=2", resume=True)
    assert equal(weights(whole.run_dir), weights(resumed.run_dir))
    assert equal(weights(whole.run_dir, "classifier_best"), weights(resumed.run_dir, "classifier_best"))
    assert whole.result is not None and resumed.result is not None
    assert whole.result.metrics == resumed.result.metrics
    logs = [(run.run_dir / "metrics.jsonl").read_text().splitlines() for run in (whole, resumed)]
    losses = [{line["step"]: line["loss"] for line in map(json.loads, lines)} for lines in logs]
    assert losses[0] == losses[1] and list(losses[0]) == [1, 2, 3, 4, 5, 6]


def test_micro_batches_make_the_same_step(tmp_path: Path) -> None:
    words = [word for word in EVERYTHING if not word.startswith("drop_path")]
    one = run(tmp_path / "one", *words, "train.max_steps=2", "mix.group=2")
    two = run(tmp_path / "two", *words, "train.max_steps=2", "mix.group=2", "train.micro_batch_size=2")
    first, second = weights(one.run_dir), weights(two.run_dir)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("words", "protocol"),
    [
        (["head_std=0.1"], "finetune"),
        (["head_std=null"], "finetune"),
        (["feature=cls"], "finetune"),
        (["feature=mean"], "finetune"),
        (["drop_path=0.5"], "finetune"),
        (["dropped_blocks=1"], "finetune"),
        (["fresh_blocks=1"], "finetune"),
        (["layer_decay=0.5"], "finetune"),
        (["label_smoothing=0.3"], "finetune"),
        (["ema_decay=0.9"], "finetune"),
        (["seed=1"], "finetune"),
        (["choose=held-out"], "finetune"),
        (["choose=held-out", "held_out=0.3"], "finetune"),
        (["augment.crop=squash", "augment.crop_scale=[0.08,1]"], "finetune"),
        (["augment.crop_scale=[0.2,1]"], "finetune"),
        (["augment.hflip=0"], "finetune"),
        (["augment.interpolation=bilinear"], "finetune"),
        (["augment.antialias=false"], "finetune"),
        (["augment.policy=rand-m9-mstd0.5-inc1"], "finetune"),
        (["augment.policy=trivial"], "finetune"),
        (["augment.color_jitter=0.4"], "finetune"),
        (["augment.erase=0.5"], "finetune"),
        (["mix.mixup=0.8"], "finetune"),
        (["mix.cutmix=1"], "finetune"),
        (["mix.mixup=0.8", "mix.cutmix=1", "mix.switch=0.9"], "finetune"),
        (["mix.mixup=0.8", "mix.probability=0.5"], "finetune"),
        (["mix.mixup=0.8", "mix.group=2"], "finetune"),
        (["mix.form=torchvision", "mix.mixup=1", "mix.cutmix=1", "label_smoothing=0"], "finetune"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value,
)
def test_each_setting_changes_the_weights(words: list[str], protocol: str, tmp_path: Path, plain: Path) -> None:
    changed = run(tmp_path / "run", "train.max_steps=2", *words, protocol=protocol)
    assert not equal(weights(plain), weights(changed.run_dir))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others differ from in one setting."""
    return run(tmp_path_factory.mktemp("plain") / "run", "train.max_steps=2").run_dir


@pytest.mark.parametrize(
    "words",
    [
        ["view.resize=squash"], ["view.crop_ratio=0.5"], ["view.interpolation=bilinear", "view.crop_ratio=0.6"],
        ["view.antialias=false", "view.crop_ratio=0.6"],
    ],
    ids=str,
)  # fmt: skip
def test_how_test_images_are_seen_changes_no_weight(words: list[str], tmp_path: Path, plain: Path) -> None:
    seen = run(tmp_path / "run", "train.max_steps=2", *words)
    assert equal(weights(plain), weights(seen.run_dir))
    if words != ["view.resize=squash"]:  # All pictures are squares.
        losses = [
            json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (plain, seen.run_dir)
        ]
        assert losses[0]["test_loss"] != losses[1]["test_loss"]


def test_fewer_test_images_and_smaller_batches(tmp_path: Path) -> None:
    few = run(tmp_path / "few", "train.max_steps=2", "view.max_test=7", "view.batch_size=2")
    assert few.result is not None and few.result.n == 7


def test_measurements_come_as_often_as_asked(tmp_path: Path) -> None:
    rare = run(tmp_path / "run", "train.epochs=4", "evaluate_every_epochs=2")
    assert rare.result is not None
    assert rare.result.curves["epoch_encoder"] == [2.0, 4.0]


@pytest.mark.parametrize("choose", ["last", "held-out", "test"])
def test_which_weights_are_reported(choose: str, tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", *LEARNS, "train.epochs=6", f"choose={choose}")
    result = outcome.result
    assert result is not None and outcome.classifier is not None
    curve = result.curves["test_top1_encoder"]
    if choose == "last":
        assert outcome.classifier.name == "classifier.safetensors"
        assert result.metrics["top1"] == curve[-1] and result.headline["epoch"] == 6
    else:
        key = "held_out_top1_encoder" if choose == "held-out" else "test_top1_encoder"
        best = int(np.argmax(result.curves[key]))
        assert outcome.classifier.name == "classifier_best.safetensors"
        assert result.metrics["top1"] == curve[best] and result.headline["epoch"] == best + 1
    assert any("was chosen on the test images" in note for note in result.notes) == (choose == "test")
    assert result.n_train == (21 if choose == "held-out" else 24)
    reported = load_classifier(outcome.classifier)
    kept = load_encoder(outcome.run_dir).encoder
    assert equal(dict(reported.encoder.trunk.state_dict()), dict(kept.trunk.state_dict()))


@pytest.mark.parametrize(("bias", "right"), [(0.0, 4), (math.nan, 0)], ids=["ties", "diverged"])
def test_ties_go_to_the_lower_class_and_no_number_is_never_right(bias: float, right: int) -> None:
    """12 images of 3 classes: a head that says the same for all is right for class 0 alone."""
    _, loaded, _ = prepare(None)
    network = classifier_from(encoder(), "mean", 3, torch.Generator())
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.constant_(network.head.bias, bias)
    source = images(12)
    tested = Images(source, np.arange(12), torch.from_numpy(source.labels.astype(np.int64)))
    found = score(network, tested, loaded.config, loaded.config.runtime, Distributed())
    assert found is not None
    assert int((found.rank == 0).sum()) == right
    assert found.predicted.tolist() == [0] * 12


def test_one_split_is_cut_and_says_so(tmp_path: Path) -> None:
    subject, loaded, settings = prepare(tmp_path / "run", "baselines=false", "train.max_steps=2")
    outcome = finetune(subject, Split(images(), "train"), None, loaded, settings)
    assert outcome.result is not None and (outcome.result.n, outcome.result.n_train) == (6, 18)
    assert "There is one split only" in outcome.result.notes[0]


def test_labels_of_a_test_split_with_other_numbers(tmp_path: Path) -> None:
    whole = images(30)
    few = whole.subset(np.flatnonzero(whole.labels > 0))
    pixels = np.stack([few.read(index) for index in range(len(few))])
    renumbered = ArraySource("two classes", pixels, np.asarray(few.labels) - 1, ["place 1", "place 2"])
    subject, loaded, settings = prepare(tmp_path / "run", "baselines=false", *LEARNS)
    outcome = finetune(subject, Split(images(), "train"), Split(renumbered, "test"), loaded, settings)
    assert outcome.result is not None and outcome.result.metrics["top1"] > 70
    assert {each.name for each in outcome.result.per_class} == {"place 1", "place 2"}


Build = Callable[[], Split]


def test_wrong_images_are_sentences(tmp_path: Path) -> None:
    def start(train: ArraySource, test: ArraySource, *words: str) -> None:
        subject, loaded, settings = prepare(tmp_path / "run", *words)
        finetune(subject, Split(train, "train"), Split(test, "test"), loaded, settings)

    pixels = np.zeros((9, SIDE, SIDE), np.uint8)
    unlabelled = ArraySource("nothing", pixels, np.full(9, -1), [])
    with pytest.raises(DataError, match="needs labels, but none of the 9 training images has one"):
        start(unlabelled, images())
    with pytest.raises(DataError, match="at least 2 classes"):
        start(
            ArraySource("one", pixels, np.zeros(9, int), ["a"]), ArraySource("one too", pixels, np.zeros(9, int), ["a"])
        )
    with pytest.raises(DataError, match="has classes that 'squares-0' has not: 'place 3'"):
        start(images(), images(classes=4, seed=1))
    with pytest.raises(DataError, match="got 8, but there are only 6 images"):
        start(images(6), images(seed=1))
    single = images(3)
    with pytest.raises(DataError, match="every class has a single training image"):
        start(single, images(seed=1), "choose=held-out", "train.batch_size=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_a_fault_that_process_0_alone_sees_ends_all(tmp_path: Path) -> None:
    for place in range(3):
        folder = tmp_path / "broken" / f"place {place}"
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.png").write_bytes(b"no picture")
    said = run_two("evaluation.finetune_processes", str(tmp_path), exit_code=2)
    assert "none of the 6 images could be read" in said and "Traceback" not in said


def test_resuming_another_protocol_or_nothing_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.max_steps=2")
    with pytest.raises(CheckpointError, match="finetune"):
        run(tmp_path / "run", "train.max_steps=4", protocol="ibot-finetune", resume=True)
    with pytest.raises(ConfigError, match=r"holds a run already\. Go on with it by `halfseen finetune --resume"):
        run(tmp_path / "run", "train.max_steps=2")
    with pytest.raises(CheckpointError, match="is not a run"):
        run(tmp_path / "other", resume=True)


def test_resuming_with_other_test_images_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.max_steps=2")
    subject, loaded, settings = prepare(tmp_path / "run", "baselines=false", "train.max_steps=4")
    other = Split(images(15, seed=2), "test")
    with pytest.raises(CheckpointError, match="test images was"):
        finetune(subject, Split(images(), "train"), other, loaded, settings, resume=True)
    assert finetune(subject, Split(images(), "train"), TEST, loaded, settings, resume=True).finished


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["layer_decay=0"], r"layer_decay: got 0, expected a float in \(0, 1\]"),
        (["layer_decay=1.5"], r"layer_decay: got 1.5, expected a float in \(0, 1\]"),
        (["mix.mixup=0.8", "train.batch_size=7"], "train.batch_size: got 7, but MixUp and CutMix blend pairs"),
        (["mix.mixup=0.8", "train.drop_last=false"], "the last batch of an epoch may be odd"),
        (["mix.switch=0.3"], "mix.switch: got 0.3, but it has no effect with one of mixup and cutmix alone"),
        (["view.resize=squash", "view.crop_ratio=0.5"], "crop_ratio: got 0.5, but it has no effect with"),
        (["mix.form=torchvision"], "torchvision's is MixUp or CutMix with alpha 1"),
        (["augment.policy=wild"], "got 'wild', which timm can't read"),
        (["augment.policy=rand-m9", "augment.color_jitter=0.4"], "color_jitter: got 0.4 beside policy"),
        (["augment.crop_scale=[0.9,0.5]"], "expected two rising shares"),
        (["held_out=0.3"], "held_out: no effect with choose=last"),
        (["train.freeze={t0: 0.5}"], "all layers learn in fine-tuning"),
    ],
)
def test_wrong_settings_are_sentences(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepare(None, *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["window_size=4"], "window_size: got 4, but it has no effect with an encoder that is no Swin"),
        (["decay_bias_tables=true"], "decay_bias_tables: got true, but it has no effect with an encoder that is no"),
        (["fresh_norm=true"], "fresh_norm: got true, but it has no effect with feature=mean-then-norm"),
    ],
)
def test_what_a_vit_has_not_is_a_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_what_a_protocol_prescribes_for_all_encoders_is_no_fault() -> None:
    _, loaded, settings = prepare(None, protocol="localmim-finetune", short=False)
    assert loaded.config.fresh_norm
    check_effects(loaded.config, encoder(), settings.settings)
    swin = encoder("swin_tiny", embed_dim=8, depths=(1, 1), num_heads=(1, 2), patch_size=4)
    _, loaded, settings = prepare(None, "fresh_norm=true", "window_size=2", "decay_bias_tables=true", start=swin)
    check_effects(loaded.config, swin, settings.settings)
    _, loaded, settings = prepare(None, "fresh_norm=true", "feature=cls")
    check_effects(loaded.config, encoder(), settings.settings)


def test_an_unknown_protocol_and_a_missing_class_token() -> None:
    with pytest.raises(ConfigError, match="protocol: got 'mae', expected one of finetune, mae-finetune"):
        finetune_settings("mae", encoder())
    swin = encoder("swin_tiny", embed_dim=8, depths=(1, 1), num_heads=(1, 2), patch_size=4)
    settings, notes = finetune_settings("ibot-finetune", swin)
    assert settings["feature"] == "mean" and "has no class token" in notes[-1]
    for without in (swin, encoder(class_token=False)):
        with pytest.raises(ShapeError, match=r"no class token\. Use 'mean'"):
            classifier_from(without, "cls", 3, torch.Generator())


@pytest.mark.parametrize("protocol", FINETUNE_PROTOCOLS)
def test_every_protocol_is_whole_and_departs_in_nothing(protocol: str) -> None:
    size = f"data.image_size={IMAGE_SIZES.get(protocol, SIDE)}"
    _, loaded, settings = prepare(None, size, protocol=protocol, short=False)
    assert loaded.config.protocol == protocol
    assert departures(loaded.config, settings) == []
    _, changed, _ = prepare(None, size, "layer_decay=0.99", "train.max_steps=9", protocol=protocol, short=False)
    assert departures(changed.config, settings) == ["layer_decay", "train.max_steps"]


def test_other_images_depart_from_what_is_published() -> None:
    _, loaded, settings = prepare(
        None, "data.image_size=64", "data.subset_size=9", protocol="mae-finetune", short=False
    )
    assert departures(loaded.config, settings) == ["data.image_size", "data.subset_size"]
    _, loaded, settings = prepare(None, "data.image_size=64", "data.subset_size=9", short=False)
    assert departures(loaded.config, settings) == []
    words = ("data.image_size=224", "evaluate_every_epochs=5")
    _, loaded, settings = prepare(None, *words, protocol="simmim-finetune", short=False)
    assert departures(loaded.config, settings) == ["evaluate_every_epochs"]  # It chooses among these.


@pytest.mark.parametrize("protocol", ["mae-finetune", "msn-finetune", "simmim-finetune", "localmim-finetune"])
def test_published_blending_can_be_turned_off(protocol: str) -> None:
    _, loaded, _ = prepare(None, "mix.mixup=0", "mix.cutmix=0", protocol=protocol, short=False)
    assert loaded.config.mix.group is None


PUBLISHED = {
    ("mae-finetune", "vit_base"): (100, 1024, 5e-4, 256, 5, 1e-6, None, 0.65, 0.1, 32, 2e-5, "mean-then-norm"),
    ("mae-finetune", "vit_large"): (50, 1024, 1e-3, 256, 5, 1e-6, None, 0.75, 0.2, 32, 2e-5, "mean-then-norm"),
    ("mae-finetune", "vit_huge"): (50, 1024, 1e-3, 256, 5, 1e-6, None, 0.75, 0.3, 16, 2e-5, "mean-then-norm"),
    ("msn-finetune", "vit_base"): (100, 1024, 5e-4, 256, 5, 1e-6, None, 0.65, 0.2, 32, 2e-5, "mean-then-norm"),
    ("simmim-finetune", "simmim_vit_base"): (
        100, 2048, 1.25e-3, 512, 20, 2.5e-7, 5.0, 0.65, 0.1, 128, 2e-5, "mean-then-norm",
    ),
    ("simmim-finetune", "swin_base"): (100, 2048, 1.25e-3, 512, 20, 2.5e-7, 5.0, 0.8, 0.1, 128, 0.02, "mean"),
    ("simmim-finetune", "swin_large"): (100, 2048, 1.25e-3, 512, 20, 2.5e-7, 5.0, 0.7, 0.2, 128, 0.02, "mean"),
    ("localmim-finetune", "vit_base"): (100, 1024, 2e-3, 1024, 20, 1e-5, None, 0.65, 0.1, 128, 2e-5, "mean-then-norm"),
    ("localmim-finetune", "vit_large"): (50, 1024, 3e-3, 1024, 5, 1e-6, None, 0.75, 0.2, 64, 2e-5, "mean-then-norm"),
    ("localmim-finetune", "swin_base"): (
        100, 1024, 4e-3, 1024, 20, 2.5e-7, None, 0.9, 0.1, 128, 2e-5, "mean-then-norm",
    ),
    ("localmim-finetune", "swin_large"): (
        100, 2048, 2e-3, 2048, 20, 2.5e-7, None, 0.8, 0.3, 32, 2e-5, "mean-then-norm",
    ),
    ("kamim-finetune", "vit_base"): (110, 2048, 5e-3, None, 10, 2.5e-6, 1.0, 1.0, 0.0, None, None, "mean"),
}  # fmt: skip
"""Epochs, batch, lr, images it is meant for, warm-up, last lr, clip, layer decay, drop path, blend group, head's
spread, feature: as the specifications have them."""


@pytest.mark.parametrize(("protocol", "model"), PUBLISHED)
def test_published_settings(protocol: str, model: str) -> None:
    depth = {"depths": (1, 1, 1, 1)} if model.startswith("swin") else {"depth": 1}
    network = build_encoder(ModelConfig.model_validate({"name": model, **depth}), 224, device="meta")
    settings = finetune_settings(protocol, network, 224)
    assert not settings.notes
    config = FinetuneConfig.model_validate({**settings.settings, "encoder": "here"})
    rate, train = config.train.lr, config.train
    found = (
        train.epochs, train.batch_size, rate.base, rate.reference_batch, rate.warmup_epochs, rate.min, train.clip_norm,
        config.layer_decay, config.drop_path, config.mix.group, config.head_std, config.feature,
    )  # fmt: skip
    assert found == PUBLISHED[protocol, model]
    kamim = protocol == "kamim-finetune"
    assert (config.label_smoothing, config.augment.erase) == ((0.0, 0.0) if kamim else (0.1, 0.25))
    assert (config.mix.mixup, config.mix.cutmix) == ((1.0, 1.0) if kamim else (0.8, 1.0))
    assert (train.optimizer.weight_decay, train.optimizer.betas) == (0.05, (0.9, 0.999))
    windows = {"swin_base": 7, "swin_large": 14}
    assert config.window_size == (windows.get(model) if protocol == "simmim-finetune" else None)


def test_published_settings_by_size() -> None:
    def of(name: str, model: str, **sizes: object) -> dict[str, object]:
        network = build_encoder(ModelConfig.model_validate({"name": model, "depth": 1, **sizes}), 224, device="meta")
        return finetune_settings(name, network).settings

    def swin(name: str, model: str) -> dict[str, object]:
        config = ModelConfig.model_validate({"name": model, "depths": (1, 1, 1, 1)})
        return finetune_settings(name, build_encoder(config, 224, device="meta")).settings

    assert of("mae-finetune", "vit_huge")["drop_path"] == 0.3
    assert of("mae-finetune", "vit_large")["train"]["epochs"] == 50  # type: ignore[index]
    assert of("mae-finetune", "vit_base")["layer_decay"] == 0.65
    assert of("ibot-finetune", "vit_small")["train"]["epochs"] == 200  # type: ignore[index]
    assert of("simmim-finetune", "simmim_vit_base")["layer_decay"] == 0.65
    assert swin("simmim-finetune", "swin_large")["layer_decay"] == 0.7
    assert swin("localmim-finetune", "swin_base")["decay_bias_tables"] is True
    assert swin("kamim-finetune", "swin_tiny")["feature"] == "mean"
    notes = finetune_settings("mae-finetune", encoder()).notes
    assert "not published for an encoder 16 wide: the settings are those of base" in notes[0]


def test_positions_tables_and_windows_are_resized_and_shared_tables_copied() -> None:
    beit = encoder("simmim_vit_tiny", depth=2, patch_size=8)
    classifier = classifier_from(beit, "mean-then-norm", 3, torch.Generator(), image_size=32)
    tables = [name for name in classifier.state_dict() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2 and classifier.encoder.image_size == 32
    swin = encoder("swin_tiny", embed_dim=8, depths=(1, 1), num_heads=(1, 2), patch_size=2, window_size=4)
    wider = classifier_from(swin, "mean", 3, torch.Generator(), image_size=32, window_size=8, drop_path=0.3)
    assert wider.encoder.trunk.layers[0].blocks[0].window_size == (8, 8)
    images = torch.rand(2, 3, 32, 32)
    assert wider(images).shape == classifier(images).shape == (2, 3)


def test_a_fixed_table_of_positions_becomes_trainable_and_the_start_is_left_alone() -> None:
    start = encoder()
    start.use_sincos_positions()
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    classifier = classifier_from(start, "cls", 3, torch.Generator(), image_size=32, fresh_norm=True)
    assert classifier.encoder.trunk.pos_embed.requires_grad
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1.0)
    assert equal(before, dict(start.state_dict()))


def shaken(network: Encoder, seed: int) -> Encoder:
    """Every tensor becomes another than at initialisation, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return network


@pytest.mark.parametrize("feature", ["cls", "mean-then-norm"])
@pytest.mark.parametrize("name", ["vit_tiny", "vit_small_convstem", "simmim_vit_tiny", "viny_4m"])
def test_last_blocks_are_dropped_or_begin_anew(name: str, feature: str) -> None:
    sizes = {"depth": 4, "patch_size": 16 if name == "vit_small_convstem" else 8}
    if name.startswith("simmim") and feature == "cls":
        feature = "mean"
    start, anew = shaken(encoder(name, **sizes), 1), shaken(encoder(name, **sizes), 2)

    def begun(**changes: int) -> Encoder:
        return classifier_from(start, feature, 3, torch.Generator(), anew=anew, **changes).encoder

    plain, other = begun().trunk.state_dict(), classifier_from(anew, feature, 3, torch.Generator()).encoder.trunk
    shorter = begun(dropped_blocks=1)
    mixed = begun(dropped_blocks=1, fresh_blocks=1).trunk.state_dict()
    assert start.num_layers == 4 and shorter.num_layers == 3 == shorter.config.depth
    assert mixed.keys() == {key for key in plain if not key.startswith("blocks.3.")}
    assert equal(shorter.trunk.state_dict(), {key: plain[key] for key in mixed})
    for key, tensor in mixed.items():
        expected = other.state_dict() if key.startswith("blocks.2.") else plain
        assert torch.equal(tensor, expected[key]), key
    learned = {key for key, _ in shorter.trunk.named_parameters() if key.startswith("blocks.2.")}
    assert learned and not any(torch.equal(mixed[key], plain[key]) for key in learned)


def test_blocks_of_a_swin_begin_anew_across_its_stages() -> None:
    swin, anew = (shaken(encoder("swin_tiny", patch_size=2, depths=[1, 2], num_heads=[1, 2]), seed) for seed in (1, 2))
    begun = classifier_from(swin, "mean", 3, torch.Generator(), fresh_blocks=2, anew=anew).encoder.trunk
    own, other = swin.trunk.state_dict(), anew.trunk.state_dict()
    for key, parameter in begun.named_parameters():
        fresh = key.startswith("layers.1.blocks.")
        assert torch.equal(parameter, (other if fresh else own)[key]), key


def test_timm_loads_a_shortened_classifier(tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", "dropped_blocks=1", "train.max_steps=1", start=encoder(depth=3))
    call = json.loads((outcome.run_dir / "classifier.json").read_text())["timm"]
    assert call["kwargs"]["depth"] == 2
    timm.create_model(call["model_name"], **call["kwargs"]).load_state_dict(weights(outcome.run_dir), strict=True)


def test_the_baseline_has_no_fresh_blocks_but_is_as_short(tmp_path: Path) -> None:
    words = ("baselines=true", "train.max_steps=2")
    plain = run(tmp_path / "plain", *words).run_dir / RANDOM
    assert equal(weights(plain), weights(run(tmp_path / "fresh", *words, "fresh_blocks=1").run_dir / RANDOM))
    shorter = load_encoder(run(tmp_path / "short", *words, "dropped_blocks=1").run_dir / RANDOM / START)
    assert shorter.encoder.num_layers == 2  # As it was built; the classifier trained from it is shorter.
    assert weights(tmp_path / "short" / RANDOM).keys() < weights(plain).keys()


def test_a_run_without_its_last_blocks_says_so_and_goes_on(tmp_path: Path) -> None:
    def trained(folder: Path, start: Encoder, random: Encoder, *words: str, resume: bool = False) -> FinetuneOutcome:
        given = ("baselines=false", "dropped_blocks=1", "fresh_blocks=1", *words)
        subject, loaded, settings = prepare(folder, *given, start=start)
        subject = dataclasses.replace(subject, random_encoder=lambda: random)
        return finetune(subject, Split(images(), "train"), TEST, loaded, settings, resume=resume)

    start, random = encoder(depth=4), shaken(encoder(depth=4), 3)
    whole = trained(tmp_path / "whole", start, random)
    assert whole.result is not None
    sentence = "Not the whole encoder: of its last blocks 1 were taken away and 1 began with random weights"
    assert any(note.startswith(sentence) for note in whole.result.notes)
    assert load_encoder(whole.run_dir).encoder.num_layers == 3
    part = tmp_path / "part"
    trained(part, start, random, "train.max_steps=2")
    for step in (2, 0):  # Goes on from the checkpoint, and without any from what the run has kept.
        if step == 0:
            shutil.rmtree(part / "checkpoints")
        kept = [load_encoder(folder / START).encoder for folder in (part, part / RANDOM)]
        assert equal(weights(whole.run_dir), weights(trained(part, *kept, resume=True).run_dir)), step


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("vit_tiny", {"dropped_blocks": 1, "fresh_blocks": 1}, "fresh_blocks=1, but the encoder has 2 blocks and one"),
        ("vit_tiny", {"fresh_blocks": 2}, "^fresh_blocks: got dropped_blocks=0 and fresh_blocks=2"),
        ("swin_tiny", {"dropped_blocks": 1}, "a Swin's last stage can't do without its blocks. Use fresh_blocks"),
    ],
)
def test_too_many_blocks_are_a_sentence(name: str, changes: dict[str, int], sentence: str) -> None:
    sizes = {} if name == "vit_tiny" else {"patch_size": 2, "depths": [1, 1]}
    with pytest.raises(ConfigError, match=sentence):
        classifier_from(encoder(name, **sizes), "mean", 3, torch.Generator(), **changes)


@pytest.mark.parametrize("feature", ["mean", "mean-then-norm"])
@pytest.mark.parametrize("name", ["swin_tiny", "viny_4m"])
def test_networks_with_one_norm_of_their_own(name: str, feature: str, tmp_path: Path) -> None:
    sizes = {"swin_tiny": {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 4}}
    network = encoder(name, **sizes.get(name, {"depth": 1, "patch_size": 8, "head_dim": 8}))
    outcome = run(tmp_path / "run", "train.max_steps=2", f"feature={feature}", "fresh_norm=true", start=network)
    again = load_classifier(outcome.run_dir / "classifier.json")
    assert again.feature == feature
    about = json.loads((outcome.run_dir / "classifier.json").read_text())
    assert (about["timm"] is not None) == (name == "swin_tiny" and feature == "mean")
    if about["timm"] is not None:
        model = timm.create_model(about["timm"]["model_name"], **about["timm"]["kwargs"])
        model.load_state_dict(weights(outcome.run_dir), strict=True)

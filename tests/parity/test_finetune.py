"""Fine-tuning's own classifier, parameter groups and learning rates against recorded outputs of the originals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import import_checkpoint
from halfseen.engine.config import LearningRateConfig, TrainConfig
from halfseen.engine.optim import LearningRate
from halfseen.evaluation.finetuning.classifier import Classifier, classifier_from
from halfseen.evaluation.finetuning.published import finetune_settings
from parity.discovery import companion, load_arrays, parity_files, state_under
from parity.localmim_images import prepare
from parity.localmim_weights import setting
from parity.test_backbones_kamim import heads_of, settings_of
from parity.test_localmim_finetune import cases, pretrained, reference_name
from parity.test_simmim_parts import block_counts, in_timm_naming

WEIGHT_DECAY = 0.05


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def encoder_of(state: dict[str, Tensor], folder: Path, **settings: int) -> Encoder:
    """What a user gets who names an official file as ENCODER."""
    path = folder / "checkpoint.pth"
    torch.save({"model": state}, path)
    return import_checkpoint(path, **settings).build()


def classifier_of(encoder: Encoder, feature: str, num_classes: int, **settings: object) -> Classifier:
    return classifier_from(encoder, feature, num_classes, torch.Generator().manual_seed(0), **settings).eval()


def set_head(classifier: Classifier, weight: Tensor, bias: Tensor | None = None) -> None:
    state = {"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias}
    classifier.head.load_state_dict(state)


def assert_close(classifier: Classifier, images: Tensor, features: np.ndarray | None, logits: np.ndarray, atol: float):
    with torch.no_grad():
        if features is not None:
            np.testing.assert_allclose(classifier.pooled(images).numpy(), features, rtol=0, atol=atol)
        np.testing.assert_allclose(classifier(images).numpy(), logits, rtol=0, atol=atol)


@pytest.mark.parametrize("path", parity_files("mae", "finetune_vit"))
@pytest.mark.parametrize(("flavour", "feature"), [("gap", "mean-then-norm"), ("cls", "cls")])
def test_mae_classifiers(path: Path, flavour: str, feature: str, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    sizes = json.loads(str(arrays["cfg_json"]))
    state = state_under(arrays, f"{flavour}.state.")
    encoder = encoder_of(state, tmp_path, num_heads=sizes["num_heads"])
    classifier = classifier_of(encoder, feature, sizes["num_classes"])
    set_head(classifier, state["head.weight"], state["head.bias"])
    assert_close(classifier, tensor(arrays["images"]), arrays[f"{flavour}.features"], arrays[f"{flavour}.logits"], 1e-5)


@pytest.mark.parametrize("path", parity_files("simmim", "vit_official_finetune_from_pretrain"))
def test_simmim_vit_classifier_from_the_pretrained_encoder(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    weights = load_arrays(companion(path, "vit_official_finetune_from_pretrain", "vit_official_tiny"))
    head = state_under(arrays, "sd/")
    images = tensor(arrays["in/img"])
    encoder = encoder_of(state_under(weights, "sd/"), tmp_path)
    feature = finetune_settings("simmim-finetune", encoder).settings.get("feature", "mean-then-norm")
    classifier = classifier_of(encoder, str(feature), len(head["head.bias"]), image_size=images.shape[-1])
    fresh = classifier.encoder.trunk.fc_norm
    assert torch.equal(fresh.weight, torch.ones_like(fresh.weight)) and not fresh.bias.any()
    fresh.load_state_dict({"weight": head["fc_norm.weight"], "bias": head["fc_norm.bias"]})
    set_head(classifier, head["head.weight"], head["head.bias"])
    assert_close(classifier, images, arrays["out/features"], arrays["out/logits"], 1e-5)


@pytest.mark.parametrize("path", parity_files("kamim", "vit_step") + parity_files("kamim", "swin_step"))
def test_kamim_classifiers(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images = tensor(arrays["x"])
    heads = None if path.name.startswith("swin") else heads_of(settings_of(arrays))
    encoder = encoder_of(state_under(arrays, "sd/"), tmp_path, image_size=images.shape[-1], num_heads=heads)
    feature = finetune_settings("kamim-finetune", encoder).settings["feature"]
    classifier = classifier_of(encoder, str(feature), len(arrays["head.bias"]))
    set_head(classifier, tensor(arrays["head.weight"]), tensor(arrays["head.bias"]))
    assert_close(classifier, images, None, arrays["logits.finetune"], 1e-5)


@pytest.mark.parametrize("path", parity_files("localmim", "_finetune"))
def test_localmim_classifiers_at_both_sizes(path: Path, tmp_path: Path) -> None:
    arrays, source = load_arrays(path), load_arrays(pretrained(path))
    state = load_file(pretrained(path).with_suffix(".safetensors"))
    images = prepare(source["images_u8_nhwc"])
    encoder = encoder_of(state, tmp_path, num_heads=setting(source)["heads"])
    fresh = finetune_settings("localmim-finetune", encoder).settings["fresh_norm"]
    assert cases(path)
    for pool, side in cases(path):
        feature = "mean-then-norm" if pool == "avg" else "cls"
        classifier = classifier_of(
            encoder, feature, len(arrays["head_weight"]), image_size=side, fresh_norm=bool(fresh)
        )
        assert classifier.encoder.trunk.pos_embed.requires_grad
        set_head(classifier, tensor(arrays["head_weight"]))
        nearest = torch.arange(side) * images.shape[-1] // side
        case = f"{pool}_img{side}"
        assert_close(
            classifier,
            images[:, :, nearest][:, :, :, nearest],
            arrays[f"feat_{case}"],
            arrays[f"logits_{case}"],
            2e-5,
        )
        if side != images.shape[-1]:
            resized = classifier.encoder.trunk.pos_embed.detach().numpy()
            np.testing.assert_allclose(resized, arrays["pos_embed_resized"], rtol=0, atol=1e-6)


class Recorded(dict[str, tuple[float, float]]):
    """By name, the lr scale and the weight decay of a parameter."""


def assert_groups(classifier: Classifier, layer_decay: float, recorded: Recorded, **settings: bool) -> None:
    found = {}
    for name, parameter in classifier.named_parameters():
        group = classifier.parameter_group(name, parameter, layer_decay, **settings)
        own = name.removeprefix("encoder.trunk.")
        if own.startswith("head.") and any(known.startswith("head.fc.") for known in recorded):
            own = own.replace("head.", "head.fc.")
        found[own] = group
    assert set(found) == set(recorded)
    for name, (scale, decay) in recorded.items():
        assert found[name].lr_scale == pytest.approx(scale, rel=1e-12), name
        assert (WEIGHT_DECAY if found[name].decay else 0.0) == decay, name


def recorded_of(names: np.ndarray, scales: np.ndarray, decays: np.ndarray) -> Recorded:
    triples = zip(names.tolist(), scales.tolist(), decays.tolist(), strict=True)
    return Recorded({str(name): (scale, decay) for name, scale, decay in triples})


def tiny_vit(depth: int) -> Encoder:
    return build_encoder(ModelConfig(name="vit_tiny", patch_size=4, embed_dim=8, depth=depth, num_heads=1), 8)


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_mae_groups(path: Path) -> None:
    arrays = load_arrays(path)
    found = [name.removesuffix(".names") for name in arrays if re.fullmatch(r"layerdecay\..*\.names", name)]
    assert found
    for case in found:
        wanted = re.fullmatch(r"layerdecay\.depth(\d+)_([\d.]+)", case)
        classifier = classifier_of(tiny_vit(int(wanted[1])), "mean-then-norm", 3)
        recorded = recorded_of(*(arrays[f"{case}.{part}"] for part in ("names", "lr_scale", "weight_decay")))
        assert_groups(classifier, float(wanted[2]), recorded)


@pytest.mark.parametrize("path", parity_files("localmim", "_finetune"))
def test_localmim_vit_groups(path: Path) -> None:
    arrays = load_arrays(path)
    depth = setting(load_arrays(pretrained(path)))["depth"]
    classifier = classifier_of(tiny_vit(depth), "mean-then-norm", 10)
    numbers = [match[1] for match in (re.fullmatch(r"lrd(.+)_names", name) for name in arrays) if match]
    assert numbers
    for number in numbers:
        recorded = recorded_of(*(arrays[f"lrd{number}_{part}"] for part in ("names", "scale", "wd")))
        assert_groups(classifier, float(number), recorded)


def tiny_swin(depths: tuple[int, ...]) -> Encoder:
    config = ModelConfig(name="swin_tiny", embed_dim=8, depths=depths, num_heads=(1,) * len(depths), window_size=2)
    return build_encoder(config, 8 * 2 ** len(depths))


@pytest.mark.parametrize("path", parity_files("localmim", "_layer_decay"))
def test_localmim_swin_groups(path: Path) -> None:
    arrays = load_arrays(path)
    classifier = classifier_of(tiny_swin(tuple(arrays["depths"].tolist())), "mean-then-norm", 10)
    names = np.array([in_timm_naming(str(name)) for name in arrays["names"]])
    recorded = recorded_of(names, arrays["lr_scale"], arrays["weight_decay"])
    tables = finetune_settings("localmim-finetune", classifier.encoder).settings["decay_bias_tables"]
    assert_groups(classifier, float(arrays["layer_decay"]), recorded, decay_bias_tables=bool(tables))
    assert {reference_name(name) for name in recorded} == set(arrays["names"].tolist())


@pytest.mark.parametrize("path", parity_files("simmim", "param_groups"))
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_simmim_groups(path: Path, family: str) -> None:
    entry = json.loads(path.read_text())[f"{family}_finetune"]
    groups = entry["groups"]
    base = next(group["lr"] for group in groups if group["lr_scale"] in (None, 1.0))
    names = [name for group in groups for name in group["params"]]
    depths = block_counts(names)
    if family == "vit":
        absolute = "pos_embed" in names
        config = ModelConfig(
            name="simmim_vit_tiny", embed_dim=8, depth=depths[0], num_heads=2, absolute_positions=absolute
        )
        classifier = classifier_of(build_encoder(config, 32), "mean-then-norm", 3)
    else:
        classifier = classifier_of(tiny_swin(tuple(depths)), "mean", 3)
    recorded = Recorded(
        {
            in_timm_naming(name) if family == "swin" else name: (group["lr"] / base, group["weight_decay"])
            for group in groups
            for name in group["params"]
            if name != "absolute_pos_embed"  # The original's option; timm's Swin has no such parameter.
        }
    )
    assert_groups(classifier, entry["layer_decay"], recorded)


def rates(protocol: str, steps_per_epoch: int, epochs: int, batch: int = 1, micro: int | None = None, rows: int = 0):
    """The learning rate of a protocol's runs, with other numbers."""

    def of(**changes: object) -> LearningRate:
        settings = finetune_settings(protocol, tiny_vit(1)).settings["train"]
        lr = {**settings["lr"], "reference_batch": None, "scale_all": False, **changes}
        train = TrainConfig(
            epochs=epochs,
            batch_size=batch,
            micro_batch_size=micro,
            drop_last=settings.get("drop_last", True),
            lr=LearningRateConfig.model_validate(lr),
        )
        return LearningRate.of_run(train, train.split(1), steps_per_epoch, rows or steps_per_epoch * batch)

    return of


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_mae_rates(path: Path) -> None:
    arrays = load_arrays(path)
    found = [name.removesuffix(".json") for name in arrays if re.fullmatch(r"lr\d+\.json", name)]
    assert found
    for case in found:
        numbers = json.loads(str(arrays[f"{case}.json"]))
        rate = rates("mae-finetune", numbers["ipe"], numbers["epochs"])(
            base=numbers["lr"], min=numbers["min_lr"], warmup_epochs=numbers["warmup_epochs"]
        )
        used = [rate(step) for step in range(len(arrays[f"{case}.lr"]))]
        np.testing.assert_allclose(used, arrays[f"{case}.lr"], rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("path", parity_files("simmim", "lr_schedule"))
def test_simmim_rates(path: Path) -> None:
    arrays = load_arrays(path)
    meta = {name.removeprefix("meta/"): value for name, value in arrays.items() if name.startswith("meta/")}
    rate = rates("simmim-finetune", int(meta["steps_per_epoch"]), int(meta["epochs"]))(
        base=float(meta["base_lr"]),
        min=float(meta["min_lr"]),
        warmup_start=float(meta["warmup_lr"]),
        warmup_epochs=float(meta["warmup_epochs"]),
    )
    for group, scale in enumerate(meta["group_scale"].tolist()):
        recorded = arrays["cosine/lr_used"][:, group]
        np.testing.assert_allclose([rate(step, scale) for step in range(len(recorded))], recorded, rtol=1e-9)


@pytest.mark.parametrize("path", parity_files("kamim", "lr_"))
def test_kamim_rates(path: Path) -> None:
    arrays = load_arrays(path)
    numbers = {name: value.item() for name, value in arrays.items() if value.ndim == 0}
    micro = numbers["batch_size"] // numbers["accumulation"]
    epochs = numbers["epochs"] + numbers["warmup_epochs"]
    rate = rates("kamim-finetune", numbers["epoch_steps"], epochs, numbers["batch_size"], micro, numbers["N"])(
        base=numbers["base_lr"],
        min=numbers["lr_min"],
        warmup_start=numbers["warmup_lr_init"],
        warmup_epochs=numbers["warmup_epochs"],
        epochs=numbers["epochs"],
        index="microbatch",
    )
    recorded = arrays["lr_used_per_optimizer_step"]
    np.testing.assert_allclose([rate(step) for step in range(len(recorded))], recorded, rtol=1e-12)

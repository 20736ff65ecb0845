"""The YAML files of MSN's published code, read as they are: `halfseen pretrain --msn-config FILE`.

    file --all keys, strictly--> MSNFile --tables below--> settings of a run + one sentence about each key

A key that does nothing (here, or in the original already) is accepted and its sentence says so; one that asks for
what this library does in another way is refused.

Source: Masked Siamese Networks, arXiv 2204.07141, official code.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.config.load import DEFAULT, Layer, Loaded, leaves, load_config
from halfseen.config.yaml_text import Settings, Value, read_settings, show
from halfseen.pretraining.config import RunConfig

ModelName = Literal[
    "deit_tiny", "deit_small", "deit_small_p8", "deit_small_p7", "deit_base", "deit_base_p8", "deit_base_p7",
    "deit_base_p4", "deit_large", "deit_large_p8", "deit_large_p7", "deit_huge", "deit_huge_p8", "deit_huge_p7",
    "deit_huge_p10", "vitc_4gf", "deit_small_convstem",
]  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CriterionKeys(_Section):
    """The section `criterion`."""

    batch_size: int = Field(ge=1, description="images of each process per step")
    num_proto: int = Field(ge=2, description="number of prototypes")
    temperature: float = Field(gt=0, description="divisor of the cosines with the prototypes")
    start_sharpen: float = Field(gt=0, le=1, description="sharpening of the targets at the first step")
    final_sharpen: float = Field(gt=0, le=1, description="sharpening at the end of the schedules")
    use_sinkhorn: bool = Field(description="balance the targets (true/false)")
    me_max: bool = Field(description="push the mean assignment to use all prototypes (true/false)")
    memax_weight: float = Field(1.0, ge=0, description="weight of that; 1 if absent, as in the original")
    use_ent: bool = Field(False, description="compute the anchors' entropy (true/false)")
    ent_weight: float = Field(1.0, ge=0, description="weight of that; 1 if absent, as in the original")
    freeze_proto: bool = Field(False, description="keep the prototypes as they are drawn (true/false)")


class DataKeys(_Section):
    """The section `data`."""

    root_path: str = Field(min_length=1, description="folder of data sets")
    image_folder: str = Field(min_length=1, description="folder below it that holds train and val")
    color_jitter_strength: float = Field(ge=0, le=2.5, description="strength of the colour changes")
    label_smoothing: float = Field(ge=0, lt=1, description="share of every assignment that is spread evenly")
    patch_drop: float = Field(ge=0, lt=1, description="dropped share of the patches of the first group of views")
    rand_size: int = Field(ge=16, le=4096, description="side of target and random views in pixels")
    rand_views: int = Field(ge=0, description="number of random views")
    focal_size: int = Field(ge=1, description="side of focal views in pixels")
    focal_views: int = Field(ge=0, description="number of focal views")
    num_workers: int = Field(1, ge=0, description="loader processes of each process; 1 if absent")
    pin_mem: bool = Field(False, description="pin the loader's memory (true/false)")

    @model_validator(mode="after")
    def _one_view_at_least(self) -> "DataKeys":
        if self.rand_views + self.focal_views == 0:
            raise ValueError("rand_views: got 0 beside focal_views 0, but at least one anchor view is needed.")
        return self


class LoggingKeys(_Section):
    """The section `logging`."""

    folder: str = Field(min_length=1, description="folder of outputs")
    write_tag: str = Field(min_length=1, description="first part of the names of outputs")


class MetaKeys(_Section):
    """The section `meta`."""

    model_name: ModelName = Field(description="the encoder")
    hidden_dim: int = Field(ge=1, description="width of the head's hidden layers")
    output_dim: int = Field(ge=1, description="width of representations and prototypes")
    use_bn: bool = Field(description="batch norm in the head (true/false)")
    drop_path_rate: float = Field(ge=0, lt=1, description="stochastic depth of the last block")
    load_checkpoint: bool = Field(False, description="go on with a run (true/false)")
    read_checkpoint: str | None = Field(None, description="file to go on from")
    copy_data: bool = Field(False, description="copy the images to a local disk first (true/false)")
    bottleneck: int = Field(1, description="not used by the original")
    two_layer: bool = Field(False, description="not used by the original")
    use_pred_head: bool = Field(False, description="not used by the original")
    use_fp16: bool = Field(False, description="not used by the original")

    @model_validator(mode="after")
    def _starts_a_run(self) -> "MetaKeys":
        if self.load_checkpoint:
            raise ValueError(
                "load_checkpoint: got true, but a file describes a new run here. Go on with an old one by `halfseen "
                "pretrain --resume RUN`, and write false."
            )
        return self


class OptimizationKeys(_Section):
    """The section `optimization`."""

    epochs: int = Field(ge=1, description="passes over the data")
    warmup: float = Field(ge=0, description="epochs of the linear warm-up, may be fractional")
    start_lr: float = Field(ge=0, description="learning rate at which the warm-up starts")
    lr: float = Field(gt=0, description="peak learning rate")
    final_lr: float = Field(ge=0, description="learning rate at which the cosine ends")
    weight_decay: float = Field(ge=0, description="weight decay at the start")
    final_weight_decay: float = Field(ge=0, description="weight decay at which the cosine ends")
    clip_grad: float = Field(description="largest norm of the encoder's gradient; 0 or less doesn't clip")

    @model_validator(mode="after")
    def _rates_descend(self) -> "OptimizationKeys":
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr: got {self.final_lr}, which is above lr = {self.lr}. Give a smaller one.")
        return self


class MSNFile(_Section):
    """A pre-training file of MSN's published code: every key there is."""

    criterion: CriterionKeys = Field(description="loss")
    data: DataKeys = Field(description="images and views")
    logging: LoggingKeys = Field(description="outputs")
    meta: MetaKeys = Field(description="encoder and head")
    optimization: OptimizationKeys = Field(description="optimiser and schedules")


RENAMED: Mapping[str, str] = {
    "criterion.num_proto": "method.num_prototypes",
    "criterion.temperature": "method.temperature",
    "criterion.start_sharpen": "method.start_sharpen",
    "criterion.final_sharpen": "method.final_sharpen",
    "criterion.use_sinkhorn": "method.use_sinkhorn",
    "criterion.me_max": "method.me_max",
    "criterion.memax_weight": "method.memax_weight",
    "criterion.use_ent": "method.use_ent",
    "criterion.ent_weight": "method.ent_weight",
    "criterion.freeze_proto": "method.freeze_prototypes",
    "data.color_jitter_strength": "method.color_jitter_strength",
    "data.label_smoothing": "method.label_smoothing",
    "data.patch_drop": "method.patch_drop",
    "data.rand_size": "data.image_size",
    "data.rand_views": "method.rand_views",
    "data.focal_size": "method.focal_size",
    "data.focal_views": "method.focal_views",
    "data.num_workers": "runtime.workers",
    "meta.hidden_dim": "method.hidden_dim",
    "meta.output_dim": "method.output_dim",
    "meta.use_bn": "method.use_bn",
    "meta.drop_path_rate": "model.drop_path",
    "optimization.epochs": "train.epochs",
    "optimization.warmup": "train.lr.warmup_epochs",
    "optimization.start_lr": "train.lr.warmup_start",
    "optimization.lr": "train.lr.base",
    "optimization.final_lr": "train.lr.min",
    "optimization.weight_decay": "train.optimizer.weight_decay",
    "optimization.final_weight_decay": "train.optimizer.weight_decay_end",
    "optimization.clip_grad": "train.clip_norm",
}
"""Keys whose values are settings of a run as they are."""

NEEDED: Mapping[str, str] = {
    "criterion.memax_weight": "criterion.me_max",
    "criterion.ent_weight": "criterion.use_ent",
    "data.focal_size": "data.focal_views",
    "optimization.start_lr": "optimization.warmup",
}
"""Keys that act only where another key is true or above 0."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "data.pin_mem": "memory is pinned wherever runtime.device is cuda",
    "meta.load_checkpoint": "this is a new run; --resume RUN goes on with an old one",
    "meta.read_checkpoint": "this is a new run; --resume RUN goes on with an old one",
    "meta.copy_data": "images are read where they are; if a local disk is faster, copy them and give the copy as DATA",
    "meta.bottleneck": "the original doesn't use it either",
    "meta.two_layer": "the original doesn't use it either",
    "meta.use_pred_head": "the original doesn't use it either",
    "meta.use_fp16": "the original doesn't use it either and computes in float32; runtime.precision=bf16 is faster",
}
"""Keys that change nothing, and why."""

ALWAYS: Mapping[str, Value] = {
    "seed": 0,
    "method.name": "msn",
    "model.position_rule": "scale",
    "train.optimizer.name": "adamw",
    "train.optimizer.betas": [0.9, 0.999],
    "train.optimizer.eps": 1e-8,
    "train.optimizer.weight_decay_schedule": "msn_cosine",
    "train.lr.schedule": "msn_cosine",
    "train.lr.reference_batch": None,
    "evaluate.feature": "cls",
    "runtime.precision": "fp32",
}
"""What the original does without a key for it; its results are those of the class token."""


class Note(NamedTuple):
    """What became of a key: the sentence, and the setting of the run that it decides (None: none)."""

    sentence: str
    setting: str | None


class Translation(NamedTuple):
    """A file as nested settings of a run, and a note about each key."""

    settings: Settings
    notes: tuple[Note, ...]


class LoadedMSNFile(NamedTuple):
    """The settings of a run and a sentence about each key of the file."""

    loaded: Loaded[RunConfig]
    sentences: tuple[str, ...]


def load_msn_file(path: Path, processes: int, file: Path | None = None, overrides: Sequence[str] = ()) -> LoadedMSNFile:
    """The run that a published file describes, with what is stronger than it.

    Args:
        path: the published YAML file, or one like it.
        processes: over which the run will be spread: the file counts the images of one.
        file: YAML file with settings of this library.
        overrides: `key.sub=value` texts.
    Raises:
        ConfigError: the text lists all faults of the file, or of the settings, one a line.
    """
    layer = Layer(f"MSN file '{path}'", read_settings(path))
    read = load_config(MSNFile, [layer])
    absent = [key for key, origin in read.provenance.items() if origin == DEFAULT]
    translation = translate(read.config, processes, absent)
    layers = [Layer(layer.name, translation.settings)]
    if file is not None:
        layers.append(Layer(f"file '{file}'", read_settings(file)))
    loaded = load_config(RunConfig, layers, overrides)
    sentences = []
    for note in translation.notes:
        stronger = layer.name if note.setting is None else loaded.provenance.get(note.setting, layer.name)
        overruled = "" if stronger == layer.name else f", overruled by {_named(stronger, overrides, note.setting)}"
        sentences.append(f"{note.sentence}{overruled}.")
    return LoadedMSNFile(loaded, tuple(sentences))


def translate(file: MSNFile, processes: int, absent: Collection[str] = ()) -> Translation:
    """The settings of a run that do what the original does with this file.

    Args:
        processes: over which the run will be spread.
        absent: dotted keys that are not in the file; those without effect get no note.
    """
    values = leaves(file)
    settings: dict[str, Value] = dict(ALWAYS)
    notes = []
    for key, value in values.items():
        given = f"{key} {show(value)}{' (not in the file)' if key in absent else ''}"
        needed = NEEDED.get(key)
        if key in WITHOUT_EFFECT:
            if key in absent:
                continue
            notes.append(Note(f"{given}: no effect, {WITHOUT_EFFECT[key]}", None))
        elif needed is not None and not values[needed]:
            notes.append(Note(f"{given}: no effect, as {needed} is {show(values[needed])}", None))
        else:
            found = _special(file, key, processes) or {RENAMED[key]: value}
            settings |= found
            result = ", ".join(f"{setting} {show(number)}" for setting, number in found.items())
            notes.append(Note(f"{given} -> {result}{_remark(file, key, processes)}", next(iter(found))))
    return Translation(_nested(settings), tuple(notes))


def _special(file: MSNFile, key: str, processes: int) -> dict[str, Value]:
    """The settings of the keys that are more than a new name."""
    if key == "criterion.batch_size":
        return {"train.batch_size": file.criterion.batch_size * processes}
    if key in ("data.root_path", "data.image_folder"):
        return {"data.source": str(Path(file.data.root_path) / file.data.image_folder)}
    if key in ("logging.folder", "logging.write_tag"):
        return {"run_dir": str(Path(file.logging.folder) / file.logging.write_tag)}
    if key == "meta.model_name":
        model = _model(file.meta.model_name)
        whole = file.data.rand_size % int(str(model.get("model.patch_size", 16))) == 0
        return model if whole else model | {"model.crop_to_patches": True}
    if key == "optimization.clip_grad" and file.optimization.clip_grad <= 0:
        return {"train.clip_norm": None}
    return {}


def _model(name: ModelName) -> dict[str, Value]:
    """`deit_base_p8` is `vit_base` in patches of 8; convolutional stems have a stride of 16."""
    if name == "vitc_4gf":
        return {"model.name": name}
    if name == "deit_small_convstem":
        return {"model.name": "vit_small_convstem"}
    _, size, *patch = name.split("_")
    return {"model.name": f"vit_{size}", "model.patch_size": int(patch[0].removeprefix("p")) if patch else 16}


def _remark(file: MSNFile, key: str, processes: int) -> str:
    if key == "criterion.batch_size":
        word = "process" if processes == 1 else "processes"
        return f" ({file.criterion.batch_size} images on each of {processes} {word})"
    return " (not scaled by the batch)" if key == "optimization.lr" else ""


def _named(origin: str, overrides: Sequence[str], setting: str | None) -> str:
    """Who overruled the file: the word of the command line, or the name of the layer."""
    words = [word for word in overrides if word.partition("=")[0].strip() == setting]
    return words[-1] if words else origin


def _nested(flat: Mapping[str, Value]) -> Settings:
    """The inverse of `flatten`."""
    nested: Settings = {}
    for dotted, value in flat.items():
        *groups, last = dotted.split(".")
        group = nested
        for name in groups:
            inner = group.setdefault(name, {})
            assert isinstance(inner, dict)
            group = inner
        group[last] = value
    return nested

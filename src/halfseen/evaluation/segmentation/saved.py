"""A segmentation model in its folder: the encoder as others load it, the head beside it, arrays of a few pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from halfseen.backbones.weights import export_encoder, load_encoder
from halfseen.data.resident import Resident
from halfseen.errors import WeightsError
from halfseen.evaluation.head_file import HEAD, read_head, write_head
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.models import (
    EncoderTokens,
    LinearSegmenter,
    SegmentationModel,
    Segmenter,
    import_segmentation_model,
)
from halfseen.evaluation.segmentation.task import Task
from halfseen.evaluation.statements import fingerprints_of
from halfseen.evaluation.subject import RAW_MEAN, RAW_STD, Subject
from halfseen.ops.precision import Precision, autocast
from halfseen.ops.segmentation import image_scores

EXAMPLES = Path("figures") / "segmentation_example.npz"

NUM_EXAMPLES = 4


class Trained(NamedTuple):
    """A segmentation model that needs no training.

    Attributes:
        segmenter: on the CPU.
        subject: its encoder, and how it is run.
        config: by which it was trained; of a foreign file, by which it is to be measured.
        seed: of its training.
        names: of its classes; empty where the file doesn't say.
        answer: the class that most pixels had that it learned from; None where the file doesn't say.
        images: fingerprints of the images that it learned from and was tested on; empty where the file doesn't say.
    """

    segmenter: SegmentationModel | LinearSegmenter
    subject: Subject
    config: SegmentationConfig
    seed: int
    names: tuple[str, ...]
    answer: int | None
    images: tuple[str, ...] = ()


def load_trained(
    path: Path,
    config: SegmentationConfig,
    *,
    device: str = "cpu",
    precision: Precision | None = None,
    workers: int = 0,
    num_heads: int | None = None,
) -> Trained:
    """A model that `segmentation_protocol` wrote into a folder, or a checkpoint of ViNy's own fine-tuning.

    Args:
        config: for a foreign checkpoint, which has no settings; a folder of ours has its own.
        precision: None takes that of the training, fp32 for a foreign checkpoint.
        num_heads: of a foreign encoder, where its sizes don't tell.
    Raises:
        WeightsError: nothing of the kind there.
    """
    if path.is_dir():
        return _load_folder(path, device, precision, workers)
    model = import_segmentation_model(path, num_heads)
    subject = Subject(
        model.encoder,
        None,
        RAW_MEAN,
        RAW_STD,
        str(path),
        role="imported",
        device=device,
        precision=precision or "fp32",
        workers=workers,
    )
    model.class_softmax = config.class_softmax
    return Trained(model, subject, config, 0, (), None)


def _load_folder(folder: Path, device: str, precision: Precision | None, workers: int) -> Trained:
    loaded = load_encoder(folder)
    about = json.loads((folder / "encoder.json").read_text(encoding="utf-8")).get("segmentation")
    if about is None or not (folder / HEAD).is_file():
        raise WeightsError(
            f"encoder: '{folder}' holds no segmentation model. Give a folder that `halfseen segment` wrote, or leave "
            "out --no-training."
        )
    config = SegmentationConfig.model_validate(about["config"])
    used: Precision = precision or about["precision"]
    subject = Subject(
        loaded.encoder,
        None,
        loaded.mean,
        loaded.std,
        str(folder),
        role=loaded.role,
        image_size=about["image_size"],
        device=device,
        precision=used,
        workers=workers,
    )
    mean, std, K = loaded.mean, loaded.std, len(about["classes"])
    segmenter: SegmentationModel | LinearSegmenter
    if config.method == "linear":
        tokens = EncoderTokens(loaded.encoder, mean, std, device, used)
        segmenter = LinearSegmenter(tokens, loaded.encoder.embed_dim, K, loaded.encoder.stride)
    else:
        segmenter = SegmentationModel(loaded.encoder, K, mean=mean, std=std, class_softmax=config.class_softmax)
    read_head(segmenter.head, folder)
    classes, images = tuple(about["classes"]), tuple(about["images"])
    return Trained(segmenter, subject, config, about["seed"], classes, about["largest_class"], images)


def write_model(
    segmenter: Segmenter,
    subject: Subject,
    task: Task,
    config: SegmentationConfig,
    seed: int,
    answer: int,
    folder: Path,
) -> None:
    """The encoder as others load it, the head beside it; nothing where patches vote."""
    if isinstance(segmenter, SegmentationModel):
        encoder, head, learned = segmenter.encoder, segmenter.head, fingerprints_of(task.train.source)
    elif isinstance(segmenter, LinearSegmenter):
        encoder, head, learned = subject.encoder, segmenter.head, set()
    else:
        return
    write_head(head, folder)
    mean, std = subject.normalisation(config.normalise)
    extra = {
        "segmentation": {
            "config": config.model_dump(mode="json"),
            "seed": seed,
            "classes": list(task.names),
            "largest_class": answer,
            "from": subject.origin,
            "image_size": subject.size,
            "precision": subject.precision,
            "images": [task.train.source.fingerprint(), task.test.source.fingerprint()],
            "head": HEAD,
        },
        "taught_on": sorted({*subject.taught_on, *learned}),
    }
    export_encoder(encoder, folder, mean=mean, std=std, role=subject.role, extra=extra)


def write_examples(
    segmenter: Segmenter,
    tested: Resident,
    counts: Int64[Tensor, "n K K"],
    names: Sequence[str],
    subject: Subject,
    path: Path,
) -> None:
    """Arrays of a few test images, evenly drawn, for the picture."""
    assert tested.masks is not None
    rows = torch.linspace(0, len(tested.labels) - 1, min(NUM_EXAMPLES, len(tested.labels))).round().long()
    chosen = tested.take(rows)
    assert chosen.masks is not None
    with torch.no_grad(), autocast(torch.device(subject.device), subject.precision):
        predictions = segmenter.predict(chosen.images)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            images=chosen.images.permute(0, 2, 3, 1).cpu().numpy(),
            targets=chosen.masks.cpu().numpy(),
            predictions=predictions.to(torch.uint8).cpu().numpy(),
            miou=image_scores(counts).miou[rows].numpy(),
            names=np.array(names),
        )

"""An intermediate stage in its folder: the encoder as others load it, a record of the stage, and its head beside it."""

import json
from pathlib import Path
from typing import NamedTuple

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import export_encoder, load_encoder
from halfseen.engine.checkpoint import Identity
from halfseen.errors import CheckpointError, ConfigError
from halfseen.evaluation.head_file import HEAD, write_head
from halfseen.evaluation.intermediate.config import UNCHANGED, IntermediateConfig
from halfseen.evaluation.intermediate.models import Stage, summary_words
from halfseen.evaluation.intermediate.task import StageTask
from halfseen.evaluation.resident_training import weights_fingerprint
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import fingerprints_of
from halfseen.evaluation.subject import Subject


class StageResult(NamedTuple):
    """What a stage has left.

    Attributes:
        encoder: trained, as the subject's own: without a class token where that didn't use one.
        weights: its file; the folder around it is what other commands take as an encoder.
        result: accuracies beside chance, as written.
    """

    encoder: Encoder
    weights: Path
    result: Result


def keep_encoder(subject: Subject, out: Path, resume: bool = False) -> None:
    """Write the encoder as it is into a folder beside those of the stages.

    Args:
        resume: leave it there if that has been done.
    Raises:
        ConfigError: the folder holds an encoder already.
        CheckpointError: what it holds is another encoder.
    """
    if resume and (out / "encoder.json").is_file():
        if weights_fingerprint(load_encoder(out).encoder) != weights_fingerprint(subject.encoder):
            raise CheckpointError(
                f"'{out}' holds another encoder than '{subject.origin}'. Give that one again, or another folder."
            )
        return
    if (out / "encoder.json").is_file():
        raise ConfigError(f"'{out}' holds an encoder already. Give another folder, or remove it.")
    extra = {
        "intermediate": {"protocol": UNCHANGED, "from": subject.origin},
        "taught_on": list(subject.taught_on),
    }
    export_encoder(subject.encoder, out, mean=subject.mean, std=subject.std, role=subject.role, extra=extra)


def read_finished(out: Path, protocol: str, identity: Identity) -> StageResult | None:
    """The stage that ended in this folder; None where it hasn't ended yet."""
    path = out / f"{protocol}.json"
    if not path.is_file():
        return None
    about = json.loads((out / "encoder.json").read_text(encoding="utf-8"))
    if about.get("intermediate", {}).get("identity") != identity.digest:
        raise CheckpointError(
            f"The stage in '{out}' was trained with other settings, images or weights. Give those again, or another "
            "folder."
        )
    loaded = load_encoder(out)
    result = Result.model_validate_json(path.read_text(encoding="utf-8"))
    return StageResult(loaded.encoder, out / "encoder.safetensors", result)


def write_stage(
    encoder: Encoder,
    stage: Stage,
    subject: Subject,
    task: StageTask,
    config: IntermediateConfig,
    identity: Identity,
    seed: int,
    out: Path,
) -> Path:
    """The encoder a record of the stage, and its head beside it."""
    write_head(stage.head, out)
    extra = {
        "intermediate": {
            "protocol": config.protocol,
            "objective": config.objective,
            "from": subject.origin,
            "data": task.train.source.name,
            "seed": seed,
            "identity": identity.digest,
        },
        "taught_on": sorted({*subject.taught_on, *fingerprints_of(task.train.source)}),
        "head": {
            "file": HEAD,
            "reads": "patch tokens" if config.objective == "patchwise" else summary_words(subject.encoder),
            "classes": list(task.names),
        },
    }
    return export_encoder(encoder, out, mean=stage.mean, std=stage.std, role=subject.role, extra=extra)

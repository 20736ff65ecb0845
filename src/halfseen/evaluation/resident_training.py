"""Training on data that stays on the device: the engine's loop with a folder, a journal, and a start where it ended.

What fine-tunings and heads of a few thousand images share, from reading the images on.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from halfseen.backbones.base import Encoder
from halfseen.data.resident import Resident, ResidentResize, read_resident
from halfseen.engine.checkpoint import Identity, latest_checkpoint
from halfseen.engine.config import RuntimeConfig, TrainConfig
from halfseen.engine.journal import METRICS, open_journal
from halfseen.engine.loop import StepLoader, Trainable, fit
from halfseen.engine.terminal import SilentTerminal
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.types import GroupKey, Progress

logger = logging.getLogger(__name__)

MOST_LOG_STEPS = 1000


class OneGroup(nn.Module):
    """What the loop asks of a module whose weights all decay alike, biases and norms too."""

    schedule_horizon = 1.0
    whole_batch_only = False

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """One group for all."""
        return GroupKey(decay=True)

    def before_update(self, progress: Progress) -> None:
        """Nothing to do."""

    def after_step(self, progress: Progress) -> None:
        """Nothing to do."""


def resident_settings(
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    milestones: Sequence[float],
    gamma: float,
    steps_per_epoch: int,
    num_images: int,
) -> TrainConfig:
    """AdamW as torch has it (Adam with a decay of 0), the rate dropping at milestones in epochs.

    Fewer images than a batch make one batch; an epoch's last batch may be smaller.
    """
    schedule: dict[str, object] = {"schedule": "constant"}
    if milestones:
        schedule = {"schedule": "multistep", "milestones": tuple(milestones), "gamma": gamma}
    return TrainConfig.model_validate(
        {
            "epochs": epochs,
            "batch_size": min(batch_size, num_images),
            "drop_last": False,
            "optimizer": {"betas": (0.9, 0.999), "weight_decay": weight_decay},
            "lr": {"base": lr, "reference_batch": None, **schedule},
            "keep_checkpoints": 1,
            "log_every_steps": min(steps_per_epoch, MOST_LOG_STEPS),
            "health_every_steps": None,
        }
    )


def read_images(
    subject: Subject,
    split: Split,
    image_size: int,
    *,
    masks: bool,
    resize: ResidentResize,
    words: str,
    on_progress: OnProgress | None,
) -> Resident:
    """All images of a split, with their masks if asked for, where the subject computes.

    Args:
        words: which images these are, for the progress.
    Raises:
        DataError: see `read_resident`.
    """
    return read_resident(
        split.source,
        image_size,
        masks=masks,
        resize=resize,
        device=subject.device,
        workers=subject.workers,
        on_progress=None if on_progress is None else partial(on_progress, f"reading {words}"),
    )


def train_resident(
    model: Trainable,
    loader: StepLoader,
    settings: TrainConfig,
    subject: Subject,
    identity: Identity,
    folder: Path,
    *,
    seed: int,
    resume: bool,
    words: str,
    on_progress: OnProgress | None,
) -> None:
    """Train to the end of the settings, in `folder`, from the newest checkpoint there if `resume` says so.

    Args:
        words: what is being trained, for the progress.
    Raises:
        CheckpointError: the checkpoint belongs to other settings, images or weights.
        KeyboardInterrupt: a signal asked to stop; a checkpoint was written first.
    """
    start = latest_checkpoint(folder) if resume else None
    journal = open_journal(folder, resume_step=0 if start is None else int(start.name.removeprefix("step-")))
    last_step = settings.last_step(loader.steps_per_epoch)
    # The loop sets the number of threads; here whoever measures has chosen it already.
    runtime = {"device": subject.device, "precision": subject.precision, "threads": torch.get_num_threads()}
    try:
        ended = fit(
            model,
            loader,
            settings,
            RuntimeConfig.model_validate(runtime),
            seed=seed,
            run_dir=folder,
            identity=identity,
            journal=journal,
            terminal=SilentTerminal(),
            resume_from=start,
            on_log=None if on_progress is None else lambda record: on_progress(words, int(record["step"]), last_step),
        )
    finally:
        journal.close()
    if not ended.finished:
        logger.warning("Stopped after step %d of %d; --resume goes on from there.", ended.step, last_step)
        raise KeyboardInterrupt


def logged_curves(folder: Path, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Series of the journal, e.g. epoch and loss: plain means of the batches' means."""
    lines: list[Mapping[str, float]] = [
        json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()
    ]
    return {name: [float(line[name]) for line in lines] for name in names}


def weights_fingerprint(encoder: Encoder) -> str:
    """sha256 over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.trunk.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

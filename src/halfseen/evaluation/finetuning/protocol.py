"""Fine-tuning from an encoder to a result: a run of its own, which stops and resumes like any other.

    classifier from the encoder -> loop -> the same from random weights -> raw pixels -> weights, result

Its folder holds config.yaml, metrics.jsonl, checkpoints/, `start` (a copy of the encoder), classifier.safetensors (the
last epoch's weights), classifier_best.safetensors, encoder.safetensors (of the reported weights) and
evaluations/<protocol>.json; `random_init` inside it is the same for the baseline.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from halfseen.backbones.base import Encoder
from halfseen.config.load import DEFAULT, Loaded, dump_config
from halfseen.data.diary import Diary
from halfseen.data.doctor import precheck
from halfseen.engine.distributed import processes, report_start, require_same
from halfseen.engine.folder import CONFIG, check_folder, hold_folder, open_folder, write_environment, write_whole
from halfseen.engine.journal import require_tensorboard
from halfseen.engine.precision import open_device
from halfseen.engine.terminal import open_terminal
from halfseen.errors import ConfigError
from halfseen.evaluation.finetuning.config import FinetuneConfig, check_effects
from halfseen.evaluation.finetuning.published import Protocol
from halfseen.evaluation.finetuning.result import result_of
from halfseen.evaluation.finetuning.run import BEST, LAST, RANDOM, Run
from halfseen.evaluation.finetuning.task import prepare_task
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import Subject


class FinetuneOutcome(NamedTuple):
    """What a fine-tuning run has left.

    Attributes:
        run_dir: its folder.
        finished: False if a signal ended it early; resume it then.
        message: one sentence for the person at the terminal.
        result: None if the run isn't finished, and on processes other than 0.
        classifier: the reported weights, as the result.
    """

    run_dir: Path
    finished: bool
    message: str
    result: Result | None
    classifier: Path | None


def finetune(
    subject: Subject,
    train: Split,
    test: Split | None,
    loaded: Loaded[FinetuneConfig],
    protocol: Protocol,
    *,
    resume: bool = False,
    command: Sequence[str] | None = None,
) -> FinetuneOutcome:
    """Fine-tune an encoder as a classifier and measure it on test images, beside its baselines.

    Args:
        subject: the encoder; its random counterpart is the baseline's start. Both are left as they are.
        train: training images.
        test: images that are classified; None, or the very same images: a fifth of each class of `train`.
        loaded: the settings and where they come from.
        protocol: what the protocol's name stands for, for the statement on departures.
        resume: go on with the run in `run_dir` from its newest whole checkpoint.
        command: the command line, for the record; None takes this process's.
    Raises:
        DataError: no labels, one class only, classes that differ between the splits, too few images to hold any out.
        ConfigError: a batch that the processes can't share, a folder that is in use.
        CheckpointError: a run that can't go on with these settings.
        WeightsError: an encoder that doesn't fit.
    Source: MAE, arXiv 2111.06377; SimMIM, arXiv 2111.09886; LocalMIM, arXiv 2303.05251; KAMIM, arXiv 2407.13873; MSN,
        arXiv 2204.07141; iBOT, arXiv 2111.07832.
    """
    report_start()
    started = time.monotonic()
    config = loaded.config
    with processes(config.runtime.device) as world, contextlib.ExitStack() as held:
        open_device(config.runtime.device, world.local_rank)
        check_folder(config.run_dir, resume, "finetune")
        if resume and world.is_main:
            held.enter_context(hold_folder(Path(str(config.run_dir))))
        if config.runtime.tensorboard:
            require_tensorboard()
        torch.set_num_threads(config.runtime.threads)
        check_effects(config, subject.encoder, protocol.settings)
        task = prepare_task(train, test, config)
        require_same(world, "data", task.chosen.fingerprint())
        run = Run(config, task, subject, world, open_terminal(world.is_main))
        network = run.classifier(subject.encoder, _anew(config, subject))
        sampler = run.sampler()  # Says at once what is wrong with the batch.
        if resume:
            run.look_at_checkpoint(Path(str(config.run_dir)))
        run_dir = Path(str(config.run_dir))
        if not resume:
            run_dir = Path(world.broadcast_object(str(_begin(config, held)) if world.is_main else ""))
        config = run.config = config.model_copy(update={"run_dir": str(run_dir)})
        diary = Diary(run_dir, task.chosen)
        if world.is_main:
            diary.read()
            diary.note(precheck(task.chosen, config.data))
            write_whole(run_dir / CONFIG, dump_config(config, loaded.provenance))
            write_environment(run_dir, command, loaded.provenance["runtime.threads"] == DEFAULT)
            if not resume:
                run.keep_start(run_dir)
            diary.write()
        world.barrier()
        ended = run.train("encoder", network, run_dir, sampler, diary)
        random_network = None
        if ended.finished and config.baselines and subject.random_encoder is not None:
            random_network = run.classifier(subject.random_encoder())
            run.say("Training the same network from random weights.")
            ended = run.train("random_init", random_network, run_dir / RANDOM, run.sampler(), diary)
        diary.note([each for found in world.gather(list(diary.skipped.values())) for each in found])
        if not ended.finished:
            return FinetuneOutcome(run_dir, False, ended.message, None, None)
        scores = run.final_scores(network, random_network, run_dir)
        if not world.is_main:
            return FinetuneOutcome(run_dir, True, ended.message, None, None)
        diary.write()
        result = result_of(run, protocol, scores, diary, time.monotonic() - started)
        result.write(run_dir / "evaluations")
        path = run_dir / f"{LAST if config.choose == 'last' else BEST}.safetensors"
        return FinetuneOutcome(run_dir, True, ended.message, result, path)


def _anew(config: FinetuneConfig, subject: Subject) -> Encoder | None:
    """The network whose last blocks an encoder's fresh ones begin as."""
    if not config.fresh_blocks:
        return None
    if subject.random_encoder is None:
        raise ConfigError("fresh_blocks: this network can't be built anew, so its blocks can't begin anew either.")
    return subject.random_encoder()


def _begin(config: FinetuneConfig, held: contextlib.ExitStack) -> Path:
    """The folder of a new run, made and kept for this process."""
    folder = open_folder(config.run_dir, config.protocol, config.data.source)
    held.enter_context(hold_folder(folder))
    check_folder(config.run_dir, False, "finetune")  # Another process may have begun a run there since the first look.
    return folder

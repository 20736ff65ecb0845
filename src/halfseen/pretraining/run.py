"""Pre-training from settings to results: the one place where data, method and engine meet.

    open the data -> build encoder and method -> loop -> encoder.safetensors -> k-NN and baselines -> pictures -> report

The command line and `halfseen.pretrain` both come through `run`.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from halfseen.config.load import DEFAULT, Loaded
from halfseen.config.yaml_text import Settings, parse_value, scalar_text
from halfseen.data.diary import Diary
from halfseen.data.doctor import precheck
from halfseen.data.loader import Loader, evaluation_batches
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import Source, has_split, open_source
from halfseen.engine.checkpoint import latest_checkpoint, load_checkpoint
from halfseen.engine.config import default_device
from halfseen.engine.distributed import Distributed, processes, report_start, require_same
from halfseen.engine.folder import check_folder, hold_folder, open_folder, write_environment
from halfseen.engine.health import Health, RunShape
from halfseen.engine.journal import open_journal, require_tensorboard
from halfseen.engine.loop import FitResult, fit
from halfseen.engine.precision import open_device
from halfseen.engine.terminal import Terminal, open_terminal
from halfseen.evaluation.results import Result
from halfseen.methods.base import Method
from halfseen.methods.table import METHODS
from halfseen.ops.pixels import normalise
from halfseen.ops.precision import autocast
from halfseen.ops.randomness import numpy_generator
from halfseen.pretraining.build import identity_of, keep_guide, prepare_method
from halfseen.pretraining.config import RunConfig, load_run_config
from halfseen.pretraining.defaults import settings_for
from halfseen.pretraining.folder import read_config, write_config

logger = logging.getLogger(__name__)

PROBE_IMAGES = 128
PROBE_PATCHES = 4
"""Images whose features are looked at, and patch tokens of each."""


class RunResult(NamedTuple):
    """What a run has left.

    Attributes:
        run_dir: its folder.
        finished: False if a signal ended it early; resume it then.
        message: one sentence for the person at the terminal.
        encoder: the exported weights; None if the run isn't finished.
        evaluations: results, by protocol.
        report: the page; None if the run isn't finished.
    """

    run_dir: Path
    finished: bool
    message: str
    encoder: Path | None
    evaluations: tuple[Result, ...]
    report: Path | None


def pretrain(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> RunResult:
    """Pre-train an encoder; the same as `halfseen pretrain DATA --recipe NAME key=value ...`.

    Args:
        data: folder, manifest, `bundled:NAME` or `torchvision:NAME`; None takes the recipe's.
        recipe: a shipped recipe; None without `config` chooses settings that suit the images.
        config: a YAML file with any subset of the keys.
        overrides: `key.sub=value` texts, e.g. ["train.epochs=5"]; they win over recipe and file.
    Raises:
        HalfseenError: settings, data or weights that can't be used; the message says how to mend it.
    """
    words = list(overrides)
    if data is not None:
        words.insert(0, f"data.source={scalar_text(str(data))}")
    return run(resolve(recipe, None if config is None else Path(config), words))


def resolve(recipe: str | None, file: Path | None, overrides: Sequence[str]) -> Loaded[RunConfig]:
    """The settings of a run; without a recipe or file they are chosen to suit the images.

    Raises:
        ConfigError: all faults, one a line.
        DataError: images that must be looked at to choose, but can't.
    """
    if recipe is not None or file is not None:
        return load_run_config(recipe, file, overrides)
    method = _value_of("method.name", overrides) or "mae"
    if method not in METHODS:
        return load_run_config(None, None, overrides)  # Says that the name is unknown, with all other faults.
    base = f"{method}_small"
    plain = load_run_config(base, None, overrides).config
    if plain.data.source.startswith("bundled:") and _value_of("data.image_size", overrides) is None:
        return load_run_config(base, None, overrides)
    source = open_source(plain.data.source, "train", config=plain.data)
    return load_run_config(base, None, overrides, chosen_for(source, method, overrides))


def chosen_for(source: Source, method: str, overrides: Sequence[str]) -> Settings:
    """The settings of `defaults.settings_for` for this machine, or for the device that the overrides name."""
    device = _value_of("runtime.device", overrides) or default_device()
    return settings_for(source, method, accelerated=device != "cpu")


def run(loaded: Loaded[RunConfig], *, resume: bool = False, command: Sequence[str] | None = None) -> RunResult:
    """One run, from settings to report.

    Args:
        loaded: the settings and where they come from.
        resume: go on with the run in `run_dir` from its newest whole checkpoint.
        command: the command line, for the record; None takes this process's.
    Raises:
        HalfseenError: anything the user can mend; nothing that existed before is lost.
    """
    report_start()
    with processes(loaded.config.runtime.device) as world, contextlib.ExitStack() as held:
        config = loaded.config
        open_device(config.runtime.device, world.local_rank)  # A device that isn't there is said before all work.
        check_folder(config.run_dir, resume)
        if resume and world.is_main:
            held.enter_context(hold_folder(Path(str(config.run_dir))))
        if config.runtime.tensorboard:
            require_tensorboard()
        torch.set_num_threads(config.runtime.threads)
        terminal = open_terminal(world.is_main)
        source = open_source(config.data.source, "train", config=config.data)
        require_same(world, "data", source.fingerprint())
        start = _starting_point(Path(str(config.run_dir)), config) if resume else None
        method = prepare_method(config, weights=start is None)
        loader = open_loader(config, method, source, world)
        method.check_batch(loader.sampler.smallest_batch)
        bad = precheck(source, config.data) if world.is_main else []
        run_dir = Path(str(config.run_dir))
        if not resume:
            run_dir = Path(world.broadcast_object(str(_begin(config, held)) if world.is_main else ""))
        config = config.model_copy(update={"run_dir": str(run_dir)})
        diary = Diary(run_dir, source)
        if world.is_main:
            diary.read()
            diary.note(bad)
            if not resume:
                keep_guide(method, run_dir)
            if not resume or config != read_config(run_dir):
                write_config(run_dir, Loaded(config, loaded.provenance))
            write_environment(run_dir, command, loaded.provenance["runtime.threads"] == DEFAULT)
            diary.write()
        world.barrier()
        outcome = _train(config, method, loader, run_dir, start, world, terminal, diary)
        diary.note([each for found in world.gather(list(diary.skipped.values())) for each in found])
        if not world.is_main or not outcome.finished:
            return RunResult(run_dir, outcome.finished, outcome.message, None, (), None)
        diary.write()
        from halfseen.pretraining.finish import finish  # Pictures and pages load late: training starts sooner.

        harvest = finish(config, method, source, run_dir, outcome.step, terminal)
        return RunResult(run_dir, True, outcome.message, *harvest)


def _begin(config: RunConfig, held: contextlib.ExitStack) -> Path:
    """The folder of a new run, made and kept for this process."""
    folder = open_folder(config.run_dir, config.method.name, config.data.source)
    held.enter_context(hold_folder(folder))
    check_folder(config.run_dir, resume=False)  # Another process may have begun a run there since the first look.
    return folder


def _train(
    config: RunConfig,
    method: Method,
    loader: Loader,
    run_dir: Path,
    start: Path | None,
    world: Distributed,
    terminal: Terminal,
    diary: Diary,
) -> FitResult:
    """The loop, with its journal and its watcher."""
    step = 0 if start is None else int(start.name.removeprefix("step-"))
    shape = _shape(config, loader, method)
    journal = open_journal(run_dir, resume_step=step, writes=world.is_main, tensorboard=config.runtime.tensorboard)
    try:
        return fit(
            method,
            loader,
            config.train,
            config.runtime,
            seed=config.seed,
            run_dir=run_dir,
            identity=identity_of(config),
            journal=journal,
            terminal=terminal,
            health=Health(shape),
            distributed=world,
            resume_from=start,
            probe=_probe(config, method, diary.source) if world.is_main else None,
            measure=_measure(config, method, diary.source) if world.is_main else None,
            measure_every_steps=_measurement_steps(config, loader),
            on_batch=diary.note_batches,
            on_checkpoint=lambda path, step: diary.write(),
        )
    finally:
        journal.close()


def _starting_point(run_dir: Path, config: RunConfig) -> Path | None:
    """The checkpoint to go on from, looked at before any work is done; None where a run was ended before its first.

    Raises:
        CheckpointError: it belongs to other settings, or to another method.
    """
    newest = latest_checkpoint(run_dir)
    if newest is None:
        logger.warning("'%s' has no checkpoint yet: the run starts at its first step.", run_dir)
        return None
    load_checkpoint(newest, identity_of(config))
    return newest


def _shape(config: RunConfig, loader: Loader, method: Method) -> RunShape:
    encoder = method.encoders()["student"]
    steps_per_epoch = loader.steps_per_epoch
    standardised = getattr(config.method, "norm_pix_loss", False)
    return RunShape(
        steps_per_epoch=steps_per_epoch,
        last_step=config.train.last_step(steps_per_epoch),
        warmup_steps=config.train.lr.warmup_epochs * steps_per_epoch,
        grid=config.data.image_size // encoder.patch_size,
        mean_loss=1.0 if standardised else None,
        num_outputs=method.num_outputs,
        rows=loader.sampler.micro_batch_size,
        outputs_of=method.outputs_of,
    )


def _probe(config: RunConfig, method: Method, source: Source) -> Callable[[], Mapping[str, Tensor]]:
    """Features of fixed images under the current weights of the main encoder, for the effective rank.

    They are float32 [n, D] on the CPU: "" the mean patch token of each image, "_cls" its class token where there is
    one, "_patches" a few patch tokens of each image. The images are read when they are first looked at, not before the
    first step.
    """
    views: list[Tensor] = []

    def read() -> None:
        rows = numpy_generator(config.seed, "probe").permutation(len(source))[:PROBE_IMAGES]
        batches = evaluation_batches(
            source,
            rows,
            config.data.image_size,
            64,
            resize=config.evaluate.resize,
            crop_ratio=config.evaluate.crop_ratio,
        )
        views.extend(batch.images for batch in batches)

    def features() -> dict[str, Tensor]:
        if not views:
            read()
        encoder = method.encoders()[method.main_role]
        device = next(encoder.parameters()).device
        encoder.eval()  # The loop puts all modes back.
        found: dict[str, list[Tensor]] = {}
        with torch.inference_mode(), autocast(device, config.runtime.precision):
            for view in views:
                tokens = encoder.encode(normalise(view.to(device), config.data.mean, config.data.std))
                found.setdefault("", []).append(tokens.patches.float().mean(1))
                if encoder.num_prefix_tokens:
                    found.setdefault("_cls", []).append(tokens.prefix[:, 0].float())
                some = tokens.patches[:, :: max(1, tokens.patches.shape[1] // PROBE_PATCHES)]
                found.setdefault("_patches", []).append(some.float().flatten(0, 1))
        return {name: torch.cat(parts).cpu() for name, parts in found.items()}

    return features


def _measure(config: RunConfig, method: Method, source: Source) -> Callable[[], Mapping[str, float]] | None:
    """k-NN of all encoders during training, if it is asked for and the images have labels."""
    if config.evaluate.online_every_epochs is None:
        return None
    if len(source.class_names) < 2:
        logger.warning("evaluate.online_every_epochs: the images have no labels, so nothing is measured in training.")
        return None
    from halfseen.evaluation.online import OnlineSplits, online_knn

    test = (
        open_source(config.data.source, "test", config=config.data) if has_split(config.data.source, "test") else None
    )
    if test is not None and not (test.labels >= 0).any():
        test = None
    return online_knn(
        method.encoders(),
        OnlineSplits(source, test),
        config.evaluate,
        mean=config.data.mean,
        std=config.data.std,
        image_size=config.data.image_size,
        seed=config.seed,
        device=str(open_device(config.runtime.device)),
        precision=config.runtime.precision,
    )


def _measurement_steps(config: RunConfig, loader: Loader) -> int | None:
    """Updates between two measurements."""
    every = config.evaluate.online_every_epochs
    return None if every is None else max(1, round(every * loader.steps_per_epoch))


def open_loader(config: RunConfig, method: Method, source: Source, world: Distributed) -> Loader:
    """The run's batches on this process, cut as the method asks."""
    sampler = StepSampler(
        len(source),
        config.train.batch_size,
        config.seed,
        drop_last=config.train.drop_last,
        rank=world.rank,
        world_size=world.world_size,
        micro_batch_size=config.train.split(world.world_size).micro_batch_size,
    )
    return Loader(
        source,
        method.view_plan(),
        sampler,
        config.seed,
        workers=config.runtime.workers,
        pin_memory=config.runtime.device == "cuda",
    )


def _value_of(key: str, overrides: Sequence[str]) -> str | None:
    """The text that the last override gives a key, or None."""
    values = [word.partition("=")[2].strip() for word in overrides if word.partition("=")[0].strip() == key]
    return str(parse_value(values[-1])) if values else None

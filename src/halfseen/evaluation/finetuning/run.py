"""A fine-tuning run at work: what the network and its baseline share, trained, measured and kept on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import export_encoder
from halfseen.data.diary import Diary
from halfseen.data.loader import Loader
from halfseen.data.sampler import StepSampler
from halfseen.engine.checkpoint import Identity, latest_checkpoint, load_checkpoint
from halfseen.engine.config import science_settings
from halfseen.engine.distributed import Distributed
from halfseen.engine.journal import open_journal
from halfseen.engine.loop import FitResult, fit
from halfseen.engine.terminal import Terminal, open_terminal
from halfseen.errors import ConfigError, DataError
from halfseen.evaluation.finetuning.classifier import Classifier, classifier_from, load_classifier, write_classifier
from halfseen.evaluation.finetuning.config import FinetuneConfig
from halfseen.evaluation.finetuning.raw_pixels import pixel_scores
from halfseen.evaluation.finetuning.task import Task
from halfseen.evaluation.finetuning.training import FineTuning, Images, Scored, score, training_views
from halfseen.evaluation.statements import fingerprints_of
from halfseen.evaluation.subject import Subject
from halfseen.ops.randomness import stream_seed, torch_generator

START, RANDOM = "start", "random_init"

LAST, BEST = "classifier", "classifier_best"


class Run:
    """The parts that the network and its baseline share."""

    def __init__(
        self, config: FinetuneConfig, task: Task, subject: Subject, world: Distributed, terminal: Terminal
    ) -> None:
        self.config, self.task, self.subject, self.world = config, task, subject, world
        self.terminal = terminal
        self.curves: dict[str, list[float]] = {}

    def say(self, sentence: str) -> None:
        """To the person at the terminal."""
        self.terminal.say(sentence)

    def classifier(self, encoder: Encoder, anew: Encoder | None = None) -> Classifier:
        """The network with its first weights; its fresh blocks are those of `anew`, without which there are none."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "build"))
            return classifier_from(
                encoder,
                config.feature,
                len(self.task.class_names),
                torch_generator(config.seed, "head"),
                image_size=config.data.image_size,
                window_size=config.window_size,
                drop_path=config.drop_path,
                head_std=config.head_std,
                fresh_norm=config.fresh_norm,
                dropped_blocks=config.dropped_blocks,
                fresh_blocks=0 if anew is None else config.fresh_blocks,
                anew=anew,
            )

    def sampler(self) -> StepSampler:
        """The images of each step on this process.

        Raises:
            ConfigError: a batch that can't be shared, or in odd parts where pairs are blended.
            DataError: fewer images than one batch.
        """
        train, mix = self.config.train, self.config.mix
        micro = train.split(self.world.world_size).micro_batch_size
        if mix.is_on and mix.form == "timm" and micro % 2:
            raise ConfigError(
                f"train.batch_size: got {train.batch_size}, of which each forward pass gets {micro} images, but MixUp "
                "and CutMix blend pairs. Give a batch of even parts, or write mix.mixup=0 mix.cutmix=0."
            )
        return StepSampler(
            len(self.task.chosen),
            train.batch_size,
            self.config.seed,
            drop_last=train.drop_last,
            rank=self.world.rank,
            world_size=self.world.world_size,
            micro_batch_size=micro,
        )

    def identity(self) -> Identity:
        """What a checkpoint of the run must agree with; its test images too, by which its best epoch is chosen."""
        settings = science_settings(self.config.model_dump(mode="json"))
        del settings["baselines"]
        return Identity(self.config.protocol, settings | {"test images": self.task.test.source.fingerprint()})

    def look_at_checkpoint(self, folder: Path) -> None:
        """See that the run can go on, before any work is done."""
        newest = latest_checkpoint(folder)
        if newest is not None:
            load_checkpoint(newest, self.identity())

    def keep_start(self, folder: Path) -> None:
        """Copy the encoders into the run's folder, so that it can go on without them."""
        about = {"origin": self.subject.origin, "taught_on": list(self.subject.taught_on)}
        mean, std = self.config.data.mean, self.config.data.std
        export_encoder(self.subject.encoder, folder / START, mean=mean, std=std, role=self.subject.role, extra=about)
        needs_random = self.config.baselines or self.config.fresh_blocks > 0
        if needs_random and self.subject.random_encoder is not None:
            random = self.subject.random_encoder()
            export_encoder(random, folder / RANDOM / START, mean=mean, std=std, role="random")

    def train(self, name: str, network: Classifier, folder: Path, sampler: StepSampler, diary: Diary) -> FitResult:
        """To the end of the schedule, or as far as a signal lets it; `network` then has the last weights."""
        config, world = self.config, self.world
        method = FineTuning(network, config, len(self.task.class_names))
        start = latest_checkpoint(folder)
        step = 0 if start is None else int(start.name.removeprefix("step-"))
        journal = open_journal(folder, resume_step=step, writes=world.is_main, tensorboard=config.runtime.tensorboard)
        loader = Loader(
            self.task.chosen,
            training_views(config),
            sampler,
            config.seed,
            workers=config.runtime.workers,
            pin_memory=config.runtime.device == "cuda",
        )
        key = "test_top1" if self.task.held is None else "held_out_top1"
        best = max((float(line[key]) for line in journal.past() if key in line), default=-1.0)

        def measure() -> dict[str, float]:
            nonlocal best
            found = self.measure(method.measured)
            if found and found[key] > best:
                best = found[key]
                self.keep(method.measured, folder, BEST, found)
            return found

        try:
            ended = fit(
                method,
                loader,
                config.train,
                config.runtime,
                seed=config.seed,
                run_dir=folder,
                identity=self.identity(),
                journal=journal,
                terminal=open_terminal(world.is_main),
                distributed=world,
                resume_from=start,
                measure=measure,
                measure_every_steps=max(1, round(config.evaluate_every_epochs * loader.steps_per_epoch)),
                measure_together=True,
                go_on_by=f"halfseen finetune --resume {config.run_dir}",
                on_batch=diary.note_batches,
            )
        finally:
            journal.close()
        self.curves |= _curves([line for line in journal.past() if key in line], name)
        if method.average is not None:
            network.load_state_dict(method.average.state_dict())
        if world.is_main and ended.finished:
            self.keep(network, folder, LAST, {"step": ended.step})
        world.barrier()
        return ended

    def measure(self, network: Classifier) -> dict[str, float]:
        """Entries for the log; empty on processes other than 0."""
        found: dict[str, float] = {}
        for name, images in (("held_out", self.task.held), ("test", self.task.test)):
            scored = None if images is None else self.score(network, images)
            if scored is not None:
                found[f"{name}_top1"] = scored.top(1)
                found[f"{name}_loss"] = float(scored.loss.mean())
                if len(self.task.class_names) > 5:
                    found[f"{name}_top5"] = scored.top(5)
        return found

    def score(self, network: Classifier, images: Images) -> Scored | None:
        """All processes classify together."""
        scored = score(network, images, self.config, self.config.runtime, self.world)
        if scored is not None and not len(scored.rows):
            raise DataError(f"'{images.source.name}': none of the {len(images.rows)} images could be read.")
        return scored

    def keep(self, network: Classifier, folder: Path, stem: str, found: dict[str, float]) -> None:
        """Write the weights for timm, with what was measured of them."""
        write_classifier(
            network,
            folder,
            stem,
            mean=self.config.data.mean,
            std=self.config.data.std,
            class_names=self.task.class_names,
            extra={"protocol": self.config.protocol, "measured": dict(found)},
        )

    def final_scores(self, network: Classifier, random_network: Classifier | None, run_dir: Path) -> dict[str, Scored]:
        """Test images by the reported weights of all contestants; the encoder's are written out as well."""
        scores = {}
        networks = {"encoder": (network, run_dir)}
        if random_network is not None:
            networks["random_init"] = (random_network, run_dir / RANDOM)
        for name, (last, folder) in networks.items():
            device = next(last.parameters()).device
            chosen = last if self.config.choose == "last" else load_classifier(folder / BEST).to(device)
            scored = self.score(chosen, self.task.test)
            if scored is not None:
                scores[name] = scored
                if name == "encoder":
                    taught_on = sorted({*self.subject.taught_on, *fingerprints_of(self.task.train.source)})
                    about: dict[str, object] = {"protocol": self.config.protocol, "taught_on": taught_on}
                    export_encoder(
                        chosen.encoder,
                        run_dir,
                        mean=self.config.data.mean,
                        std=self.config.data.std,
                        role="fine-tuned",
                        extra=about,
                    )
        if self.world.is_main and self.config.baselines:
            self.say("Training a linear classifier on raw pixels.")
            scores["raw_pixels"] = pixel_scores(self.task, self.config)
        self.world.barrier()
        return scores


def _curves(lines: Sequence[Mapping[str, float]], name: str) -> dict[str, list[float]]:
    """What was measured after some epochs, from the run's own log."""
    curves = {f"epoch_{name}": [round(float(line["epoch"]), 4) for line in lines]}
    for key in ("test_top1", "test_loss", "held_out_top1"):
        if lines and key in lines[0]:
            curves[f"{key}_{name}"] = [round(float(line[key]), 4) for line in lines]
    return curves

"""The trainings of a study, each in its place in the folder: made where it is missing, read where it is finished."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from halfseen.backbones.base import Encoder
from halfseen.backbones.weights import load_encoder
from halfseen.config.load import Loaded
from halfseen.config.yaml_text import scalar_text
from halfseen.data.diary import read_drawn_from
from halfseen.data.sources import Source, has_split, open_source
from halfseen.errors import ConfigError, DataError
from halfseen.evaluation.intermediate.protocol import intermediate_stage
from halfseen.evaluation.intermediate.task import prepare_stage
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.protocol import segmentation_protocol
from halfseen.evaluation.segmentation.task import prepare_task
from halfseen.evaluation.statements import Split, fingerprints_of
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.randomness import numpy_generator
from halfseen.pretraining.build import prepare_method
from halfseen.pretraining.config import RunConfig, load_run_config
from halfseen.pretraining.run import run
from halfseen.pretraining.study_config import Cell, Condition, Intermediate, StudyConfig
from halfseen.reports.runfiles import pretraining_fingerprint

STUDY = "study.json"

GRID = frozenset({"pretrain_sizes", "intermediates", "finetune_sizes", "seeds"})

Watching = Callable[[], AbstractContextManager[OnProgress | None]]
"""Opens a place for the progress of one part."""


class Parts:
    """The parts of a study in its folder; what several cells share is opened once.

    Attributes:
        settings: of pre-training, whose device and image size hold for all parts.
        images: fingerprints of all data of the study so far, by name and split.
    """

    def __init__(self, config: StudyConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.settings = self.run_settings(max(config.pretrain_sizes), config.seeds[0]).config
        self._kept: tuple[Condition, int, Subject] | None = None
        self._sources: dict[tuple[str, str], Source] = {}
        self.images: dict[str, str] = {}

    def run_settings(self, size: int, seed: int) -> Loaded[RunConfig]:
        """The settings of a pre-training run."""
        own = [
            f"data.source={scalar_text(self.config.data)}",
            f"seed={seed if self.config.pretrain_each_seed else self.config.seeds[0]}",
            f"run_dir={scalar_text(str(self.run_dir(size, seed)))}",
        ]
        if size:
            own.append(f"data.subset_size={size}")
        return load_run_config(self.config.recipe, None, [*self.config.pretrain, *own])

    def run_dir(self, size: int, seed: int) -> Path:
        ending = f"-seed{seed}" if self.config.pretrain_each_seed else ""
        return self.out / "pretrain" / f"{size}{ending}"

    def stage_dir(self, condition: Condition, seed: int) -> Path:
        return self.out / "intermediate" / f"{condition.name}-seed{seed}"

    def stage_file(self, condition: Condition, seed: int) -> Path:
        """The result of a stage, which is there once it is finished."""
        return self.stage_dir(condition, seed) / f"{self.config.stage(condition.intermediate).protocol}.json"

    def cell_dir(self, cell: Cell) -> Path:
        return self.out / "segmentation" / cell.name

    def finished(self, cell: Cell) -> Path | None:
        """The result of a cell, if it is there."""
        path = self.cell_dir(cell) / f"{self.config.segmentation.protocol}.json"
        return path if path.is_file() else None

    def check(self) -> None:
        """See before the first training that the last one will work.

        Raises:
            ConfigError, DataError, ShapeError: what doesn't.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out: '{self.out}' is a file. Give a folder for the study.")
        self._check_same()
        config = self.config
        largest = len(self._source(config.data, "train"))
        if max(config.pretrain_sizes) > largest:
            raise DataError(
                f"pretrain_sizes: got {max(config.pretrain_sizes)}, but '{config.data}' has {largest} images. Write "
                "smaller numbers."
            )
        subject = self._untrained(config.seeds[0])
        learned: dict[Intermediate, set[str]] = {}
        for stage in {condition.intermediate for condition in config.conditions} - {"none"}:
            splits = self._splits(config.data_of(stage))
            task = prepare_stage(subject, *splits, config.stage(stage), config.seeds[0])
            learned[stage] = fingerprints_of(task.train.source)
        for size in config.finetune_sizes:
            train, test = self._segmentation_splits(size)
            tested = prepare_task(train, test, self._segmentation(size), config.seeds[0]).test
            self._check_unseen(tested, learned)
        self._check_same_images()

    def _check_unseen(self, tested: Split, learned: Mapping[Intermediate, set[str]]) -> None:
        """See that no stage learns labels or masks of a set from which test images are drawn.

        Raises:
            ConfigError: one does.
        """
        for stage, sets in learned.items():
            if fingerprints_of(tested.source) & sets:
                apart = "" if self.config.own_splits else "own_splits=true, or "
                raise ConfigError(
                    f"{stage}_data: the stage would learn from '{self.config.data_of(stage)}', and the test images of "
                    f"the segmentation are drawn from the same set, so that some would be known to the encoder. Write "
                    f"{apart}{stage}_data=OTHER_IMAGES."
                )

    def _check_same_images(self) -> None:
        """See that the data are those with which the study in the folder was begun.

        Raises:
            DataError: they were changed since.
        """
        before: dict[str, str] = {}
        if (self.out / STUDY).is_file():
            before = json.loads((self.out / STUDY).read_text(encoding="utf-8")).get("images", {})
        now = {f"{name} ({split})": source.fingerprint() for (name, split), source in self._sources.items()}
        for words, fingerprint in now.items():
            if before.get(words, fingerprint) != fingerprint:
                raise DataError(
                    f"'{words}' holds other images, labels or masks than when the study in '{self.out}' was begun. "
                    "Put the former ones back to go on, or give another --out."
                )
        self.images = before | now

    def _check_same(self) -> None:
        """See that what the folder holds was made with these settings; the grid itself may grow or shrink.

        Raises:
            ConfigError: it wasn't.
        """
        path = self.out / STUDY
        if not path.is_file():
            return
        before = _lasting(json.loads(path.read_text(encoding="utf-8"))["settings"])
        now = _lasting(self.config.model_dump(mode="json"))
        for key in [key for key in now if now[key] != before.get(key)]:
            raise ConfigError(
                f"{key}: got {now[key]}, but the study in '{self.out}' was begun with {before.get(key)}. Give that "
                "again to go on, or another --out."
            )

    def segment(self, cell: Cell, watching: Watching) -> None:
        """Train and measure one cell, and what it builds on where that isn't there yet."""
        subject = self._subject(cell.condition, cell.seed, watching)
        train, test = self._segmentation_splits(cell.finetune)
        with watching() as on_progress:
            segmentation_protocol(
                subject,
                train,
                test,
                self._segmentation(cell.finetune),
                seed=cell.seed,
                run_dir=self.cell_dir(cell),
                resume=True,
                on_progress=_named(on_progress, cell.name),
            )

    def _subject(self, condition: Condition, seed: int, watching: Watching) -> Subject:
        """The encoder of a condition, trained if it isn't there yet; the last one is kept."""
        if self._kept is None or self._kept[:2] != (condition, seed):
            self._kept = condition, seed, self._make_subject(condition, seed, watching)
        return self._kept[2]

    def _make_subject(self, condition: Condition, seed: int, watching: Watching) -> Subject:
        if condition.pretrain == 0:
            return self._untrained(seed)
        subject = self._pretrained(condition.pretrain, seed)
        if condition.intermediate == "none":
            return subject
        config = self.config.stage(condition.intermediate)
        train, test = self._splits(self.config.data_of(condition.intermediate))
        folder = self.stage_dir(condition, seed)
        with watching() as on_progress:
            done = intermediate_stage(
                subject,
                train,
                test,
                config,
                out=folder,
                seed=seed,
                resume=True,
                on_progress=_named(on_progress, folder.name),
            )
        loaded = load_encoder(folder)
        return replace(
            subject,
            encoder=done.encoder,
            origin=loaded.origin,
            mean=loaded.mean,
            std=loaded.std,
            taught_on=loaded.taught_on,
        )

    def _pretrained(self, size: int, seed: int) -> Subject:
        """The encoder of a pre-training run, which is trained, or goes on, where it isn't finished.

        Raises:
            KeyboardInterrupt: a signal ended it; a checkpoint was written first.
        """
        folder = self.run_dir(size, seed)
        if not (folder / "encoder.json").is_file():
            ended = run(self.run_settings(size, seed), resume=(folder / "config.yaml").is_file())
            if not ended.finished:
                raise KeyboardInterrupt
        loaded = load_encoder(folder)
        subject = self._subject_of(loaded.encoder, loaded.origin, loaded.mean, loaded.std)
        return replace(
            subject,
            taught_on=loaded.taught_on,
            pretrained_on=pretraining_fingerprint(folder),
            pretrained_from=read_drawn_from(folder),
        )

    def _untrained(self, seed: int) -> Subject:
        config = self.settings.model_copy(update={"seed": seed})
        encoder = prepare_method(config).encoders()["student"]
        return self._subject_of(encoder, "random weights", config.data.mean, config.data.std)

    def _subject_of(
        self,
        encoder: Encoder,
        origin: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> Subject:
        """Without the baseline of random weights, which is a condition of its own here."""
        runtime = self.settings.runtime
        return Subject(
            encoder,
            None,
            mean,
            std,
            origin,
            device=runtime.device,
            precision=runtime.precision,
            workers=runtime.workers,
        )

    def _source(self, name: str, split: str) -> Source:
        """A split of some data, whole: the subset of pre-training doesn't concern the other parts."""
        if (name, split) not in self._sources:
            whole = self.settings.data.model_copy(update={"source": name, "subset_size": None})
            self._sources[name, split] = open_source(name, "test" if split == "test" else "train", config=whole)
        return self._sources[name, split]

    def _splits(self, name: str) -> tuple[Split, Split | None]:
        test = Split(self._source(name, "test"), "test") if has_split(name, "test") else None
        return Split(self._source(name, "train"), "train"), test

    def _segmentation_splits(self, size: int) -> tuple[Split, Split | None]:
        """The images of a segmentation: nested choices of the training split, and the same test images for all."""
        name, config = self.config.data_of("segmentation"), self.config
        train, test = self._splits(name)
        if not config.own_splits:
            return train, test
        if test is None:
            raise DataError(
                f"own_splits: got true, but '{name}' has no test split. Write own_splits=false to draw both from all "
                "of its images."
            )
        chosen = _draw(train.source, size, "finetune_sizes", config.split_seed, "fine-tuning")
        tested = _draw(test.source, config.test_size, "test_size", config.split_seed, "testing")
        return Split(chosen, "train"), Split(tested, "test")

    def _segmentation(self, size: int) -> SegmentationConfig:
        settings = self.config.segmentation
        if self.config.own_splits:
            return settings
        sizes = {"train_size": size, "test_size": self.config.test_size, "split_seed": self.config.split_seed}
        return SegmentationConfig.model_validate(settings.model_dump() | sizes)


def _draw(source: Source, size: int | None, key: str, seed: int, words: str) -> Source:
    """The first `size` images of a permutation, so that a smaller choice is part of a larger one."""
    if size is None:
        return source
    if size > len(source):
        raise DataError(f"{key}: got {size}, but '{source.name}' has {len(source)} images for {words}. Write less.")
    return source.subset(np.sort(numpy_generator(seed, "study", words).permutation(len(source))[:size]))


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a study's settings those that may not change while it goes on, by dotted key."""
    lasting: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            lasting |= {f"{key}.{inner}": each for inner, each in value.items()}
        elif key == "pretrain":
            lasting[key] = [word for word in value if not word.startswith("runtime.")]
        elif key == "seeds":
            # One encoder for all seeds is pre-trained with the first one.
            lasting |= {} if settings["pretrain_each_seed"] else {"the first of seeds": value[0]}
        elif key not in GRID:
            lasting[key] = value
    return lasting


def _named(on_progress: OnProgress | None, name: str) -> OnProgress | None:
    """The same progress, which says of which part it is."""
    if on_progress is None:
        return None
    return lambda words, done, of: on_progress(f"{name}, {words}", done, of)

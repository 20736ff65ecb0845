"""A small method and loader of the engine tests' own: real modules, real steps, no images."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from halfseen.engine.checkpoint import Identity
from halfseen.engine.config import LearningRateConfig, OptimizerConfig, RuntimeConfig, TrainConfig
from halfseen.engine.distributed import Distributed
from halfseen.engine.journal import open_journal
from halfseen.engine.loop import FitResult, fit
from halfseen.engine.terminal import SilentTerminal
from halfseen.ops.randomness import numpy_generator, torch_generator
from halfseen.types import Batch, GroupKey, Progress, StepOutput

SIZE = 4


class TinyMethod(nn.Module):
    """Predicts the hidden half of a picture from the other half, with dropout, a frozen and an unused parameter.

    `poison` is a step at which the loss becomes NaN; `seen` collects the images' positions.
    """

    def __init__(self, poison: int | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.schedule_horizon = 1.0
        self.whole_batch_only = False
        self.hidden = nn.Linear(3 * SIZE * SIZE, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 3 * SIZE * SIZE)
        self.token = nn.Parameter(torch.ones(1, 1, 16))  # Never used: has no gradient, must not move.
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.average = nn.Buffer(torch.zeros(16))
        with torch.no_grad():
            for parameter in (*self.hidden.parameters(), *self.out.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        self.poison = poison
        self.seen: list[list[int]] = []
        self.after: list[int] = []

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        self.seen.append(batch.index.tolist())
        pixels = batch.views[0].flatten(1).float() / 255
        noise = torch.rand(
            progress.global_batch_size, pixels.shape[1], generator=torch_generator(progress.seed, progress.step, "mask")
        )
        mask = noise[progress.row_start : progress.row_start + len(pixels)] < 0.5
        tokens = self.norm(self.hidden(pixels * ~mask))
        prediction = self.out(self.dropout(torch.nn.functional.gelu(tokens)))
        loss = ((prediction.float() - pixels).square() * mask).sum(1).div(mask.sum(1).clamp(min=1)).mean()
        if progress.step == self.poison:
            loss = loss * torch.log(torch.tensor(-1.0))
        return StepOutput(loss, {"hidden_share": mask.float().mean()})

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        return GroupKey(decay=parameter.ndim > 1)

    def before_update(self, progress: Progress) -> None:
        """Nothing to do."""

    def after_step(self, progress: Progress) -> None:
        self.after.append(progress.step)
        with torch.no_grad():
            self.average.lerp_(self.norm.weight, 0.1)


class TinySampler:
    """Rows in the manner of the library's own sampler."""

    def __init__(self, num_images: int, batch_size: int, micro: int, rank: int, world_size: int, seed: int) -> None:
        self.num_images, self.batch_size, self.micro = num_images, batch_size, micro
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.steps_per_epoch = -(-num_images // batch_size)

    def rows(self, step: int) -> tuple[int, int]:
        size = min(self.batch_size, self.num_images - step % self.steps_per_epoch * self.batch_size)
        return size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size

    def indices(self, step: int) -> Tensor:
        epoch, at = divmod(step, self.steps_per_epoch)
        order = numpy_generator(self.seed, "order", epoch).permutation(self.num_images)
        first, end = self.rows(step)
        return torch.from_numpy(order[at * self.batch_size + first : at * self.batch_size + end])


class TinyLoader:
    """Pictures that are a function of their position."""

    def __init__(self, sampler: TinySampler) -> None:
        self.sampler = sampler
        self.steps_per_epoch = sampler.steps_per_epoch
        self.wait_seconds = 0.0
        self.closed = False

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        try:
            for step in range(start_step, stop_step):
                yield [self._batch(part) for part in self.sampler.indices(step).split(self.sampler.micro)]
        finally:
            self.closed = True

    def _batch(self, index: Tensor) -> Batch:
        pictures = [
            torch.randint(
                0, 256, (3, SIZE, SIZE), generator=torch_generator("picture", int(position)), dtype=torch.uint8
            )
            // (1 + int(position) % 3)
            for position in index
        ]
        return Batch((torch.stack(pictures),), index, torch.zeros_like(index))


def settings(**changes: object) -> TrainConfig:
    """Six epochs of four steps of eight images, unless changed; a dotted name reaches into `lr` and `optimizer`."""
    values: dict = {
        "epochs": 6,
        "batch_size": 8,
        "checkpoint_every_minutes": None,
        "log_every_steps": 1,
        "lr": {"base": 1e-2, "reference_batch": None, "schedule": "mae_cosine", "warmup_epochs": 1.0},
        "optimizer": {"weight_decay": 0.1},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (values[section] if section else values)[key] = value
    values["lr"] = LearningRateConfig(**values["lr"])
    values["optimizer"] = OptimizerConfig(**values["optimizer"])
    return TrainConfig(**values)


def runtime(precision: str = "fp32", checkpoints: bool = False) -> RuntimeConfig:
    """One thread on the CPU."""
    return RuntimeConfig(device="cpu", precision=precision, threads=1, workers=0, activation_checkpointing=checkpoints)


def loader_for(train: TrainConfig, num_images: int = 32, distributed: Distributed | None = None) -> TinyLoader:
    """The loader that goes with some settings."""
    here = distributed or Distributed()
    micro = train.split(here.world_size).micro_batch_size
    return TinyLoader(TinySampler(num_images, train.batch_size, micro, here.rank, here.world_size, seed=3))


IDENTITY = Identity("tiny", {"train.batch_size": 8, "method.ratio": [0.5, 1]})


def run(
    folder: Path,
    train: TrainConfig | None = None,
    *,
    method: TinyMethod | None = None,
    num_images: int = 32,
    precision: str = "fp32",
    checkpoints: bool = False,
    distributed: Distributed | None = None,
    resume_step: int = 0,
    loader: TinyLoader | None = None,
    **options: object,
) -> tuple[TinyMethod, FitResult]:
    """`fit` on the tiny parts."""
    train = train or settings()
    method = method or TinyMethod()
    here = distributed or Distributed()
    journal = open_journal(folder, resume_step=resume_step, writes=here.is_main)
    try:
        result = fit(
            method,
            loader or loader_for(train, num_images, distributed),
            train,
            runtime(precision, checkpoints),
            seed=5,
            run_dir=folder,
            identity=IDENTITY,
            journal=journal,
            terminal=SilentTerminal(),
            distributed=distributed,
            **options,
        )
    finally:
        journal.close()
    return method, result

"""Freezing in the loop, on small methods of all kinds: what rests keeps its bits and costs no backward pass."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.tiny import TinySampler, run, settings
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.engine.checkpoint import checkpoint_path, load_checkpoint
from halfseen.engine.config import FreezeConfig
from halfseen.engine.distributed import Distributed
from halfseen.engine.freezing import Freezer, saved_share, saved_words
from halfseen.engine.loop import Trainer
from halfseen.engine.optim import LearningRate
from halfseen.engine.state import TrainState
from halfseen.errors import ConfigError
from halfseen.methods.base import Method
from halfseen.methods.mae import MAE
from halfseen.methods.table import METHODS, build_method
from halfseen.ops.randomness import torch_generator
from halfseen.types import Batch, Progress

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = {"name": "vit_tiny", "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "drop_path": 0.3}
SWIN = {
    "name": "swin_tiny", "patch_size": 2, "embed_dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 2), "window_size": 4,
    "drop_path": 0.3,
}  # fmt: skip
HEADS = {"out_dim": 16, "head_hidden_dim": 16, "head_bottleneck_dim": 8}
CASES: dict[str, tuple[dict, dict]] = {
    "simmim": (VIT, {"mask_cell_size": 8}),
    "simmim swin": (SWIN, {"mask_cell_size": 8}),
    "kamim": (VIT, {"mask_cell_size": 8, "weight_patch_size": 8}),
    "mae": (VIT, {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}),
    "localmim": (
        VIT, {"taps": (1, 2, 4), "scales": (2, 1, 0.5), "decoder_embed_dim": 16, "decoder_num_heads": 2},
    ),
    "localmim swin": (
        {**SWIN, "norm_eps": 1e-6}, {"decoder_embed_dim": 16, "decoder_num_heads": 2, "coords": "fixed"},
    ),
    "ibot": (
        {**VIT, "position_rule": "scale_offset"},
        {**HEADS, "global_crops_scale": (0.4, 1.0), "local_crops_number": 1, "local_crop_size": 16,
         "local_crops_scale": (0.1, 0.4), "warmup_teacher_temp_epochs": 0, "mask": {"kind": "random"}},
    ),
    "msn": (
        {**VIT, "position_rule": "scale"},
        {"num_prototypes": 8, "hidden_dim": 16, "output_dim": 8, "rand_views": 1, "focal_views": 1, "focal_size": 16},
    ),
}  # fmt: skip


def build(case: str, **changes: object) -> Method:
    model, config = CASES[case]
    name = case.split()[0]
    encoder = build_encoder(ModelConfig(**{**model, **changes}), 32)
    return build_method(METHODS[name].config_class(**config), encoder, 32, MEAN, STD, 0)


class Pictures:
    """Batches of random pictures in the shape of a method's views."""

    def __init__(self, method: Method, steps_per_epoch: int = 4, accumulation: int = 1) -> None:
        self.plan = method.view_plan()
        self.steps_per_epoch, self.wait_seconds, self.accumulation = steps_per_epoch, 0.0, accumulation
        self.sampler = TinySampler(8 * steps_per_epoch, 8, 8 // accumulation, 0, 1, seed=3)

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step in range(start, stop):
            yield [self.batch(step, number) for number in range(self.accumulation)]

    def batch(self, step: int, number: int) -> Batch:
        size = 8 // self.accumulation
        random = torch_generator("pictures", step, number)
        views = [
            torch.randint(0, 256, (size, 3, spec.size, spec.size), generator=random, dtype=torch.uint8)
            for spec in self.plan.views
            for _ in range(spec.count)
        ]
        extras: dict[str, Tensor] = {}
        if self.plan.extras is not None:
            import numpy as np

            found = [
                self.plan.extras(
                    tuple(view[row].permute(1, 2, 0).numpy() for view in views), np.random.default_rng([step, row])
                )
                for row in range(size)
            ]
            extras = {name: torch.stack([torch.from_numpy(each[name]) for each in found]) for name in found[0]}
        return Batch(tuple(views), torch.arange(size), torch.full((size,), -1), extras)


def trainer_of(
    method: Method, tmp_path: Path, freeze: dict | None, accumulation: int = 1, **changes: object
) -> Trainer:
    train = settings(
        epochs=8,
        micro_batch_size=8 // accumulation,
        freeze=None if freeze is None else FreezeConfig(**freeze),
        **changes,
    )
    from engine.tiny import IDENTITY, runtime

    loader = Pictures(method, accumulation=accumulation)
    return Trainer(method, loader, train, runtime(), 5, tmp_path, IDENTITY, Distributed())


def learners(trainer: Trainer) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in trainer.bare.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("case", CASES)
def test_what_rests_keeps_its_bits_and_leaves_the_optimiser(case: str, tmp_path: Path) -> None:
    method = build(case)
    trainer = trainer_of(method, tmp_path, {"t0": 0.3, "scale": "linear"}, optimizer__weight_decay=0.5)
    freezer = trainer.freezer
    last = freezer.schedule.last_unit
    assert last == method.encoders()["student"].num_layers
    bits: dict[str, Tensor] = {}
    counts = []
    with trainer.batches() as steps:
        for micro_batches in steps:
            trainer.train_step(micro_batches)
            counts.append(freezer.frozen)
            for name, parameter in trainer.bare.named_parameters():
                index = freezer.indices.get(name)
                if index is None or index >= freezer.frozen:
                    continue
                assert not parameter.requires_grad and parameter.grad is None
                assert parameter not in trainer.optimizer.state
                assert torch.equal(bits.setdefault(name, parameter.detach().clone()), parameter), name
            in_optimiser = {name for group in trainer.optimizer.param_groups for name in group["names"]}
            assert in_optimiser == set(learners(trainer))
    assert sorted(set(counts)) == list(range(last + 1)) and counts == sorted(counts)
    alive = learners(trainer)
    assert alive and all(method.freezing_unit(name) == last for name in alive)
    assert not any(module.training for block in method.encoders()["student"].blocks[:-1] for module in block.modules())
    assert method.encoders()["student"].blocks[-1].training
    trainer.bare.train()
    assert not method.encoders()["student"].blocks[0].training


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_prefix_runs_without_autograd_and_nothing_else_changes(case: str, tmp_path: Path) -> None:
    """Gradients of what lives are those of a pass through all; the frozen units keep no activation."""
    method = build(case, drop_path=0.0)
    trainer = trainer_of(method, tmp_path, {"t0": 0.3, "scale": "linear"})
    step = next(step for step in range(32) if trainer.freezer.schedule.frozen(step) == 2)
    batch = trainer.loader.batch(0, 0)

    def kept_and_gradients() -> tuple[int, dict[str, Tensor]]:
        kept: dict[int, int] = {}

        def remember(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        method.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = method(batch, Progress(0, 32, 4, 5, 0, 8)).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        return sum(kept.values()), grads

    whole, before = kept_and_gradients()
    assert trainer.freezer.advance(step, trainer.optimizer)
    cut, after = kept_and_gradients()
    assert cut < whole
    resting = {name for name, index in trainer.freezer.indices.items() if index is not None and index < 2}
    assert set(after) == set(before) - resting
    for name, gradient in after.items():
        torch.testing.assert_close(gradient, before[name], rtol=1e-4, atol=1e-6)


def test_a_table_that_blocks_share_learns_from_the_frozen_ones_too(tmp_path: Path) -> None:
    encoder = build_encoder(ModelConfig(**{**VIT, "name": "simmim_vit_tiny", "drop_path": 0.0}), 32)
    method = build_method(METHODS["simmim"].config_class(mask_cell_size=8), encoder, 32, MEAN, STD, 0)
    trainer = trainer_of(method, tmp_path, {"t0": 0.3, "scale": "linear"})
    table = "encoder.trunk.rel_pos_bias.relative_position_bias_table"
    assert trainer.freezer.indices[table] == 4
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def gradient() -> Tensor:
        method.zero_grad(set_to_none=True)
        method(trainer.loader.batch(0, 0), Progress(0, 32, 4, 5, 0, 8)).loss.backward()
        return dict(method.named_parameters())[table].grad.clone()

    before = gradient()
    step = next(step for step in range(32) if trainer.freezer.schedule.frozen(step) == 3)
    assert trainer.freezer.advance(step, trainer.optimizer)
    torch.testing.assert_close(gradient(), before, rtol=1e-4, atol=1e-7)
    assert method.encoder.trunk.blocks[0].attn.qkv.weight.grad is None


def test_living_tokens_send_the_backward_pass_through_frozen_blocks(tmp_path: Path) -> None:
    method = build("mae")
    trainer = trainer_of(method, tmp_path, {"t0": 0.3, "scale": "linear", "freeze_tokens": False})
    with trainer.batches() as steps:
        for micro_batches in steps:
            trainer.train_step(micro_batches)
    token = method.encoder.trunk.cls_token
    assert token.requires_grad
    method(trainer.loader.batch(0, 0), Progress(0, 32, 4, 5, 0, 8)).loss.backward()
    assert float(token.grad.abs().sum()) > 0
    assert method.encoder.trunk.blocks[0].attn.qkv.weight.grad is None


def test_a_patch_embedding_that_goes_on_learning_moves_all_units_down(tmp_path: Path) -> None:
    method = build("mae")
    trainer = trainer_of(method, tmp_path, {"t0": 0.3, "scale": "linear", "freeze_patch_embed": False})
    assert trainer.freezer.schedule.last_unit == 3
    assert trainer.freezer.indices["encoder.trunk.blocks.0.attn.qkv.weight"] == 0
    with trainer.batches() as steps:
        for micro_batches in steps:
            trainer.train_step(micro_batches)
    assert method.encoder.trunk.patch_embed.proj.weight.requires_grad
    assert method.encoder.trunk.patch_embed.training
    assert [block.training for block in method.encoder.trunk.blocks] == [False, False, False, True]


def test_each_group_learns_at_the_rate_of_its_unit(tmp_path: Path) -> None:
    method = build("mae")
    trainer = trainer_of(method, tmp_path, {"t0": 0.5, "scale": "cubic"}, accumulation=2)
    schedule = trainer.freezer.schedule
    assert (schedule.accumulation, schedule.micro_batches_per_epoch) == (2, 8)
    with trainer.batches() as steps:
        for step, micro_batches in enumerate(steps):
            trainer.train_step(micro_batches)
            for group in trainer.optimizer.param_groups:
                moment = 2 * step
                if moment < schedule.warmup:
                    assert group["lr"] == trainer.learning_rate(step)
                else:
                    assert group["lr"] == schedule.rate(int(group["unit"]), moment, 1e-2)


def test_the_warm_up_may_lead_to_the_scaled_rates(tmp_path: Path) -> None:
    trainer = trainer_of(build("mae"), tmp_path, {"t0": 0.5, "warmup_to_scaled": True})
    rates = {}
    for step in range(6):
        for group in trainer.optimizer.param_groups:
            rates.setdefault(group["unit"], {})[step] = trainer.freezer.rate(step, group)
    for unit, values in rates.items():
        share = trainer.freezer.schedule.shares[int(unit)]
        assert [values[step] for step in range(4)] == pytest.approx([step / 4 * 1e-2 / share for step in range(4)])
        assert values[4] == pytest.approx(1e-2 / share)


@pytest.mark.parametrize("case", ["simmim", "localmim", "ibot", "msn"])
def test_resuming_at_any_step_gives_the_same_bits(case: str, tmp_path: Path) -> None:
    def train(folder: Path, start: Path | None, stop: int | None) -> dict[str, Tensor]:
        method = build(case)
        trainer = trainer_of(
            method, folder, {"t0": 0.3, "scale": "linear"}, checkpoint_every_steps=1, keep_checkpoints=100
        )
        if start is not None:
            trainer.resume(start)
        with trainer.batches() as steps:
            for micro_batches in steps:
                trainer.train_step(micro_batches)
                if stop is None:
                    trainer.save()
        found = {name: tensor.clone() for name, tensor in trainer.bare.state_dict().items()}
        found |= {str(number): group["params"][0] for number, group in enumerate(trainer.optimizer.param_groups)}
        return found

    whole = train(tmp_path, None, None)
    freezer = trainer_of(build(case), tmp_path, {"t0": 0.3, "scale": "linear"}).freezer
    events = [moment for moment in freezer.schedule.freezing_micro_batches if moment is not None]
    assert len(events) == 4
    for step in sorted({event + shift for event in events for shift in (0, 1, 2)}):
        if step < 32:
            again = train(tmp_path, checkpoint_path(tmp_path, step), 32)
            assert again.keys() == whole.keys()
            assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items()), step


def test_frozen_parameters_have_no_moments_in_the_checkpoint(tmp_path: Path) -> None:
    from engine.tiny import IDENTITY

    trainer = trainer_of(build("mae"), tmp_path, {"t0": 0.3, "scale": "linear"})
    with trainer.batches() as steps:
        for micro_batches in steps:
            trainer.train_step(micro_batches)
    trainer.save()
    moments = load_checkpoint(checkpoint_path(tmp_path, 32), IDENTITY).optimizer
    assert moments
    assert not any("trunk.blocks.0." in name or "patch_embed" in name for name in moments)


@pytest.mark.parametrize("decay_epochs", [4, 8, 12])
def test_freezing_follows_the_run_whatever_the_length_of_the_decay(decay_epochs: int, tmp_path: Path) -> None:
    trainer = trainer_of(build("mae"), tmp_path, {"t0": 0.3, "scale": "linear"}, lr__epochs=decay_epochs)
    with trainer.batches() as steps:
        for micro_batches in steps:
            trainer.train_step(micro_batches)
    assert trainer.freezer.frozen == 4
    assert trainer.logged_rate(31) == next(
        group["lr"] for group in trainer.optimizer.param_groups if group["unit"] == "4"
    )


def test_the_saving_is_measured_against_the_steps_before_the_first_freeze() -> None:
    state = TrainState()
    assert saved_share(state) is None and saved_words(state) == ""
    for frozen, seconds in ((0, 1.0), (0, 3.0), (1, 1.0), (3, 0.5)):
        state.add_time(frozen, seconds)
    assert saved_share(state) == pytest.approx(1 - 5.5 / (4 * 2.0))
    assert "saved 31.2 % " in saved_words(state)
    assert "2000 ms before the first freeze and 500 ms with 3 units" in saved_words(state)
    again = TrainState.from_json(state.to_json())
    assert saved_share(again) == saved_share(state)


def test_looks_and_waiting_are_left_out_of_a_steps_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(build("mae"), tmp_path, {"t0": 0.3})
    clock = iter([10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr("halfseen.engine.loop.time.monotonic", lambda: next(clock))
    trainer.time_step()  # The first one only starts the clock.
    trainer.time_step()
    trainer.leave_out_time()
    trainer.loader.wait_seconds += 2.0
    trainer.time_step()
    assert trainer.state.frozen_steps == {"0": 2}
    assert trainer.state.frozen_seconds == {"0": pytest.approx(2.0 + 3.0)}


def test_a_method_without_units_says_so(tmp_path: Path) -> None:
    class Flat(MAE):
        def freezing_unit(self, name: str) -> int:
            return 0

    method = build("mae")
    method.__class__ = Flat
    train = settings(freeze=FreezeConfig())
    rate = LearningRate.of_run(train, train.split(1), 4, 32)
    with pytest.raises(ConfigError, match="no two units"):
        Freezer(train.freeze, method, train, rate, 4)


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [
        ({"t0": 0.0}, "greater than 0"),
        ({"t0": 1.2}, "less than or equal to 1"),
        ({"scale": "quartic"}, "'linear', 'squared' or 'cubic'"),
        ({"layerwise_lr": False, "scale_lr": False}, "has no effect"),
        ({"scale_lr": False, "warmup_to_scaled": True}, "has no effect"),
        ({"freeze_patch_embed": False, "freeze_tokens": False}, "has no effect"),
    ],
)
def test_settings_that_cannot_be(freeze: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FreezeConfig(**freeze)


def test_a_schedule_that_would_have_no_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine of its own"):
        settings(lr__schedule="constant", freeze=FreezeConfig())
    settings(lr__schedule="constant", freeze=FreezeConfig(layerwise_lr=False))
    with pytest.raises(ValueError, match="without warm-up"):
        settings(lr__warmup_epochs=0.0, freeze=FreezeConfig(warmup_to_scaled=True))


def test_tokens_that_are_not_there_cannot_go_on_learning(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trains no token"):
        trainer_of(build("localmim swin"), tmp_path, {"freeze_tokens": False})


def test_a_warm_up_as_long_as_the_run_leaves_no_time_to_freeze() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        settings(epochs=1, freeze=FreezeConfig())


def test_the_loop_logs_how_many_units_rest(tmp_path: Path) -> None:
    import json

    method = build("mae")
    run(
        tmp_path,
        settings(epochs=8, freeze=FreezeConfig(t0=0.3, scale="linear")),
        method=method,
        loader=Pictures(method),
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["frozen_units"] for line in lines] == sorted(line["frozen_units"] for line in lines)
    assert lines[-1]["frozen_units"] == 4

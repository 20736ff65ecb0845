"""The loop as a whole: what it computes, what it writes, how it stops and goes on."""

import itertools
import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.tiny import TinyMethod, loader_for, run, settings
from halfseen.engine.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from halfseen.engine.config import TrainConfig
from halfseen.engine.health import Health, RunShape
from halfseen.errors import ConfigError, TrainingError
from halfseen.ops.recompute import checkpointed
from halfseen.types import Batch, GroupKey, Progress, StepOutput


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(method: TinyMethod) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_run_learns_and_counts_everything_once(tmp_path: Path) -> None:
    method, result = run(tmp_path)
    written = lines(tmp_path)
    assert (result.step, result.finished, result.samples_seen) == (24, True, 24 * 8)
    assert [line["step"] for line in written] == list(range(1, 25))
    assert [line["samples_seen"] for line in written] == [8 * step for step in range(1, 25)]
    assert written[-1]["epoch"] == 6.0
    assert written[-1]["loss"] < 0.7 * written[0]["loss"]
    assert method.after == list(range(24))
    assert 0.3 < written[0]["hidden_share"] < 0.7
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 24)]


def test_every_image_is_seen_once_per_epoch(tmp_path: Path) -> None:
    method, _ = run(tmp_path, settings(epochs=1))
    assert sorted(index for batch in method.seen for index in batch) == list(range(32))


def test_adamw_step_equals_torchs_own(tmp_path: Path) -> None:
    """One step of the loop against one of a plain optimiser, on the same batch with the same dropout."""
    method, _ = run(tmp_path, settings(max_steps=2, lr__warmup_epochs=0.0), method=TinyMethod(dropout=0.0))
    plain = TinyMethod(dropout=0.0)
    decayed = [plain.hidden.weight, plain.out.weight, plain.token]
    others = [plain.hidden.bias, plain.out.bias, plain.norm.weight, plain.norm.bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    train = settings()
    for step, (batch,) in enumerate(loader_for(train).batches(0, 2)):
        rate = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / 24))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        plain(batch, Progress(step, 24, 4, 5, 0, 8)).loss.backward()
        optimizer.step()
    for name, tensor in plain.state_dict().items():
        if name != "average":
            torch.testing.assert_close(method.state_dict()[name], tensor, rtol=1e-5, atol=2e-6, msg=name)


def test_parameters_without_gradient_do_not_move(tmp_path: Path) -> None:
    method, _ = run(tmp_path)
    assert torch.equal(method.token, torch.ones(1, 1, 16))
    assert torch.equal(method.fixed, torch.ones(3))


def test_two_micro_batches_equal_one_double_batch(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", method=TinyMethod(dropout=0.0))
    halves, _ = run(tmp_path / "halves", settings(micro_batch_size=4), method=TinyMethod(dropout=0.0))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "halves"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_an_incomplete_last_batch_counts_each_image_alike(tmp_path: Path) -> None:
    """27 images in batches of 8 with micro-batches of 2: the last step has 3 images, as 2 + 1."""
    train = settings(micro_batch_size=2, drop_last=False, epochs=1)
    parts, result = run(tmp_path / "parts", train, method=TinyMethod(dropout=0.0), num_images=27)
    whole, _ = run(
        tmp_path / "whole", settings(drop_last=False, epochs=1), method=TinyMethod(dropout=0.0), num_images=27
    )
    assert result.samples_seen == 27
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_an_incomplete_last_batch_may_weigh_as_in_kamims_loop(tmp_path: Path) -> None:
    """27 images: the last batch of 8 has 3, as micro-batches of 2 + 1, each of whose losses is divided by four."""
    gradients: list[dict[str, Tensor]] = []

    class Watched(TinyMethod):
        def before_update(self, progress: Progress) -> None:
            found = self.named_parameters()
            gradients.append({name: p.grad.clone() for name, p in found if p.grad is not None})

    def train(accumulation: int | None) -> TrainConfig:
        return settings(
            micro_batch_size=2, drop_last=False, unscaled_accumulation=accumulation, epochs=1, lr__base=1e-12,
            lr__schedule="constant", lr__warmup_epochs=0.0, optimizer__name="sgd", optimizer__momentum=0.0,
            optimizer__weight_decay=0.0,
        )  # fmt: skip

    run(tmp_path / "original", train(4), method=Watched(dropout=0.0), num_images=27)
    run(tmp_path / "rescaled", train(None), method=TinyMethod(dropout=0.0), num_images=27)

    plain = TinyMethod(dropout=0.0)
    for step, micro_batches in enumerate(loader_for(train(4), 27).batches(0, 4)):
        plain.zero_grad()
        row, rows = 0, sum(len(batch.index) for batch in micro_batches)
        for batch in micro_batches:
            (plain(batch, Progress(step, 4, 4, 5, row, rows)).loss / 4).backward()
            row += len(batch.index)
        for name, gradient in gradients[step].items():
            torch.testing.assert_close(gradient, plain.get_parameter(name).grad, rtol=1e-5, atol=1e-8, msg=name)
    assert [len(batch.index) for batch in micro_batches] == [2, 1]
    logged = [[line["loss"] for line in lines(tmp_path / name)] for name in ("original", "rescaled")]
    assert logged[0] == pytest.approx(logged[1]), "what is logged is the mean over images all the same"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stop", [1, 7, 13])
def test_resume_is_bit_equal(tmp_path: Path, precision: str, stop: int) -> None:
    unbroken, _ = run(tmp_path / "unbroken", precision=precision)
    run(tmp_path / "broken", settings(max_steps=stop), precision=precision)
    torch.manual_seed(99)
    resumed, result = run(
        tmp_path / "broken",
        precision=precision,
        resume_from=checkpoint_path(tmp_path / "broken", stop),
        resume_step=stop,
    )
    assert result.samples_seen == 24 * 8
    assert_bit_equal(weights(unbroken), weights(resumed))
    first, second = (load_checkpoint(checkpoint_path(tmp_path / name, 24)) for name in ("unbroken", "broken"))
    assert_bit_equal(first.optimizer, second.optimizer)
    assert first.state.scaler == second.state.scaler
    changing = {"seconds", "images_per_second", "steps_per_second", "data_wait_share", "memory_mb"}
    strip = [
        [{k: v for k, v in line.items() if k not in changing} for line in lines(tmp_path / n)]
        for n in ("unbroken", "broken")
    ]
    assert strip[0] == strip[1]


def test_metrics_of_a_broken_window_equal_the_unbroken_ones(tmp_path: Path) -> None:
    """Logging every 5 steps, stopped in the middle: the means still run over 5 steps."""
    run(tmp_path / "unbroken", settings(log_every_steps=5))
    run(tmp_path / "broken", settings(log_every_steps=5, checkpoint_every_steps=3, epochs=6))
    from_step = list_checkpoints(tmp_path / "broken")[0]
    step = load_checkpoint(from_step).state.step
    assert step % 5
    run(tmp_path / "broken", settings(log_every_steps=5), resume_from=from_step, resume_step=step)
    first, second = lines(tmp_path / "unbroken"), lines(tmp_path / "broken")
    assert [line["step"] for line in second] == [1, 5, 10, 15, 20, 24]
    assert [line["loss"] for line in first] == [line["loss"] for line in second]


def test_dropout_depends_on_the_step_not_on_the_global_state(tmp_path: Path) -> None:
    methods = TinyMethod(), TinyMethod()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = run(tmp_path / "a", settings(max_steps=3), method=methods[0])
    after = torch.get_rng_state()
    torch.manual_seed(2)
    second, _ = run(tmp_path / "b", settings(max_steps=3), method=methods[1])
    assert_bit_equal(weights(first), weights(second))
    assert torch.equal(before, after), "a run must leave the caller's random state alone"


@pytest.mark.parametrize("asked", [True, False])
def test_blocks_are_checkpointed_where_it_is_asked_for(tmp_path: Path, asked: bool) -> None:
    class InBlocks(TinyMethod):
        runs = 0

        def forward(self, batch: Batch, progress: Progress) -> StepOutput:
            pixels = batch.views[0].flatten(1).float() / 255
            return StepOutput(checkpointed(self.block, pixels).square().mean(), {})

        def block(self, pixels: Tensor) -> Tensor:
            self.runs += 1
            return self.out(self.dropout(torch.nn.functional.gelu(self.hidden(pixels))))

    method = InBlocks()
    run(tmp_path, settings(max_steps=3), method=method, checkpoints=asked)
    assert method.runs == (6 if asked else 3)


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    """With plain SGD and momentum 0 a step moves the weights by lr times the clipped gradient, of norm clip_norm."""
    train = settings(max_steps=1, clip_norm=1e-3, optimizer__name="sgd", optimizer__momentum=0.0,
                     optimizer__weight_decay=0.0, lr__schedule="constant", lr__warmup_epochs=0.0)  # fmt: skip
    before = weights(TinyMethod())
    method, _ = run(tmp_path, train)
    moved = sum(
        (method.get_parameter(n).detach() - before[n]).square().sum() for n, _ in method.named_parameters()
    ).sqrt()
    assert float(moved) == pytest.approx(1e-2 * 1e-3, rel=1e-3)
    assert lines(tmp_path)[0]["grad_norm"] > 1e-2


def test_clipping_each_micro_batch_is_another_method(tmp_path: Path) -> None:
    once, _ = run(tmp_path / "once", settings(micro_batch_size=2, clip_norm=0.01, max_steps=3))
    each, _ = run(
        tmp_path / "each", settings(micro_batch_size=2, clip_norm=0.01, clip_each_micro_batch=True, max_steps=3)
    )
    assert not torch.equal(once.hidden.weight, each.hidden.weight)


def test_a_parameter_that_is_not_clipped_is_not_part_of_the_norm(tmp_path: Path) -> None:
    class Free(TinyMethod):
        def parameter_group(self, name: str, parameter: torch.nn.Parameter) -> GroupKey:
            return GroupKey(decay=False, clip=not name.startswith("out."))

    taken: dict[str, float] = {}

    class Watched(Free):
        def before_update(self, progress: Progress) -> None:
            for name, parameter in self.named_parameters():
                if parameter.grad is not None:
                    taken[name] = float(parameter.grad.norm())

    run(tmp_path / "clipped", settings(max_steps=1, clip_norm=1e-4), method=Watched())
    others = [norm for name, norm in taken.items() if not name.startswith("out.")]
    assert sum(norm**2 for norm in others) ** 0.5 == pytest.approx(1e-4, rel=1e-2)
    free = dict(taken)
    run(tmp_path / "free", settings(max_steps=1), method=Watched())
    assert {name: free[name] for name in free if name.startswith("out.")} == {
        name: taken[name] for name in taken if name.startswith("out.")
    }


def test_clipping_by_tensor_shortens_each_gradient_by_itself(tmp_path: Path) -> None:
    norms: list[dict[str, float]] = []

    class Watched(TinyMethod):
        def before_update(self, progress: Progress) -> None:
            found = self.named_parameters()
            norms.append({name: float(p.grad.norm()) for name, p in found if p.grad is not None})

    run(tmp_path / "plain", settings(max_steps=1), method=Watched())
    limit = sorted(norms[0].values())[len(norms[0]) // 2]
    run(tmp_path / "clipped", settings(max_steps=1, clip_norm=limit, clip_scope="tensor"), method=Watched())
    for name, norm in norms[0].items():
        expected = norm * min(1.0, limit / (norm + 1e-6))
        assert norms[1][name] == pytest.approx(expected, rel=1e-5)


def test_a_gradient_taken_away_before_the_update_moves_and_counts_nothing(tmp_path: Path) -> None:
    class Frozen(TinyMethod):
        def before_update(self, progress: Progress) -> None:
            if progress.epoch_index < 1:
                self.out.weight.grad = None

    start = TinyMethod().out.weight.clone()
    method, _ = run(tmp_path / "first", settings(max_steps=4), method=Frozen())
    assert torch.equal(method.out.weight, start)
    method, result = run(tmp_path / "second", settings(max_steps=5), method=Frozen())
    assert not torch.equal(method.out.weight, start)
    optimizer = load_checkpoint(result.checkpoint).optimizer
    assert float(optimizer["out.weight|step"]) == 1.0
    assert float(optimizer["hidden.weight|step"]) == 5.0


def test_the_weight_decay_follows_its_schedule(tmp_path: Path) -> None:
    decays: list[float] = []
    train = settings(optimizer__weight_decay=0.04, optimizer__weight_decay_schedule="ibot_cosine",
                     optimizer__weight_decay_end=0.4)  # fmt: skip
    run(tmp_path, train, on_log=lambda record: decays.append(record["weight_decay"]))
    assert decays[0] == pytest.approx(0.04)
    assert decays[12] == pytest.approx(0.22)
    assert all(early < late for early, late in itertools.pairwise(decays))


def test_a_loss_of_the_whole_batch_refuses_micro_batches(tmp_path: Path) -> None:
    method = TinyMethod()
    method.whole_batch_only = True
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size: got 4"):
        run(tmp_path, settings(micro_batch_size=4), method=method)


def test_the_schedule_is_applied_and_not_bent_by_max_steps(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "early", settings(max_steps=9))
    whole, early = lines(tmp_path / "whole"), lines(tmp_path / "early")
    assert [line["lr"] for line in whole][:5] == pytest.approx([0.0, 2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert whole[-1]["lr"] < 1e-3
    assert [line["lr"] for line in early] == [line["lr"] for line in whole[:9]]


def test_a_non_finite_loss_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    train = settings(checkpoint_every_steps=4, log_every_steps=10)
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, train, method=TinyMethod(poison=13))
    text = str(caught.value)
    assert "at step 14" in text
    assert str(checkpoint_path(tmp_path, 12)) in text
    assert "hidden.weight" in text
    assert "train.lr.base" in text
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000008", "step-00000012"]
    for tensor in load_checkpoint(checkpoint_path(tmp_path, 12)).model.values():
        assert torch.isfinite(tensor).all()


def test_non_finite_weights_are_never_saved(tmp_path: Path) -> None:
    class Broken(TinyMethod):
        def after_step(self, progress: Progress) -> None:
            if progress.step == 2:
                self.average.fill_(float("nan"))

    with pytest.raises(TrainingError, match="average"):
        run(tmp_path, settings(max_steps=3), method=Broken())
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_the_run_can_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    def interrupt(record: dict) -> None:
        if record["step"] == 6:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    _, result = run(tmp_path / "cut", on_log=interrupt)
    assert (result.finished, result.step) == (False, 6)
    assert number.name in result.message and "--resume" in result.message
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    resumed, result = run(tmp_path / "cut", resume_from=result.checkpoint, resume_step=6)
    assert result.finished
    unbroken, _ = run(tmp_path / "unbroken")
    assert_bit_equal(weights(unbroken), weights(resumed))


def test_a_second_ctrl_c_aborts_at_once(tmp_path: Path) -> None:
    class Impatient(TinyMethod):
        def after_step(self, progress: Progress) -> None:
            if progress.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method=Impatient())
    assert list_checkpoints(tmp_path) == []


def test_fit_works_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, settings(max_steps=2))))
    thread.start()
    thread.join()
    assert results[0][1].step == 2


def test_checkpoints_come_by_steps_and_only_the_newest_stay(tmp_path: Path) -> None:
    saved: list[int] = []
    run(
        tmp_path,
        settings(checkpoint_every_steps=5, keep_checkpoints=3),
        on_checkpoint=lambda path, step: saved.append(step),
    )
    assert saved == [5, 10, 15, 20, 24]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000015", "step-00000020", "step-00000024"]


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    saved: list[int] = []
    train = settings(checkpoint_every_minutes=1e-9, max_steps=4)
    run(tmp_path, train, on_checkpoint=lambda path, step: saved.append(step))
    assert saved == [1, 2, 3, 4]


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    _, result = run(tmp_path)
    method, again = run(tmp_path, resume_from=result.checkpoint, resume_step=24)
    assert again.finished and method.seen == []


def test_the_loader_is_closed_even_after_an_error(tmp_path: Path) -> None:
    train = settings()
    loader = loader_for(train)
    with pytest.raises(TrainingError):
        run(tmp_path, train, method=TinyMethod(poison=1), loader=loader)
    assert loader.closed


def test_findings_are_written_once_and_features_are_measured(tmp_path: Path) -> None:
    method = TinyMethod()
    looks: list[int] = []

    def probe() -> dict[str, Tensor]:
        looks.append(len(method.after))
        method.eval()
        return {"": torch.eye(8), "_cls": torch.eye(4)}

    health = Health(RunShape(steps_per_epoch=4, last_step=24, warmup_steps=4, grid=2))
    run(tmp_path, settings(health_every_steps=8, log_every_steps=5), method=method, health=health, probe=probe)
    written = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [entry["health"] for entry in written] == ["few_steps", "small_grid"]
    assert looks == [8, 16, 24]
    assert method.training, "the probe's eval mode must not stay"
    ranks = {line["step"]: line["rankme"] for line in lines(tmp_path) if "rankme" in line}
    assert ranks == pytest.approx({8: 8.0, 16: 8.0, 24: 8.0}, rel=1e-4)
    assert [line["rankme_cls"] for line in lines(tmp_path) if "rankme" in line] == pytest.approx([4.0] * 3, rel=1e-4)


def test_measurements_during_training_are_logged_and_change_nothing(tmp_path: Path) -> None:
    method = TinyMethod()
    modes: list[bool] = []

    def measure() -> dict[str, float]:
        method.eval()
        return {"knn_student": 50.0}

    def watch(record: dict) -> None:
        modes.extend((method.training, method.dropout.training))

    measured, _ = run(tmp_path / "with", method=method, measure=measure, measure_every_steps=7, on_log=watch)
    plain, _ = run(tmp_path / "without")
    assert_bit_equal(weights(plain), weights(measured))
    assert [line["step"] for line in lines(tmp_path / "with") if "knn_student" in line] == [7, 14, 21, 24]
    assert modes and all(modes)


def test_a_batch_that_micro_batches_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 8, which 3 processes"):
        settings().split(3)

"""The plain peers of iBOT and MSN do the work that ours do: same losses, gradients, centres and averages."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks.batches import load_batch, photographs
from benchmarks.cases import CASES, Contestant
from benchmarks.flops import count_flops
from benchmarks.ours import build
from benchmarks.plain import PlainIBOT, PlainMSN, Sizes, clip_one_by_one, follow, plain_hog_targets
from benchmarks.views import write_photographs
from torch import Tensor, nn

from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.data.loader import TrainingWorker
from halfseen.engine.optim import clip_each_tensor
from halfseen.ops.pixels import normalise
from halfseen.targets.hog import HOGTarget
from halfseen.types import Batch, Progress

ROOT = Path(__file__).resolve().parents[2]
SIZES = Sizes(image_size=64, embed_dim=32, depth=2, num_heads=2, hidden_dim=48, bottleneck_dim=16, num_outputs=24)
FIRST_STEP = Progress(step=0, total_steps=100, steps_per_epoch=10, seed=0, row_start=0, global_batch_size=3)
SMALL_MODEL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "drop_path": 0.0}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def shaken(module: nn.Module, generator: torch.Generator) -> None:
    """No zeros and ones that could hide an error, and a teacher that is not the student."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def draw_views(generator: torch.Generator) -> tuple[Tensor, ...]:
    sides = [64, 64, *[32] * 10]
    return tuple(torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator) for side in sides)


def normalised(views: tuple[Tensor, ...]) -> list[Tensor]:
    return [normalise(view, IMAGENET_MEAN, IMAGENET_STD) for view in views]


def gradients(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value.grad) for name, value in module.named_parameters() if value.grad is not None)


def assert_same_gradients(ours: nn.Module, plain: nn.Module) -> None:
    """Up to rounding: a ten-thousandth of a tensor's largest value, a hundred-thousandth of the largest of all.

    The latter is for gradients that are zero in truth (keys' biases, biases before a batch norm) and noise in float32.
    """
    own, theirs = dict(gradients(ours)), dict(gradients(plain))
    assert own.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in own.values())
    for name, gradient in own.items():
        allowed = 1e-4 * float(gradient.abs().max()) + 1e-5 * largest
        assert float((gradient - theirs[name]).abs().max()) < allowed, name


def assert_same_state(ours: nn.Module, plain: nn.Module) -> None:
    own = ours.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(
            own[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("bins", "bias"), [(9, False), (18, True)])
def test_hog_targets_are_ours(bins: int, bias: bool, generator: torch.Generator) -> None:
    """But for pixels on the border of two bins, as a picture's border is without a bias and with an even number."""
    images = torch.randn(2, 3, 64, 64, generator=generator)
    target = HOGTarget((4, 8, 16, 32), bins, bias, generator)
    plain = plain_hog_targets(images, bins, target.cells, None if target.bias is None else list(target.bias))
    for ours, theirs in zip(target(images), plain, strict=True):
        errors = (ours - theirs).abs().unflatten(2, (3, bins)).amax(-1)
        assert float((errors > 1e-5).float().mean()) <= 0.01 and float(errors.max()) < 0.1


def test_ibot_does_equal_work(generator: torch.Generator) -> None:
    settings = {"out_dim": 24, "head_hidden_dim": 48, "head_bottleneck_dim": 16, "local_crop_size": 32}
    case = CASES["ibot"]
    case = case._replace(
        image_size=64,
        settings={**case.settings, **settings, "warmup_teacher_patch_temp": 0.05},
        model_settings={**case.model_settings, **SMALL_MODEL},
    )
    ours, plain = build(case).train(), PlainIBOT(SIZES, drop_path=0.0).train()
    shaken(ours, generator)
    for center in (ours.center, ours.center2):
        center.copy_(torch.randn(center.shape, generator=generator))
    plain.load_state_dict(ours.state_dict())
    views = draw_views(generator)
    mask = torch.rand(3, 2, 16, generator=generator) < 0.4
    mask[1, 0] = False  # An image without hidden patches counts in the mean over images.
    mask[2, 1] = True

    loss = ours(Batch(views, torch.arange(3), torch.full((3,), -1), {"mask": mask}), FIRST_STEP).loss
    crops = normalised(views)
    stacked = torch.cat([mask[:, 0], mask[:, 1]])
    their_loss = plain(crops[:2], crops[2:], stacked, (0.04, 0.05))

    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    loss.backward()
    their_loss.backward()
    assert_same_gradients(ours, plain)
    clip_each_tensor(ours.parameters(), 0.05)
    clip_one_by_one(list(plain.parameters()), 0.05)
    assert_same_gradients(ours, plain)
    ours.after_step(FIRST_STEP)
    follow(plain, 0.996)
    assert_same_state(ours, plain)


def test_msn_does_equal_work(generator: torch.Generator) -> None:
    settings = {"num_prototypes": 24, "hidden_dim": 48, "output_dim": 16, "focal_size": 32, "patch_drop": 0.3}
    case = CASES["msn"]
    case = case._replace(
        image_size=64, settings={**case.settings, **settings}, model_settings={**case.model_settings, **SMALL_MODEL}
    )
    ours, plain = build(case).train(), PlainMSN(SIZES).train()
    shaken(ours, generator)
    plain.load_state_dict(ours.state_dict())
    views = draw_views(generator)

    loss = ours(Batch(views, torch.arange(3), torch.full((3,), -1)), FIRST_STEP).loss
    kept = ours.kept_patches(views, FIRST_STEP)
    assert kept.shape == (3, 11) and (kept == kept[0]).all()
    their_loss = plain(normalised(views), kept[0])

    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    loss.backward()
    their_loss.backward()
    assert_same_gradients(ours, plain)
    ours.after_step(FIRST_STEP)
    follow(plain, 0.996)
    assert_same_state(ours, plain)


@pytest.mark.parametrize(("name", "plain", "num_outputs"), [("ibot", PlainIBOT, 8192), ("msn", PlainMSN, 1024)])
def test_both_train_the_same_network(name: str, plain: Callable[[Sizes], nn.Module], num_outputs: int) -> None:
    def trained(module: nn.Module) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in module.named_parameters() if value.requires_grad}

    assert trained(build(CASES[name])) == trained(plain(Sizes(num_outputs=num_outputs)))


def test_the_measured_masks_hide_what_the_recipe_hides_on_average(tmp_path: Path) -> None:
    """Half of the crops nothing, the others 10 to 50 %, of which blocks fall a little short: 14.5 % of all patches."""
    case = CASES["ibot"]
    write_photographs(tmp_path, 4)
    worker = TrainingWorker(photographs(tmp_path), build(case).view_plan(), seed=case.seed)
    mask = load_batch(worker, case.batch_size).extras["mask"]
    assert mask.shape == (4, 2, 196)
    assert mask.float().mean() == pytest.approx(0.145, abs=0.01)


def test_fused_attention_counts_as_if_written_out() -> None:
    heads = torch.randn(2, 3, 10, 8, requires_grad=True)

    def count(forward: object) -> int:
        return count_flops(Contestant(forward, lambda loss: loss.backward(), lambda: None, 0))

    fused = count(lambda: F.scaled_dot_product_attention(heads, heads, heads).sum())
    written_out = count(lambda: ((heads @ heads.transpose(-2, -1)).softmax(dim=-1) @ heads).sum())
    assert fused == written_out == 6 * 2 * (2 * 3) * (10 * 10 * 8)


@pytest.mark.slow
def test_a_case_with_a_plain_peer_end_to_end(tmp_path: Path) -> None:
    """MSN with two images: ours in bf16 beside the peer in fp32, each with its own peak and memory."""
    options = ["--case", "msn", "--precision", "bf16", "--batch-size", "2", "--repetitions", "2", "--no-views"]
    command = [sys.executable, "-m", "benchmarks", *options, "--json", str(tmp_path / "numbers.json")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    (row,) = json.loads((tmp_path / "numbers.json").read_text())["steps"]
    assert (row["precision"], row["peer_precision"], row["batch_size"]) == ("bf16", "fp32", 2)
    assert row["trained_parameters"] == row["peer_trained_parameters"] == 27_445_376
    assert row["peer_step_flops"] > row["step_flops"]  # The peer's last blocks run for all tokens.
    assert min(row[name] for name in ("ratio", "gemm_share", "peer_gemm_share", "memory_ratio")) > 0
    assert row["memory_ratio"] == row["ours_peak_gib"] / row["peer_peak_gib"]
    assert "plain fp32" in printed

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.engine.config import OptimizerConfig
from halfseen.engine.distributed import Distributed
from halfseen.engine.optim import build_optimizer, parameter_groups
from halfseen.errors import ConfigError
from halfseen.methods.msn import MSN, MSNConfig
from halfseen.types import Batch, GroupKey, Photometric, ViewSpec
from methods.msn_cases import FOCAL_SIZE, SIZE, VIT, build
from methods.msn_processes import SCOPES, one_step
from methods.steps import MEAN, STD, check_checkpointing, check_repeatable, check_step, make_batch, progress, rows_of
from processes import run_two

CONV = ModelConfig(name="vitc_4gf", embed_dim=16, depth=1, num_heads=2, position_rule="scale")
PATCHES = (SIZE // 8) ** 2
CASES: dict[str, dict[str, object]] = {
    "one random and two focal views": {},
    "kept patches for each image": {"patch_drop_scope": "per_sample"},
    "nothing dropped": {"patch_drop": 0},
    "random views alone": {"rand_views": 2, "focal_views": 0},
    "focal views alone": {"rand_views": 0},
    "views of one size": {"focal_size": SIZE},
    "a border without patches": {"focal_size": 21},
    "neither balance nor batch norm": {"use_sinkhorn": False, "use_bn": False, "memax_weight": 5.0},
    "smoothed labels, weighted entropy": {"label_smoothing": 0.1, "ent_weight": 0.5, "start_sharpen": 0.5},
    "cross-entropy alone": {"me_max": False, "use_ent": False},
    "convolutional stem": {"model": CONV},
}
case = pytest.mark.parametrize("name", CASES)


@contextmanager
def listening(module: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """(input, output) of a module, call by call."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = module.register_forward_hook(lambda _, given, out: calls.append((given[0].detach(), out.detach())))
    yield calls
    hook.remove()


@case
def test_a_step_gives_a_finite_loss_and_reaches_every_trained_parameter(name: str) -> None:
    method = build(**CASES[name])
    out = check_step(method, make_batch(method))
    config, terms = method.config, out.metrics
    assert ("me_max" in terms, "ent" in terms) == (config.me_max, config.use_ent)
    loss = terms["ploss"] + config.memax_weight * terms.get("me_max", 0) + config.ent_weight * terms.get("ent", 0)
    torch.testing.assert_close(loss, out.loss.detach())
    assert 0 <= float(terms.get("me_max", 0)) <= math.log(config.num_prototypes)
    assert not any(key.startswith("teacher") and p.requires_grad for key, p in method.named_parameters())


@pytest.mark.parametrize("name", ["one random and two focal views", "kept patches for each image"])
def test_checkpointed_blocks_change_no_bit(name: str) -> None:
    method = build(**CASES[name])
    check_checkpointing(method, make_batch(method))


@case
def test_the_step_decides_the_kept_patches_and_nothing_else_does(name: str) -> None:
    method = build(**CASES[name])
    batch = make_batch(method)
    first = check_repeatable(method, batch)
    for other in (progress(step=4), progress(step=3, seed=1)):
        assert torch.equal(method(batch, other).loss, first) == (method.config.patch_drop == 0)


@case
def test_images_may_come_in_any_order(name: str) -> None:
    method = build(**CASES[name])
    batch, order = make_batch(method), torch.tensor([2, 0, 3, 1])
    kept = None if method.config.patch_drop == 0 else method.kept_patches(batch.views, progress())
    by_view = None if kept is None else kept.reshape(-1, 4, kept.shape[1])[:, order].flatten(0, 1)
    views = [view / 255 for view in batch.views]
    before = method.compare(views[0], views[1:], kept, 0.25).loss
    shuffled = [view[order] for view in views]
    torch.testing.assert_close(method.compare(shuffled[0], shuffled[1:], by_view, 0.25).loss, before)


def test_all_images_share_the_kept_patches_or_each_view_has_its_own() -> None:
    for settings, rows in (({}, 4), ({"rand_views": 2}, 8), ({"rand_views": 0}, 8), ({"focal_size": SIZE}, 12)):
        shared, own = (build(patch_drop_scope=scope, **settings) for scope in SCOPES)
        batch = make_batch(shared)
        patches = (FOCAL_SIZE // 8) ** 2 if settings == {"rand_views": 0} else PATCHES
        for method in (shared, own):
            kept = method.kept_patches(batch.views, progress())
            assert kept.shape == (rows, method.num_kept) and method.num_kept == int(patches * 0.75)
            assert all(len(set(row)) == len(row) and set(row) <= set(range(patches)) for row in kept.tolist())
        found = {tuple(sorted(row)) for row in shared.kept_patches(batch.views, progress()).tolist()}
        assert len(found) == 1
        found = {tuple(sorted(row)) for row in own.kept_patches(batch.views, progress()).tolist()}
        assert len(found) > 2


@pytest.mark.parametrize("scope", SCOPES)
def test_processes_draw_the_patches_of_their_images(scope: str) -> None:
    method = build(patch_drop_scope=scope, rand_views=2)
    batch = make_batch(method)
    whole = method.kept_patches(batch.views, progress()).reshape(2, 4, -1)
    for start in (0, 2):
        part = rows_of(batch, slice(start, start + 2))
        found = method.kept_patches(part.views, progress(row_start=start)).reshape(2, 2, -1)
        assert torch.equal(found, whole[:, start : start + 2])


@pytest.mark.parametrize(
    ("drop", "image_size", "patch_size", "kept"),
    [(0.15, 224, 16, 166), (0.3, 224, 16, 137), (0.7, 224, 16, 58), (0.3, 224, 8, 548), (0.7, 224, 7, 307)],
)
def test_kept_patches_are_counted_as_in_the_original(drop: float, image_size: int, patch_size: int, kept: int) -> None:
    model = VIT.model_copy(update={"patch_size": patch_size})
    config = MSNConfig(num_prototypes=2, hidden_dim=2, output_dim=2, patch_drop=drop)
    assert MSN(config, build_encoder(model, image_size), image_size, MEAN, STD).num_kept == kept


@pytest.mark.parametrize(
    ("settings", "calls"),
    [({}, [4, 8]), ({"rand_views": 0}, [8]), ({"focal_size": SIZE}, [12]), ({"rand_views": 3, "focal_views": 0}, [12])],
)
def test_views_of_one_size_are_one_batch_of_the_batch_norms(settings: dict[str, object], calls: list[int]) -> None:
    method = build(**settings)
    with listening(method.head) as anchors, listening(method.teacher_head) as target:
        method(make_batch(method), progress())
    assert [len(given) for given, _ in anchors] == calls
    assert [len(given) for given, _ in target] == [4]
    assert int(method.head.bn1.num_batches_tracked) == len(calls)
    assert int(method.teacher_head.bn1.num_batches_tracked) == 1


def test_a_group_is_normalised_by_itself() -> None:
    method = build()
    batch = make_batch(method)
    with listening(method.head) as calls:
        method(batch, progress())
        method(Batch((*batch.views[:2], *batch.views[3:], batch.views[3]), batch.index, batch.labels), progress())
    (_, random), (_, focal), (_, random_again), (_, focal_again) = calls
    assert torch.equal(random, random_again)
    assert not torch.allclose(focal[:4], focal_again[:4])


def test_only_the_first_group_loses_patches() -> None:
    method = build(use_bn=False)
    batch = make_batch(method)
    with listening(method.head) as masked, listening(method.teacher_head) as target:
        method(batch, progress())
    whole = build(use_bn=False, patch_drop=0)
    whole.load_state_dict(method.state_dict())
    with listening(whole.head) as seen, listening(whole.teacher_head) as same_target:
        whole(batch, progress())
    assert not torch.allclose(masked[0][1], seen[0][1])
    assert torch.equal(masked[1][1], seen[1][1])
    assert torch.equal(target[0][1], same_target[0][1])


def test_what_fills_no_patch_is_not_seen() -> None:
    method = build(focal_size=21)
    batch = make_batch(method)
    loss = method(batch, progress()).loss
    views = list(batch.views)
    views[2] = views[2].clone()
    views[2][..., 16:] = 0
    views[2][..., 16:, :] = 0
    assert torch.equal(method(Batch(tuple(views), batch.index, batch.labels), progress()).loss, loss)
    views[2][..., 15] = 0
    assert not torch.equal(method(Batch(tuple(views), batch.index, batch.labels), progress()).loss, loss)


def test_an_anchor_that_sees_what_the_target_sees_agrees() -> None:
    method = build(focal_views=0, patch_drop=0, use_sinkhorn=False, start_sharpen=1.0)
    batch = make_batch(method)
    same = Batch((batch.views[0], batch.views[0]), batch.index, batch.labels)
    metrics = method(same, progress()).metrics
    assert float(metrics["agreement"]) == 1.0
    torch.testing.assert_close(metrics["ploss"], metrics["teacher_entropy"])


def test_the_metrics_show_a_collapse() -> None:
    method = build(use_sinkhorn=False)
    with torch.no_grad():
        method.prototypes.copy_(method.prototypes[:1].expand(12, -1))
    same = method(make_batch(method), progress()).metrics
    for key in ("teacher_entropy", "assignment_entropy"):
        assert float(same[key]) == pytest.approx(math.log(12), rel=1e-5)
    assert float(same["max_t"]) == pytest.approx(1 / 12) and float(same["me_max"]) == pytest.approx(0, abs=1e-6)

    with torch.no_grad():  # one prototype in the direction of all representations, the others opposite to it
        for head in (method.head, method.teacher_head):
            head.fc3.weight.zero_()
            head.fc3.bias.fill_(1.0)
        method.prototypes.copy_(torch.ones(12, 8) * torch.tensor([1.0] + [-1.0] * 11)[:, None])
    one = method(make_batch(method), progress()).metrics
    assert float(one["prototypes_used"]) == 1 and float(one["max_t"]) == pytest.approx(1)
    assert float(one["assignment_entropy"]) == pytest.approx(float(one["teacher_entropy"]), abs=1e-6)
    assert float(one["me_max"]) == pytest.approx(math.log(12), rel=1e-4)


def test_balanced_targets_use_all_prototypes_alike() -> None:
    method = build(start_sharpen=1.0)
    assert float(method(make_batch(method), progress()).metrics["assignment_entropy"]) == pytest.approx(
        math.log(12), rel=1e-3
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_prototypes_stay(frozen: bool) -> None:
    method = build(freeze_prototypes=frozen)
    config = OptimizerConfig()
    groups = parameter_groups(method.named_parameters(), method.parameter_group, config)
    optimizer = build_optimizer(groups, config, torch.device("cpu"))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert any(parameter is method.prototypes for parameter in held) != frozen
    before = method.prototypes.detach().clone()
    method(make_batch(method), progress()).loss.backward()
    assert (method.prototypes.grad is None) == frozen
    method.before_update(progress())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert torch.equal(method.prototypes.detach(), before) == frozen


def test_one_process_leaves_the_prototypes_gradient_alone() -> None:
    for join in ("sum", "mean"):
        method = build(prototype_gradient=join)
        method(make_batch(method), progress()).loss.backward()
        before = method.prototypes.grad.clone()
        method.before_update(progress())
        assert torch.equal(method.prototypes.grad, before)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes have found for one batch."""
    folder = tmp_path_factory.mktemp("two")
    run_two("methods.msn_processes", str(folder))
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("scope", SCOPES)
def test_two_processes_have_the_gradients_of_one(scope: str, two_processes: Path) -> None:
    alone = one_step(Distributed(), scope)
    parts = [torch.load(two_processes / f"{scope}-{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(part.keys() == alone.keys() for part in parts)
    local = ("prototypes_used",)  # counted among a process's own targets
    for key, expected in alone.items():
        if key == "grad.prototypes":
            expected = 2 * expected  # a sum over the processes, where one process has the mean over all images
        if "." in key:  # gradients, and batch statistics
            for part in parts:
                # Some gradients vanish mathematically: what is left of them is rounding, 1e-4 or so.
                close = 5e-4 * max(1.0, float(expected.abs().max()))
                torch.testing.assert_close(part[key], expected, rtol=0, atol=close, msg=key)
        elif key not in local:
            torch.testing.assert_close(torch.stack([part[key] for part in parts]).mean(), expected, msg=key)
    assert torch.equal(parts[0]["me_max"], parts[1]["me_max"])
    assert not torch.equal(parts[0]["ploss"], parts[1]["ploss"])


def test_the_target_follows_weights_not_statistics() -> None:
    method = build(start_momentum=0.75, final_momentum=0.75)
    for parameter in (*method.encoder.parameters(), *method.head.parameters()):
        parameter.data.add_(1.0)
    method.head.bn1.running_mean.fill_(7.0)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.after_step(progress())
    after = method.state_dict()
    for key, value in before.items():
        if not key.startswith("teacher") or "running" in key or "tracked" in key:
            assert torch.equal(after[key], value), key
        else:
            own = key.replace("teacher_head.", "head.").replace("teacher.", "encoder.")
            torch.testing.assert_close(after[key], 0.75 * value + 0.25 * before[own], msg=key)


def test_schedules_reach_their_end_at_the_horizon() -> None:
    for horizon in (1.0, 1.25):
        method = build(start_sharpen=0.5, final_sharpen=0.25, schedule_horizon=horizon)
        assert method.schedule_horizon == horizon
        steps = [progress(step) for step in (0, 5, 10)]
        assert [method.sharpening(at) for at in steps] == pytest.approx(
            [0.5 - 0.25 * at.step / (10 * horizon) for at in steps]
        )
        assert [method.momentum(at) for at in steps] == pytest.approx(
            [0.996 + 0.004 * at.step / (10 * horizon) for at in steps]
        )
        metrics = method(make_batch(method), steps[1]).metrics
        assert float(metrics["sharpening"]) == pytest.approx(method.sharpening(steps[1]))
        assert float(metrics["momentum"]) == pytest.approx(method.momentum(steps[1]))


@pytest.mark.parametrize("exclude", [False, True])
def test_parameter_groups(exclude: bool) -> None:
    method = build(decay_exclude_tokens=exclude)
    keys = {name: method.parameter_group(name, parameter) for name, parameter in method.named_parameters()}
    assert keys["prototypes"] == GroupKey(decay=False, clip=False)
    for name, key in keys.items():
        if name == "prototypes":
            continue
        assert key.clip, name
        tokens = name.endswith(("cls_token", "pos_embed"))
        bare = method.get_parameter(name).ndim == 1
        assert key.decay == (not bare and not (tokens and exclude)), name
    assert keys["encoder.trunk.patch_embed.proj.weight"].decay and keys["head.fc3.weight"].decay
    assert not keys["head.bn1.weight"].decay


def test_views_are_the_original_s() -> None:
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    colour = Photometric(**jitter, jitter=0.8, grayscale=0.2, blur=0.5, blur_radius=(0.1, 2.0), solarize=0.0)
    big = ViewSpec(SIZE, 2, (0.3, 1.0), (3 / 4, 4 / 3), "bilinear", True, 0.5, 0.0, colour)
    small = ViewSpec(FOCAL_SIZE, 2, (0.05, 0.3), (3 / 4, 4 / 3), "bilinear", True, 0.5, 0.0, colour)
    assert build().view_plan().views == (big, small)
    assert build(focal_views=0).view_plan().views == (big,)


def test_the_target_is_what_remains() -> None:
    method = build()
    assert method.encoders() == {"student": method.encoder, "teacher": method.teacher}
    assert method.main_role == "teacher" and method.whole_batch_only and method.num_outputs == 12
    for key, value in method.teacher.state_dict().items():
        assert torch.equal(value, method.encoder.state_dict()[key])
    heads = {name.split(".")[0] for name in method.state_dict()}
    assert heads == {"encoder", "head", "teacher", "teacher_head", "prototypes"}


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, second, other = (build(seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["prototypes"], other["prototypes"])
    bound = 1 / math.sqrt(8)
    assert float(first["prototypes"].abs().max()) <= bound < 1.5 * float(first["prototypes"].abs().max())


def test_losses_are_float32_under_autocast() -> None:
    method = build()
    with torch.autocast("cpu", torch.bfloat16):
        out = method(make_batch(method), progress())
    assert out.loss.dtype == torch.float32
    assert {value.dtype for value in out.metrics.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_prototypes": 1}, "num_prototypes"),
        ({"patch_drop": 1.0}, "patch_drop"),
        ({"start_sharpen": 0}, "start_sharpen"),
        ({"rand_views": 0, "focal_views": 0}, "rand_views: got 0 beside focal_views=0, but at least one anchor view"),
        ({"me_max": False, "memax_weight": 5.0}, "memax_weight: got 5.0, but it has no effect with me_max=false"),
        ({"use_ent": False, "ent_weight": 0.5}, "ent_weight: got 0.5, but it has no effect with use_ent=false"),
        ({"patch_drop": 0, "patch_drop_scope": "per_sample"}, "patch_drop_scope: got per_sample, but it has no effect"),
        ({"focal_views": 0, "focal_size": 64}, "focal_size: got 64, but it has no effect with focal_views=0"),
        (
            {"focal_views": 0, "focal_crop_scale": (0.1, 0.2)},
            r"focal_crop_scale: got \[0.1, 0.2\], but it has no effect",
        ),
        (
            {"freeze_prototypes": True, "prototype_gradient": "mean"},
            "prototype_gradient: got mean, but it has no effect",
        ),
    ],
)
def test_settings_that_can_not_be_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        MSNConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patch_drop": 0.95}, "method.patch_drop: 0.95 of 16 patches keeps none. Choose at most 0.937"),
        ({"rand_views": 0, "patch_drop": 0.8}, "method.patch_drop: 0.8 of 4 patches keeps none. Choose at most 0.75"),
        ({"focal_size": 7}, "method.focal_size: views of 7 px hold no whole patch of 8 px"),
        ({"model": ModelConfig(name="swin_tiny", embed_dim=8, depths=(1, 1), num_heads=(1, 2))}, "model.name: MSN"),
        ({"model": VIT.model_copy(update={"class_token": False})}, "model.name: MSN places class tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(**settings)


def test_a_single_image_has_no_batch_statistics() -> None:
    method = build()
    one = rows_of(make_batch(method), slice(0, 1))
    with pytest.raises(ConfigError, match=r"train\.batch_size: a step of 1 image.*method\.use_bn=false"):
        method(one, progress())
    assert torch.isfinite(build(use_bn=False)(one, progress()).loss)


def test_defaults_are_the_published_ones() -> None:
    config = MSNConfig()
    assert (config.num_prototypes, config.temperature, config.hidden_dim, config.output_dim) == (1024, 0.1, 2048, 256)
    assert (config.patch_drop, config.rand_views, config.focal_views, config.focal_size) == (0.15, 1, 10, 96)
    assert (config.start_momentum, config.final_momentum, config.schedule_horizon) == (0.996, 1.0, 1.25)

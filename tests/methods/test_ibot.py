import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.swin import SwinEncoder
from halfseen.errors import ConfigError, ShapeError
from halfseen.methods.ibot import IBOT, IBOTConfig
from halfseen.ops.patches import mask_from_ids
from halfseen.types import Photometric, ViewSpec
from methods.ibot_cases import BLOCKS, HEAD, HIGH, LOCAL_SIZE, ROLLOUT, SIZE, SWIN, VIT, build
from methods.ibot_processes import PARTS, centers
from methods.steps import MEAN, STD, check_checkpointing, check_repeatable, check_step, make_batch, progress, rows_of
from processes import run_two

CASES: dict[str, dict[str, object]] = {
    "blocks": {},
    "single patches": {"mask": {"kind": "random"}},
    "heads of their own": {"shared_head": False, "shared_head_teacher": False, "patch_out_dim": 7},
    "the original's command line": {"shared_head": False, "local_crops_number": 0},
    "trained lengths": {"norm_last_layer": False},
    "no bottleneck": {"head_bottleneck_dim": 0},
    "norm in the head": {"norm_in_head": "ln", "act_in_head": "relu"},
    "hidden patches are shown": {"use_masked_im_modeling": False},
    "dino": {"lambda2": 0, "use_masked_im_modeling": False, "local_crops_number": 2},
    "dino with masks": {"lambda2": 0},
    "patches alone": {"lambda1": 0},
    "one global crop": {"global_crops_number": 1, "local_crops_number": 2},
    "three global crops": {"global_crops_number": 3},
    "no centre": {"centering": False},
    "attmask high": {"mask": HIGH},
    "attmask low": {"mask": HIGH | {"select": "low"}},
    "attmask hint": {"mask": HIGH | {"select": "hint", "show_max": 0.5}},
    "layers by crop": {"mask": [HIGH, HIGH | {"layer": 1}]},
    "blocks and attention by crop": {"mask": [BLOCKS, HIGH | {"score": "power"}]},
    "rollout": {"mask": ROLLOUT},
    "rollout and logarithm by crop": {"mask": [ROLLOUT, HIGH | {"score": "log"}]},
    "a mixture": {
        "mask": {"kind": "mixture", "parts": [{"probability": 0.5, "mask": BLOCKS}, {"probability": 0.5, "mask": HIGH}]}
    },
    "dino with attention masks": {"lambda2": 0, "mask": HIGH},
    "contrastive of the teacher": {"mask": HIGH, "contrastive": {}},
    "contrastive of the student": {"mask": HIGH, "contrastive": {"source": "student", "form": "infonce"}},
}
case = pytest.mark.parametrize("name", CASES)


@case
def test_a_step_gives_a_finite_loss_and_reaches_every_trained_parameter(name: str) -> None:
    method = build(**CASES[name])
    out = check_step(method, make_batch(method))
    parts = [out.metrics[key] for key in ("loss_cls", "loss_patch", "contrastive") if key in out.metrics]
    torch.testing.assert_close(torch.stack(parts).sum(), out.loss.detach())
    assert not any(key.startswith("teacher") and p.requires_grad for key, p in method.named_parameters())


@pytest.mark.parametrize(("model", "name"), [(VIT, "attmask high"), (VIT, "dino"), (SWIN, "trained lengths")])
def test_checkpointed_blocks_change_no_bit(model: ModelConfig, name: str) -> None:
    method = build(model.model_copy(update={"drop_path": 0.3}), **CASES[name])
    check_checkpointing(method, make_batch(method))


@case
def test_the_step_decides_the_mask_and_nothing_else_does(name: str) -> None:
    method = build(**CASES[name])
    check_repeatable(method, make_batch(method))


@pytest.mark.parametrize("mask", [HIGH | {"masking_prob": 0.5}, ROLLOUT | {"ratio_scope": "image"}])
def test_attention_masks_follow_the_step(mask: dict[str, object]) -> None:
    method = build(mask=mask)
    batch = make_batch(method)
    steps = [progress(step, seed=seed) for step, seed in ((0, 0), (1, 0), (0, 1))]
    losses = {float(method(batch, step).loss.detach()) for step in steps}
    assert len(losses) == 3


@case
def test_micro_batches_make_the_whole_batch_for_loss_and_centres(name: str) -> None:
    whole, parts = build(**CASES[name]), build(**CASES[name])
    batch = make_batch(whole)
    loss = whole(batch, progress()).loss
    halves = [parts(rows_of(batch, slice(at, at + 2)), progress(row_start=at)).loss for at in (0, 2)]
    torch.testing.assert_close(torch.stack(halves).mean(), loss, rtol=1e-5, atol=1e-5)
    before = whole.center.clone()
    for method in (whole, parts):
        method.after_step(progress())
    torch.testing.assert_close(parts.center, whole.center, rtol=1e-5, atol=1e-7)
    assert torch.equal(whole.center, before) == (not whole.config.centering)
    if whole.config.has_patch_loss:
        torch.testing.assert_close(parts.center2, whole.center2, rtol=1e-5, atol=1e-7)


def test_centres_are_the_mean_outputs_of_all_patches_and_steps_start_anew() -> None:
    method = build(center_momentum=0.75, shared_head=False, shared_head_teacher=False, patch_out_dim=7)
    batch = make_batch(method)
    for number in range(2):
        expected = []
        with torch.no_grad():
            images = torch.cat([normalised(method, view) for view in batch.views[:2]])
            features = method.teacher(images)
            expected.append(method.teacher_head.logits(method.teacher_head.bottleneck(features.prefix)))
            expected.append(method.teacher_head.patch_logits(method.teacher_head.bottleneck(features.patches)))
        centers = [method.center.clone(), method.center2.clone()]
        method(batch, progress())
        method.after_step(progress())
        for old, new, outputs in zip(centers, (method.center, method.center2), expected, strict=True):
            torch.testing.assert_close(new.flatten(), 0.75 * old.flatten() + 0.25 * outputs.mean((0, 1)), msg=number)
        assert not method.bottleneck_sums.any() and not method.images_summed.any()
    method.eval()(batch, progress())
    assert not method.bottleneck_sums.any(), "a look in evaluation mode leaves no trace"


def normalised(method: IBOT, view: torch.Tensor) -> torch.Tensor:
    shape = (3, 1, 1)
    return (view / 255 - torch.tensor(method.mean).view(shape)) / torch.tensor(method.std).view(shape)


@pytest.mark.processes
def test_two_processes_have_the_centres_of_one(tmp_path: Path) -> None:
    run_two("methods.ibot_processes", str(tmp_path))
    alone = centers(slice(0, 4))
    for rank in range(len(PARTS)):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, center in alone.items():
            torch.testing.assert_close(found[name], center, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", [VIT, SWIN], ids=["vit", "swin"])
def test_images_may_come_in_any_order(model: ModelConfig) -> None:
    method = build(model)
    batch = make_batch(method)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(method(rows_of(batch, order), progress()).loss, method(batch, progress()).loss)


@pytest.mark.parametrize("norm", [None, "bn"])
def test_products_have_few_numbers_of_rows_and_the_rows_added_teach_nothing(
    norm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN keeps code for each number of rows that it has met."""
    method = build(mask=HIGH, norm_in_head=norm)
    batch = make_batch(method)
    rows: list[int] = []
    for head in (method.head, method.teacher_head):
        whole = head.patch_logits
        monkeypatch.setattr(head, "patch_logits", lambda part, whole=whole: rows.append(len(part)) or whole(part))
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    hidden = set()
    for step in range(4):
        out = method(batch, progress(step))
        hidden.add(float(out.metrics["hidden_share"]))
    gradients = torch.autograd.grad(out.loss, learned, allow_unused=True)
    assert len(hidden) > 1 and len(rows) == 8
    assert all(number % 32 == 0 for number in rows)
    monkeypatch.setattr("halfseen.methods.ibot._filled_up", lambda ids: ids)
    plain = method(batch, progress(3))
    torch.testing.assert_close(plain.loss, out.loss)
    for one, other in zip(torch.autograd.grad(plain.loss, learned, allow_unused=True), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_local_crops_are_never_masked() -> None:
    """With one global crop the class-token loss sees the student's local crops only."""
    method = build(global_crops_number=1, local_crops_number=2)
    batch = make_batch(method)
    before = method(batch, progress()).metrics
    with torch.no_grad():
        method.mask_token.normal_(std=5.0)
    after = method(batch, progress()).metrics
    torch.testing.assert_close(before["loss_cls"], after["loss_cls"], rtol=1e-5, atol=0)
    assert abs(float(before["loss_patch"] - after["loss_patch"])) > 0.01
    assert float(before["hidden_share"]) > 0


def test_the_student_sees_a_mask_token_and_the_teacher_does_not() -> None:
    method = build()
    images, mask = torch.randn(4, 3, SIZE, SIZE), torch.rand(4, 16) < 0.5
    other = torch.where(mask.reshape(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3), -images, images)
    looked = method.look(images)
    assert not torch.allclose(looked.summary, method.look(other).summary)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return method.compare(pixels, (), looked, mask, progress()).loss

    assert torch.equal(loss(images), loss(other))
    method.config = method.config.model_copy(update={"use_masked_im_modeling": False})
    method.mask_token = None
    assert not torch.equal(loss(images), loss(other))


def test_dino_builds_and_computes_nothing_for_patches() -> None:
    method = build(lambda2=0, use_masked_im_modeling=False, shared_head=False)
    assert method.mask_token is None and method.masks is None and method.view_plan().extras is None
    assert method.head.last_layer2 is None and method.teacher_head.last_layer2 is None
    assert not any("center2" in name or "last_layer2" in name for name in method.state_dict())
    looked = method.look(torch.randn(4, 3, SIZE, SIZE))
    assert looked.patches is None and looked.attention == ()
    out = method(make_batch(method), progress())
    assert "loss_patch" not in out.metrics and "hidden_share" not in out.metrics
    assert torch.equal(out.loss.detach(), out.metrics["loss_cls"])


def test_dino_with_masks_hides_patches_without_comparing_them() -> None:
    method = build(lambda2=0)
    out = method(make_batch(method), progress())
    out.loss.backward()
    assert float(out.metrics["hidden_share"]) > 0 and method.mask_token.grad.abs().sum() > 0
    assert "loss_patch" not in out.metrics


def test_before_the_start_epoch_nothing_is_hidden() -> None:
    method = build(pred_start_epoch=1, mask=HIGH | {"pred_ratio_var": 0})
    batch = make_batch(method)
    early, late = (method(batch, progress(step)).metrics for step in (4, 5))
    assert float(early["hidden_share"]) == 0 and float(early["loss_patch"]) == 0
    assert float(late["hidden_share"]) == pytest.approx(6 / 16) and float(late["loss_patch"]) > 0


def test_masks_can_be_looked_at_before_a_run() -> None:
    masks = build(SWIN, mask=BLOCKS | {"pred_ratio_var": 0.0}).sample_masks(3, seed=1)
    assert masks.shape == (3, 1, SIZE, SIZE) and torch.equal(masks[..., ::8, ::8], masks[..., 7::8, 7::8])
    assert 0 < float(masks.float().mean()) <= 0.4
    assert build(mask=HIGH).sample_masks(3, seed=1) is None
    assert build(mask={"kind": "block", "pred_ratio": 0}).sample_masks(3, seed=1) is None
    assert build(lambda2=0, use_masked_im_modeling=False).sample_masks(3, seed=1) is None


def test_a_swin_is_masked_on_its_final_grid() -> None:
    method = build(SWIN)
    encoder = method.encoder
    assert isinstance(encoder, SwinEncoder) and method.grid == (4, 4) and encoder.stride == 8
    images, mask = torch.randn(4, 3, SIZE, SIZE), mask_from_ids(torch.tensor([[0], [5], [10], [15]]), 16)
    fine = mask.reshape(4, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    tokens = encoder(images, mask=fine, mask_token=method.mask_token).patches
    targets = method.teacher(images).patches
    student, teacher = (
        head.patch_logits(head.bottleneck(found))[mask]
        for head, found in ((method.head, tokens), (method.teacher_head, targets))
    )
    expected = torch.nn.functional.cross_entropy(student / 0.1, (teacher / 0.04).softmax(-1))
    out = method.compare(images, (), method.look(images), mask, progress())
    torch.testing.assert_close(out.metrics["loss_patch"], expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_teacher_starts_as_the_student_and_follows_it_by_name() -> None:
    method = build(VIT.model_copy(update={"drop_path": 0.5}), momentum_teacher=0.5)
    student = method.encoder.state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in method.teacher.state_dict().items())
    images = torch.randn(4, 3, SIZE, SIZE)
    assert torch.equal(method.teacher(images).patches, method.teacher(images).patches), "no stochastic depth"
    assert not torch.equal(method.encoder(images).patches, method.encoder(images).patches)

    method(make_batch(method), progress()).loss.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.after_step(progress(step=0))
    for name, parameter in (*method.teacher.named_parameters(), *method.teacher_head.named_parameters()):
        assert not parameter.requires_grad, name
    for mine, theirs in (("encoder", "teacher"), ("head", "teacher_head")):
        for name, tensor in getattr(method, theirs).named_parameters():
            expected = (before[f"{mine}.{name}"] + before[f"{theirs}.{name}"]) / 2
            torch.testing.assert_close(tensor, expected, msg=name)


def test_unequal_heads_start_by_name_and_are_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(shared_head=True, shared_head_teacher=True)
        build(shared_head=False, shared_head_teacher=True, lambda2=0)
    assert caplog.messages == []
    one_for_teacher = build(shared_head=False)
    assert torch.equal(one_for_teacher.teacher_head.last_layer.weight_v, one_for_teacher.head.last_layer2.weight_v)
    assert "shared_head=false with method.shared_head_teacher=true" in caplog.messages[0]
    two_for_teacher = build(shared_head_teacher=False)
    for layer in (two_for_teacher.teacher_head.last_layer, two_for_teacher.teacher_head.last_layer2):
        assert torch.equal(layer.weight_v, two_for_teacher.head.last_layer.weight_v)
    assert "never moves" in caplog.messages[1]


def by_hand(mlp: torch.nn.Sequential, tokens: torch.Tensor) -> torch.Tensor:
    """An MLP whose norms take the statistics of all rows that come at once, written out."""
    for part in mlp:
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            mean, variance = tokens.mean(0), tokens.var(0, correction=0)
            tokens = (tokens - mean) / (variance + 1e-5).sqrt() * part.weight + part.bias
        else:
            tokens = part(tokens)
    return torch.nn.functional.normalize(tokens, dim=-1)


@pytest.mark.parametrize("norm", ["bn", "syncbn"])
@pytest.mark.parametrize("model", [VIT, SWIN], ids=["vit", "swin"])
def test_batch_norms_of_the_head_see_all_tokens_of_the_crops_of_one_size(model: ModelConfig, norm: str) -> None:
    method = build(model, norm_in_head=norm, local_crops_number=2, norm_last_layer=False, lambda1=0.7, lambda2=0.3)
    batch = make_batch(method)
    crops = [normalised(method, view) for view in batch.views]
    images, local = torch.cat(crops[:2]), torch.cat(crops[2:])
    mask = torch.rand(8, 16) < 0.4
    mask[0] = False

    def tokens(encoder: torch.nn.Module, pictures: torch.Tensor, **hiding: torch.Tensor) -> torch.Tensor:
        features = encoder(pictures, **hiding)
        return torch.cat([encoder.summary(features)[:, None], features.patches], dim=1).flatten(0, 1)

    fine = method._on_input_grid(mask)
    narrow = by_hand(method.head.mlp, tokens(method.encoder, images, mask=fine, mask_token=method.mask_token))
    student = (narrow @ method.head.last_layer.weight.T).reshape(8, 17, 12)
    narrow = by_hand(method.head.mlp, tokens(method.encoder, local))
    small = (narrow @ method.head.last_layer.weight.T).reshape(8, -1, 12)
    with torch.no_grad():
        narrow = by_hand(method.teacher_head.mlp, tokens(method.teacher, images))
        teacher = (narrow @ method.teacher_head.last_layer.weight.T / 0.04).softmax(-1).reshape(8, 17, 12)
    every = -teacher[:, 1:] * (student[:, 1:] / 0.1).log_softmax(-1)
    loss = 0.3 * ((every.sum(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    views = torch.cat([student[:, 0], small[:, 0]]).reshape(4, 4, 12)
    for q, target in enumerate(teacher[:, 0].reshape(2, 4, 12)):
        for v in {0, 1, 2, 3} - {q}:
            loss = loss - 0.7 / 6 * (target * (views[v] / 0.1).log_softmax(-1)).sum(-1).mean()
    expected = torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad])

    out = method.compare(images, crops[2:], method.look(images), mask, progress())
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=0)
    out.loss.backward()
    for wanted, (name, parameter) in zip(
        expected, ((name, p) for name, p in method.named_parameters() if p.requires_grad), strict=True
    ):
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=2e-5 * max(1.0, wanted.abs().max()), msg=name)
    assert [int(method.head.mlp[1].num_batches_tracked), int(method.teacher_head.mlp[1].num_batches_tracked)] == [2, 1]


def test_batch_norms_of_dino_see_the_class_tokens_of_all_crops_at_once() -> None:
    method = build(lambda2=0, use_masked_im_modeling=False, norm_in_head="bn", local_crops_number=2)
    sizes = []
    method.head.mlp.register_forward_hook(lambda module, given, out: sizes.append(given[0].shape[:-1].numel()))
    method(make_batch(method), progress())
    assert sizes == [16] and int(method.head.mlp[1].num_batches_tracked) == 1


def test_last_layers_are_frozen_by_epochs() -> None:
    method = build(freeze_last_layer=1, norm_last_layer=False, shared_head=False, shared_head_teacher=False)
    method(make_batch(method), progress()).loss.backward()
    method.before_update(progress(step=5))
    assert all(parameter.grad is not None for parameter in method.head.parameters())
    method.before_update(progress(step=4))
    frozen = {name for name, parameter in method.head.named_parameters() if parameter.grad is None}
    assert frozen == {f"last_layer{two}.weight_{part}" for two in ("", "2") for part in "gv"}


def test_decay_spares_vectors_and_biases_only() -> None:
    method = build(norm_last_layer=False)
    for name, parameter in method.named_parameters():
        spared = parameter.ndim == 1 or name.endswith("bias")
        assert method.parameter_group(name, parameter).decay == (not spared), name
    assert method.parameter_group("mask_token", method.mask_token).decay
    assert method.parameter_group("head.last_layer.weight_g", method.head.last_layer.weight_g).decay


def test_what_the_log_says_about_the_outputs() -> None:
    method = build(teacher_temp=0.07, warmup_teacher_temp_epochs=2)
    out = method(make_batch(method), progress(step=5)).metrics
    assert 1 <= float(out["prototypes_used"]) <= 8
    assert 0 <= float(out["teacher_entropy"]) <= float(out["assignment_entropy"]) <= torch.tensor(12.0).log() + 1e-5
    assert float(out["teacher_temp"]) == pytest.approx(0.07)
    assert float(out["teacher_patch_temp"]) == pytest.approx(0.07)
    assert float(out["momentum"]) == pytest.approx(0.998)
    with torch.no_grad():  # one output wins everywhere
        for head in (method.head, method.teacher_head):
            head.mlp[-1].weight.zero_()
            head.mlp[-1].bias.copy_(head.last_layer.weight_v[3])
    out = method(make_batch(method), progress()).metrics
    assert float(out["agreement"]) == 1 and float(out["prototypes_used"]) == 1
    assert float(out["teacher_entropy"]) == pytest.approx(float(out["assignment_entropy"]), abs=1e-5)


def test_without_a_class_token_loss_the_log_is_about_hidden_patches() -> None:
    apart = {"shared_head": False, "shared_head_teacher": False, "patch_out_dim": 7}
    assert (build().num_outputs, build().outputs_of) == (12, "images")
    assert build(lambda1=0).num_outputs == 12 and build(lambda1=0, **apart).num_outputs == 7
    method = build(lambda1=0, pred_start_epoch=1, **apart)
    assert method.outputs_of == "patches"
    batch = make_batch(method)
    early, late = (method(batch, progress(step)).metrics for step in (4, 5))
    assert "teacher_temp" not in late and early.keys() == late.keys() - {
        "teacher_entropy", "assignment_entropy", "prototypes_used", "agreement", "center_norm",
    }  # fmt: skip
    assert 0 < float(late["assignment_entropy"]) <= math.log(7) + 1e-5 and 1 <= float(late["prototypes_used"]) <= 7
    with torch.no_grad():  # every patch gets output 3, class tokens stay as they are
        for head in (method.head, method.teacher_head):
            head.mlp[-1].weight.zero_()
            head.mlp[-1].bias.copy_(head.last_layer2.weight_v[3])
        method.center2.fill_(2.0)
    collapsed = method(batch, progress(5)).metrics
    assert float(collapsed["agreement"]) == 1 and float(collapsed["prototypes_used"]) == 1
    assert float(collapsed["center_norm"]) == pytest.approx(2 * math.sqrt(7))
    nothing = method.compare(
        torch.randn(8, 3, SIZE, SIZE), (), method.look(torch.randn(8, 3, SIZE, SIZE)), torch.zeros(8, 16, dtype=bool),
        progress(5),
    ).metrics  # fmt: skip
    assert nothing.keys() == collapsed.keys() and all(torch.isfinite(value) for value in nothing.values())


def test_without_a_last_layer_patches_have_the_outputs_of_class_tokens(caplog: pytest.LogCaptureFixture) -> None:
    config = IBOTConfig(head_bottleneck_dim=0, out_dim=20)
    assert config.num_patch_outputs == 20
    with caplog.at_level(logging.WARNING):
        method = build(head_bottleneck_dim=0, out_dim=20, lambda1=0)
    assert caplog.messages == []
    assert method.num_outputs == method.center2.shape[-1] == method.head.num_patch_outputs == 20
    method(make_batch(method), progress())
    method.after_step(progress())
    assert bool(method.center2.any())


def test_the_published_contrastive_term_has_no_gradient(caplog: pytest.LogCaptureFixture) -> None:
    found = {}
    for name, contrastive in {"none": None, "teacher": {}, "student": {"source": "student"}}.items():
        method = build(mask=HIGH, contrastive=contrastive)
        out = method(make_batch(method), progress())
        out.loss.backward()
        found[name] = (float(out.loss.detach()), method.encoder.trunk.blocks[0].mlp.fc1.weight.grad)
    assert abs(found["teacher"][0] - found["none"][0]) > 0.1
    torch.testing.assert_close(found["teacher"][1], found["none"][1])
    assert not torch.allclose(found["student"][1], found["none"][1])
    assert [message.split(":")[0] for message in caplog.messages] == ["method.contrastive"]


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first = build(seed=7).state_dict()
    torch.manual_seed(1234)
    second, other = build(seed=7).state_dict(), build(seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    parts = {name.split(".")[0] for name in first}
    assert parts == {"encoder", "head", "mask_token", "teacher", "teacher_head", "center", "center2"}
    assert not first["mask_token"].any() and not first["center"].any()


def test_views_of_the_original() -> None:
    method = build(local_crops_number=10, local_crops_scale=(0.05, 0.25), global_crops_scale=(0.25, 1.0))
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "jitter": 0.8, "grayscale": 0.2}
    assert method.view_plan().views == (
        ViewSpec(SIZE, 1, (0.25, 1.0), colour=Photometric(**jitter, blur=1.0)),
        ViewSpec(SIZE, 1, (0.25, 1.0), colour=Photometric(**jitter, blur=0.1, solarize=0.2)),
        ViewSpec(LOCAL_SIZE, 10, (0.05, 0.25), colour=Photometric(**jitter, blur=0.5)),
    )
    assert [spec.count for spec in build(local_crops_number=0).view_plan().views] == [1, 1]
    weaker = build(color_jitter_strength=0.5, blur_share=0.0).view_plan().views[1].colour
    halved = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.05}
    assert weaker == Photometric(**jitter | halved)


@pytest.mark.parametrize(("name", "encoder", "head"), [("vit_small", 21_665_664, 7_614_720)])
def test_published_sizes(name: str, encoder: int, head: int) -> None:
    config = IBOTConfig(shared_head=True)
    with torch.device("meta"):
        method = IBOT(config, build_encoder(ModelConfig(name=name), 224, device="meta"), 224, MEAN, STD)
    assert sum(parameter.numel() for parameter in method.teacher.parameters()) == encoder
    assert sum(parameter.numel() for parameter in method.head.parameters()) == head
    assert method.num_outputs == 8192 and method.main_role == "teacher"


def test_the_temperatures_say_how_long_a_run_must_be() -> None:
    assert IBOTConfig().least_epochs == 30
    assert IBOTConfig(pred_start_epoch=50).least_epochs == 80
    assert IBOTConfig(pred_start_epoch=50, lambda2=0).least_epochs == 30


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"out_dim": 1}, "greater than or equal to 2"),
        ({"global_crops_number": 1}, "got 1 without local crops"),
        ({"mask": [BLOCKS, BLOCKS, BLOCKS]}, "got 3 masks for 2 global crops"),
        ({"lambda1": 0, "lambda2": 0}, "there is no loss"),
        ({"patch_out_dim": 7}, "patch_out_dim: got 7, but where student or teacher share"),
        ({"mask": HIGH, "contrastive": {}, "global_crops_number": 3}, "exactly 2 global crops"),
        ({"mask": HIGH, "contrastive": {}, "lambda2": 0}, "lambda2 = 0 there is no head"),
        ({"local_crops_scale": (0.4, 0.05)}, "must not be larger"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        IBOTConfig.model_validate(HEAD | settings)


DINO = {"lambda2": 0, "use_masked_im_modeling": False}
NO_LAST_LAYER = {"head_bottleneck_dim": 0}


@pytest.mark.parametrize(
    ("settings", "idle", "reason"),
    [
        ({"lambda1": 0}, {"teacher_temp": 0.07}, "lambda1=0"),
        ({"lambda1": 0}, {"warmup_teacher_temp": 0.05}, "lambda1=0"),
        ({"lambda1": 0}, {"local_crops_number": 2}, "lambda1=0"),
        ({"lambda2": 0}, {"teacher_patch_temp": 0.05}, "lambda2=0"),
        ({"lambda2": 0}, {"warmup_teacher_patch_temp": 0.05}, "lambda2=0"),
        ({"lambda2": 0}, {"patch_out_dim": 8000, "out_dim": 8000}, "lambda2=0"),
        ({"lambda2": 0}, {"shared_head": True}, "lambda2=0"),
        ({"lambda2": 0}, {"shared_head_teacher": False}, "lambda2=0"),
        (NO_LAST_LAYER, {"shared_head": True}, "head_bottleneck_dim=0"),
        (NO_LAST_LAYER, {"shared_head_teacher": False}, "head_bottleneck_dim=0"),
        (NO_LAST_LAYER, {"patch_out_dim": 8000, "out_dim": 8000}, "head_bottleneck_dim=0"),
        (NO_LAST_LAYER, {"norm_last_layer": False}, "head_bottleneck_dim=0"),
        (NO_LAST_LAYER, {"freeze_last_layer": 3}, "head_bottleneck_dim=0"),
        ({"head_num_layers": 1}, {"norm_in_head": "ln"}, "head_num_layers=1"),
        ({"head_num_layers": 1}, {"act_in_head": "relu"}, "head_num_layers=1"),
        ({"head_num_layers": 1}, {"head_hidden_dim": 64}, "head_num_layers=1"),
        ({}, {"local_crops_scale": (0.05, 0.25)}, "local_crops_number=0"),
        ({}, {"local_crop_size": 64}, "local_crops_number=0"),
        (DINO, {"mask": HIGH}, "lambda2=0 and use_masked_im_modeling=false"),
        (DINO, {"pred_start_epoch": 5}, "lambda2=0 and use_masked_im_modeling=false"),
        ({"warmup_teacher_temp_epochs": 0}, {"warmup_teacher_temp": 0.05}, "warmup_teacher_temp_epochs=0"),
        (
            {"warmup_teacher_temp_epochs": 0},
            {"warmup_teacher_patch_temp": 0.05},
            "warmup_teacher_temp_epochs=0 and pred_start_epoch=0",
        ),
        ({"centering": False}, {"center_momentum": 0.99}, "centering=false"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, object], idle: dict[str, object], reason: str) -> None:
    key = next(iter(idle))
    with pytest.raises(ValidationError, match=rf"{key}: got .*, but it has no effect with {re.escape(reason)}\. Leave"):
        IBOTConfig.model_validate(settings | idle)
    spelt_out = IBOTConfig.model_validate(settings).model_dump(mode="json")
    assert IBOTConfig.model_validate_json(json.dumps(spelt_out), strict=True).model_dump(mode="json") == spelt_out


def test_all_settings_without_effect_are_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        IBOTConfig.model_validate(DINO | {"mask": HIGH, "teacher_patch_temp": 0.05, "shared_head": True})
    for words in (
        "shared_head: got true, but it has no effect with lambda2=0. Leave it out (its default is false).",
        "teacher_patch_temp: got 0.05, but it has no effect with lambda2=0. Leave it out (its default is 0.07).",
        "mask: got {kind: attention, ...}, but it has no effect with lambda2=0 and use_masked_im_modeling=false. "
        "Leave it out (its default is {kind: block}).",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mask": HIGH, "contrastive": {"k_anchors": 9}}, r"k_anchors: got 9, .* Write 1 to 8"),
        ({"contrastive": {}}, r"method\.contrastive: it selects patches by the scores of attention masks"),
        ({"mask": HIGH | {"layer": 4}}, r"method\.mask\.layer: got 4, but the encoder has blocks 1 to 3"),
        ({"mask": [HIGH, HIGH | {"layer": 9}]}, r"method\.mask\[1\]\.layer: got 9"),
        ({"mask": HIGH | {"select": "hint"}}, r"method\.mask\.show_max: 0\.1 of 16 patches, .* never shows one"),
        ({"mask": {"kind": "block", "pred_ratio": 0.01}}, r"method\.mask\.pred_ratio: 0\.01 of 16 patches"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(**settings)


def test_what_the_model_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"method\.mask\.kind: got attention, but this model has no class token"):
        build(SWIN, mask=HIGH)
    with pytest.raises(ShapeError, match="20x20 pixels can't be cut into patches of 8"):
        build(local_crop_size=20)


@pytest.mark.parametrize("norm", ["bn", "syncbn"])
def test_one_image_is_too_few_for_batch_norms_of_class_tokens(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(**DINO, norm_in_head=norm, global_crops_number=1, local_crops_number=1, local_crop_size=8)
    sentence = rf"train\.batch_size: 1 image .*norm_in_head={norm} compares"
    with pytest.raises(ConfigError, match=sentence):
        method(make_batch(method, 1), progress())
    check_step(method, make_batch(method, 2))
    if norm == "bn":  # Images of another process are no help.
        monkeypatch.setattr("halfseen.methods.ibot.process_count", lambda: 2)
        with pytest.raises(ConfigError, match=sentence):
            method(make_batch(method, 1), progress())


def test_a_local_crop_that_is_not_whole_patches_is_named() -> None:
    with pytest.raises(ShapeError, match=r"method\.local_crop_size: a picture of 9x9 pixels can't be cut"):
        build(local_crops_number=1, local_crop_size=9)

"""Masks from attention: scores against plain loops, counts, subsets, and draws that don't depend on the processes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from halfseen.errors import ConfigError
from halfseen.masking.attention import (
    AttentionMask,
    attention_mask,
    attention_scores,
    draw_attention,
    head_scores,
    hide_by_score,
    reveal_hints,
    rollout_blocks,
    rollout_scores,
)
from halfseen.types import Progress

PROGRESS = Progress(step=3, total_steps=10, steps_per_epoch=5, seed=1, row_start=0, global_batch_size=8)


def attention_maps(depth: int, B: int, heads: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(depth, B, heads, T, T, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


@pytest.mark.parametrize("num_prefix", [1, 3])
def test_scores_are_means_over_heads_of_the_patches_only(num_prefix: int) -> None:
    rows = attention_maps(1, 2, 3, num_prefix + 4)[0, :, :, 0]
    patches = rows[:, :, num_prefix:].double()
    for score, expected in {
        "raw": patches.mean(1),
        "log": patches.log().mean(1),
        "power": patches.sqrt().mean(1),
    }.items():
        torch.testing.assert_close(head_scores(rows, 4, score).double(), expected, rtol=1e-5, atol=0)


@given(depth=st.integers(1, 5), T=st.integers(2, 9), seed=st.integers(0, 99))
def test_rollout_is_the_class_row_of_the_whole_product(depth: int, T: int, seed: int) -> None:
    matrices = attention_maps(depth, 2, 1, T, seed)[:, :, 0]
    product = torch.eye(T, dtype=torch.float64).expand(2, T, T)
    for matrix in matrices:
        product = product @ (matrix.double() + torch.eye(T))
    scores = rollout_scores(list(matrices), T - 1)
    torch.testing.assert_close(scores.double(), product[:, 0, 1:], rtol=1e-5, atol=0)


def test_rollout_stays_float32_under_autocast() -> None:
    matrices = list(attention_maps(3, 2, 1, 5)[:, :, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = rollout_scores(matrices, 4)
    assert torch.equal(under, rollout_scores(matrices, 4)) and under.dtype == torch.float32


def test_rollout_takes_thirds_of_the_depth_in_the_order_asked_for() -> None:
    assert rollout_blocks("all", "paper", 3) == (3, 2, 1)
    assert rollout_blocks("mid", "reference", 12) == (5, 6, 7, 8)
    assert rollout_blocks("last", "reference", 12) == (9, 10, 11, 12)
    assert rollout_blocks("last", "reference", 12, last_descends=True) == (12, 11, 10, 9)
    assert rollout_blocks("mid", "reference", 12, last_descends=True) == (5, 6, 7, 8)
    assert rollout_blocks("last", "paper", 24) == tuple(range(24, 16, -1))


@given(depth=st.integers(1, 40), blocks=st.sampled_from(["all", "mid", "last"]))
def test_rollout_never_runs_out_of_blocks(depth: int, blocks: str) -> None:
    chosen = rollout_blocks(blocks, "reference", depth)
    assert chosen and set(chosen) <= set(range(1, depth + 1))


def test_leaky_sums_run_over_earlier_images() -> None:
    rows = attention_maps(1, 4, 2, 5)[0, :, :, 0]
    clean = AttentionMask(score="log")
    leaky = AttentionMask(score="log", leaky_batch_accumulation=True)
    own, summed = (attention_scores(mask, {6: rows}, 4, depth=6) for mask in (clean, leaky))
    torch.testing.assert_close(summed, own.cumsum(0))
    assert torch.equal(own[2:], attention_scores(clean, {6: rows[2:]}, 4, depth=6))


def test_raw_scores_are_the_mean_over_the_heads() -> None:
    maps = attention_maps(1, 2, 3, 5)[0]
    found = attention_scores(AttentionMask(layer=2), {2: maps[:, :, 0]}, 4, depth=6)
    torch.testing.assert_close(found, maps[:, :, 0, 1:].mean(1))


@given(N=st.integers(1, 30), count=st.integers(0, 30), lowest=st.booleans(), seed=st.integers(0, 99))
def test_hidden_patches_are_the_extremes_and_exact_in_number(N: int, count: int, lowest: bool, seed: int) -> None:
    scores = torch.rand(3, N, generator=torch.Generator().manual_seed(seed)).mul(5).round()  # with ties
    count = min(count, N)
    mask = hide_by_score(scores, count, lowest)
    assert (mask.sum(1) == count).all()
    assert torch.equal(mask, hide_by_score(scores, torch.full((3,), count), lowest))
    signed = -scores if lowest else scores
    least_hidden = signed.masked_fill(~mask, math.inf).amin(1)
    most_visible = signed.masked_fill(mask, -math.inf).amax(1)
    assert (least_hidden >= most_visible).all()


def test_underflowed_logarithms_are_hidden_last() -> None:
    scores = torch.tensor([[-math.inf, -3.0, -math.inf, -2.0]])
    assert hide_by_score(scores, 2).tolist() == [[False, True, False, True]]


@given(
    N=st.integers(2, 30), hidden=st.floats(0, 1), top=st.floats(0, 1), shown=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_hints_are_shown_within_the_top_set_only(N: int, hidden: float, top: float, shown: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, noise = torch.rand(4, N, generator=generator), torch.rand(4, N, generator=generator)
    base, top_set = hide_by_score(scores, int(N * hidden)), hide_by_score(scores, int(N * top))
    num_shown = int(shown * int(N * top))
    mask = reveal_hints(base, top_set, noise, num_shown)
    revealed = base & ~mask
    assert not (mask & ~base).any()
    assert not (revealed & ~top_set).any()
    if num_shown == 0:
        assert torch.equal(mask, base)
    if int(N * top) <= int(N * hidden):
        assert (revealed.sum(1) == num_shown).all()
    assert torch.equal(mask, reveal_hints(base, top_set, noise, torch.full((4,), num_shown)))


CONFIGS = [
    AttentionMask(),
    AttentionMask(select="hint", ratio_scope="image", show_max=0.5),
    AttentionMask(select="low", pred_ratio=(0.0, 0.3), pred_ratio_var=(0.0, 0.2), masking_prob=1.0),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_draws_don_t_depend_on_processes_and_micro_batches(config: AttentionMask) -> None:
    whole = draw_attention(config, PROGRESS, 8, range(2), 16)
    for start, stop in ((0, 3), (3, 8)):
        part = draw_attention(config, replace(PROGRESS, row_start=start), stop - start, range(2), 16)
        for ours, all_rows in zip(part, whole, strict=True):
            if all_rows is None:
                assert ours is None
            else:
                assert torch.equal(ours.unflatten(0, (2, -1)), all_rows.unflatten(0, (2, -1))[:, start:stop])
    later = [draw_attention(config, replace(PROGRESS, step=step), 8, range(2), 16) for step in range(4, 9)]
    assert any(not torch.equal(draws.num_hidden, whole.num_hidden) for draws in later)


def test_one_ratio_per_step_or_one_per_crop() -> None:
    per_step = draw_attention(AttentionMask(), PROGRESS, 8, range(3), 1000)
    per_crop = draw_attention(AttentionMask(ratio_scope="image"), PROGRESS, 8, range(3), 1000)
    assert len(per_step.num_hidden.unique()) == 1 and len(per_crop.num_hidden.unique()) > 15
    assert not torch.equal(per_step.num_hidden, per_step.num_shown)


def test_draws_have_the_shares_of_the_paper() -> None:
    rows = 6000
    config = AttentionMask(select="hint", ratio_scope="image")
    draws = draw_attention(config, replace(PROGRESS, global_batch_size=rows), rows, range(1), 196)
    # Four standard deviations of a fair coin; counts of hidden and shown patches as the paper's recipe has them.
    assert abs(float(draws.keep.float().mean()) - 0.5) < 4 * 0.5 / rows**0.5
    assert (int(draws.num_hidden.min()), int(draws.num_hidden.max())) == (19, 97)
    assert (int(draws.num_shown.min()), int(draws.num_shown.max())) == (1, 9)
    assert abs(float(draws.num_hidden.float().mean()) - 58.3) < 4 * (0.4 * 196 / 12**0.5) / rows**0.5
    correlation = torch.corrcoef(torch.stack([draws.num_hidden, draws.num_shown]).float())[0, 1]
    assert abs(float(correlation)) < 4 / rows**0.5


def test_masks_are_kept_for_the_chosen_images_and_hints_are_fewer() -> None:
    scores = torch.rand(8, 100, generator=torch.Generator().manual_seed(0))
    high = AttentionMask(pred_ratio=0.4, pred_ratio_var=0.1)
    hint = AttentionMask(select="hint", pred_ratio=0.4, pred_ratio_var=0.1, show_max=0.2)
    draws = draw_attention(hint, PROGRESS, 8, range(1), 100)
    masks = {config.select: attention_mask(config, scores, draws) for config in (hint,)}
    masks["high"] = attention_mask(high, scores, draws._replace(hint_noise=None))
    assert 0 < draws.keep.sum() < 8
    assert torch.equal(masks["high"].any(1), draws.keep)
    assert torch.equal(masks["high"].sum(1), draws.num_hidden * draws.keep)
    assert torch.equal(masks["hint"].sum(1), (draws.num_hidden - draws.num_shown) * draws.keep)
    low = attention_mask(AttentionMask(select="low"), scores, draws._replace(hint_noise=None))
    assert not (low & masks["high"]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": 0.25}, r"power: got 0\.25, but it has no effect with score=raw"),
        ({"score": "rollout", "layer": 2}, "layer: got 2, but it has no effect with score=rollout"),
        ({"rollout": "last"}, "rollout: got last, but it has no effect with score=raw"),
        ({"rollout_order": "reference", "score": "log"}, "rollout_order: got reference"),
        ({"leaky_batch_accumulation": True}, "leaky_batch_accumulation: got true, but it has no effect with score=raw"),
        ({"show_max": 0.2}, "show_max: got 0.2, but it has no effect with select=high"),
        ({"pred_ratio": 0.1}, r"pred_ratio_var: got 0\.2 around a pred_ratio of 0\.1"),
        ({"masking_prob": 0.0}, "greater than 0"),
        ({"layer": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AttentionMask(**settings)


def test_settings_survive_being_written_and_read() -> None:
    for config in (*CONFIGS, AttentionMask(score="power", power=0.3, layer=5), AttentionMask(score="rollout")):
        assert AttentionMask.model_validate_json(config.model_dump_json(), strict=True) == config


def test_what_does_not_fit_an_encoder_is_refused() -> None:
    AttentionMask(layer=12).check(196, 12, "method.mask")
    with pytest.raises(ConfigError, match=r"method\.mask\.layer: got 12, but the encoder has blocks 1 to 6\."):
        AttentionMask(layer=12).check(196, 6, "method.mask")
    AttentionMask(select="hint", show_max=0.13).check(16, 6, "method.mask")
    with pytest.raises(
        ConfigError, match=r"show_max: 0\.1 of 16 patches, times .* 0\.5, never shows one.* least 0\.13,"
    ):
        AttentionMask(select="hint").check(16, 6, "method.mask")
    with pytest.raises(ConfigError, match=r"pred_ratio: 0\.3 of 3 patches.* hides none.* at least 0\.334"):
        AttentionMask(pred_ratio=0.3, pred_ratio_var=0.0).check(3, 6, "method.mask")

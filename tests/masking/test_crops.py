"""Masks of several crops: from the loader, from attention, from mixtures; which attention they need."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from halfseen.errors import ConfigError
from halfseen.masking.attention import AttentionMask
from halfseen.masking.block import BlockMask, RandomMask
from halfseen.masking.crops import (
    MASK_KEY,
    PART_KEY,
    AttentionNeed,
    CropMasks,
    LoaderMasks,
    MaskSetting,
    MixtureMask,
    attention_need,
    needs_attention,
)
from halfseen.ops.randomness import numpy_generator
from halfseen.types import Progress

GRID, DEPTH, ROWS = (4, 4), 6, 8
PROGRESS = Progress(step=0, total_steps=4, steps_per_epoch=4, seed=0, row_start=0, global_batch_size=ROWS)
SURE = {"masking_prob": 1.0, "pred_ratio": 0.5, "pred_ratio_var": 0.0}
RANDOM = RandomMask(pred_ratio=0.25, pred_ratio_var=0.0)


def mixture(*parts: tuple[float, object]) -> MixtureMask:
    return MixtureMask.model_validate({"parts": [{"probability": share, "mask": mask} for share, mask in parts]})


def masks_of(config: object, num_crops: int = 2, has_class_token: bool = True) -> CropMasks:
    return CropMasks(config, num_crops, GRID, DEPTH, has_class_token)


def attention_for(masks: CropMasks, rows: int = ROWS) -> list[Tensor]:
    """Class rows for all crops, different for every block."""
    generator = torch.Generator().manual_seed(0)
    assert masks.need is not None and set(masks.need.rows) == {"class"}
    return [torch.rand(len(masks.crops) * rows, 2, 17, generator=generator) for _ in masks.need.layers]


def extras_for(masks: CropMasks, rows: int = ROWS) -> dict[str, Tensor]:
    """What the loader stacks for a batch."""
    if masks.extras is None:
        return {}
    drawn = [masks.extras((), numpy_generator(0, "test", image)) for image in range(rows)]
    return {key: torch.from_numpy(np.stack([each[key] for each in drawn])) for key in drawn[0]}


def test_masks_of_the_loader_are_stacked_crop_by_crop() -> None:
    masks = masks_of((RANDOM, BlockMask(pred_ratio=0.5)))
    assert masks.need is None
    extras = extras_for(masks)
    assert extras[MASK_KEY].shape == (ROWS, 2, 16) and extras.keys() == {MASK_KEY}
    mask = masks.draw((), extras, PROGRESS)
    assert torch.equal(mask[:ROWS], extras[MASK_KEY][:, 0]) and torch.equal(mask[ROWS:], extras[MASK_KEY][:, 1])
    assert (mask[:ROWS].sum(1) == 4).all()


def test_loader_masks_are_a_function_of_the_generator_and_can_be_pickled() -> None:
    loader = LoaderMasks((BlockMask(pred_ratio=0.5), mixture((0.5, RANDOM), (0.5, BlockMask()))), (14, 14))
    copy = pickle.loads(pickle.dumps(loader))
    first, second, other = (
        drawer((), numpy_generator(1, image)) for drawer, image in ((loader, 0), (copy, 0), (loader, 1))
    )
    np.testing.assert_array_equal(first[MASK_KEY], second[MASK_KEY])
    assert not np.array_equal(first[MASK_KEY], other[MASK_KEY])
    assert not np.array_equal(first[MASK_KEY][0], first[MASK_KEY][1])


def test_a_crop_may_be_masked_by_attention_and_another_by_the_loader() -> None:
    masks = masks_of((AttentionMask(**SURE), RANDOM))
    mask = masks.draw(attention_for(masks), extras_for(masks), PROGRESS)
    assert mask.sum(1).tolist() == [8] * ROWS + [4] * ROWS


def test_a_single_mask_equals_the_same_one_for_each_crop() -> None:
    config = AttentionMask(select="hint", show_max=0.5, ratio_scope="image")
    one, each = masks_of(config, 3), masks_of((config,) * 3, 3)
    attention = attention_for(one)
    mask = one.draw(attention, {}, PROGRESS)
    assert torch.equal(mask, each.draw(attention, {}, PROGRESS))
    assert torch.equal(one.pair_scores(attention), each.pair_scores(attention))
    assert one.extras is None


def test_each_crop_looks_at_its_own_block() -> None:
    masks = masks_of((AttentionMask(**SURE), AttentionMask(layer=2, **SURE)))
    assert masks.need == AttentionNeed((2, 6), ("class", "class"))
    second, last = attention_for(masks)
    mask = masks.draw((second, last), {}, PROGRESS)
    scores = torch.cat([last[:ROWS], second[ROWS:]])[..., 1:].mean(1)
    assert torch.equal(mask, scores >= scores.topk(8, dim=1).values[:, -1:])
    torch.testing.assert_close(masks.pair_scores((second, last)), scores)


def test_masks_don_t_depend_on_micro_batches() -> None:
    config = mixture((0.5, AttentionMask(ratio_scope="image")), (0.5, RANDOM))
    masks = masks_of((config, AttentionMask(layer=3)))
    attention, extras = attention_for(masks), extras_for(masks)
    whole = masks.draw(attention, extras, PROGRESS).unflatten(0, (2, ROWS))
    for rows in (slice(0, 3), slice(3, ROWS)):
        maps = [each.unflatten(0, (2, ROWS))[:, rows].flatten(0, 1) for each in attention]
        part = {key: value[rows] for key, value in extras.items()}
        mask = masks.draw(maps, part, replace(PROGRESS, row_start=rows.start))
        assert torch.equal(mask.unflatten(0, (2, -1)), whole[:, rows])


def test_leaky_sums_run_through_all_crops_or_start_anew_in_each() -> None:
    config = AttentionMask(score="log", leaky_batch_accumulation=True, **SURE)
    single, each = masks_of(config), masks_of((config, config))
    (attention,) = attention_for(single)
    clean = attention[..., 1:].log().mean(1)
    torch.testing.assert_close(single.pair_scores([attention]), clean.cumsum(0))
    restarted = clean.unflatten(0, (2, ROWS)).cumsum(1).flatten(0, 1)
    torch.testing.assert_close(each.pair_scores([attention]), restarted)
    for masks, scores in ((single, clean.cumsum(0)), (each, restarted)):
        mask = masks.draw([attention], {}, PROGRESS)
        assert torch.equal(mask, scores >= scores.topk(8, dim=1).values[:, -1:])


def test_mixtures_choose_with_their_probabilities() -> None:
    rows = 2000
    config = mixture((0.7, RANDOM), (0.3, RandomMask(pred_ratio=0.75, pred_ratio_var=0.0)))
    counts = extras_for(masks_of(config), rows)[MASK_KEY].sum(-1)
    assert set(counts.unique().tolist()) == {4, 12}
    # Four standard deviations of 4,000 draws; the crops of an image choose independently.
    assert abs(float((counts == 4).float().mean()) - 0.7) < 4 * (0.21 / 4000) ** 0.5
    agree = float((counts[:, 0] == counts[:, 1]).float().mean())
    assert abs(agree - 0.58) < 4 * (0.58 * 0.42 / rows) ** 0.5


def test_mixtures_with_attention_hide_by_attention_where_it_was_chosen() -> None:
    masks = masks_of(mixture((0.5, AttentionMask(**SURE)), (0.5, RANDOM)))
    attention, extras = attention_for(masks), extras_for(masks)
    mask = masks.draw(attention, extras, PROGRESS)
    chosen = extras[PART_KEY].T.flatten()
    assert 0 < (chosen == 0).sum() < 2 * ROWS
    by_attention = masks_of(AttentionMask(**SURE)).draw(attention, {}, PROGRESS)
    assert torch.equal(mask[chosen == 0], by_attention[chosen == 0])
    assert torch.equal(mask[chosen == 1], extras[MASK_KEY].transpose(0, 1).flatten(0, 1)[chosen == 1])


def test_what_masks_need_of_the_teacher() -> None:
    rollout = AttentionMask(score="rollout", rollout="last")
    assert attention_need(BlockMask(), 12) is None and not needs_attention((BlockMask(), RANDOM))
    assert attention_need(AttentionMask(), 12) == AttentionNeed((12,), ("class",))
    assert attention_need(rollout, 12) == AttentionNeed((9, 10, 11, 12), ("head_mean",) * 4)
    assert needs_attention(mixture((0.5, BlockMask()), (0.5, rollout)))
    both = attention_need((rollout, AttentionMask(score="log"), AttentionMask(layer=3), AttentionMask()), 12)
    assert both == AttentionNeed((3, 9, 10, 11, 12, 12), ("class", *("head_mean",) * 3, "class", "head_mean"))


def test_crops_may_have_scores_of_either_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.rand(DEPTH, 2 * ROWS, 2, 17, 17, generator=generator).softmax(dim=-1)
    rollout, logarithm = AttentionMask(score="rollout", **SURE), AttentionMask(score="log", **SURE)

    def attention_of(masks: CropMasks) -> list[Tensor]:
        looks = {"class": matrices[:, :, :, 0], "head_mean": matrices.mean(2)}
        return [looks[rows][layer - 1] for layer, rows in zip(*masks.need, strict=True)]

    def draw(*config: AttentionMask) -> Tensor:
        masks = masks_of(config)
        return masks.draw(attention_of(masks), {}, PROGRESS)

    def pairs(*config: AttentionMask) -> Tensor:
        masks = masks_of(config)
        return masks.pair_scores(attention_of(masks))

    scores = pairs(rollout, logarithm)
    assert torch.equal(scores, torch.cat([pairs(rollout, rollout)[:ROWS], pairs(logarithm, logarithm)[ROWS:]]))
    mixed = draw(rollout, logarithm)
    assert torch.equal(mixed[:ROWS], draw(rollout, rollout)[:ROWS])
    assert torch.equal(mixed[ROWS:], draw(logarithm, logarithm)[ROWS:])
    assert not torch.equal(mixed, draw(rollout, rollout))
    assert not torch.equal(mixed, draw(logarithm, logarithm))


def test_samples_are_what_the_loader_draws() -> None:
    masks = masks_of(RANDOM)
    assert masks.sample(5, seed=1).sum(1).tolist() == [4] * 5
    assert torch.equal(masks.sample(5, seed=1), masks.sample(5, seed=1))
    assert masks_of(AttentionMask()).sample(5, seed=1) is None
    assert masks_of(mixture((0.5, BlockMask()), (0.5, AttentionMask()))).sample(5, seed=1) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ((RANDOM,) * 3, r"method\.mask: got 3 masks for 2 global crops"),
        ((RANDOM, AttentionMask(layer=9)), r"method\.mask\[1\]\.layer: got 9, but the encoder has blocks 1 to 6"),
        (RandomMask(pred_ratio=0.05, pred_ratio_var=0.0), r"method\.mask\.pred_ratio: 0\.05 of 16 patches"),
    ],
)
def test_masks_that_do_not_fit_are_refused(config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        masks_of(config)


def test_attention_needs_a_class_token_and_pairs_need_attention() -> None:
    with pytest.raises(ConfigError, match=r"method\.mask\.kind: got attention, but this model has no class token"):
        masks_of(AttentionMask(), has_class_token=False)
    masks_of(BlockMask(), has_class_token=False)
    masks_of(AttentionMask()).check_scored("method.contrastive")
    with pytest.raises(ConfigError, match=r"method\.contrastive: it selects patches by the scores of attention masks"):
        masks_of((AttentionMask(), BlockMask())).check_scored("method.contrastive")


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    mask: MaskSetting = BlockMask()


@pytest.mark.parametrize(
    "text",
    [
        '{"mask": {"kind": "block", "pred_ratio": [0, 0.3], "pred_ratio_var": [0, 0.2]}}',
        '{"mask": [{"kind": "attention", "layer": 5}, {"kind": "attention", "score": "rollout"}]}',
        '{"mask": {"kind": "mixture", "parts": [{"probability": 0.5, "mask": {"kind": "random"}}, '
        '{"probability": 0.5, "mask": {"kind": "attention"}}]}}',
    ],
)
def test_masks_are_read_and_written_as_settings(text: str) -> None:
    read = Settings.model_validate_json(text, strict=True)
    assert Settings.model_validate_json(read.model_dump_json(), strict=True) == read


def test_mixtures_whose_probabilities_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"parts: got probabilities that sum to 0\.9, expected 1\."):
        mixture((0.5, RANDOM), (0.4, BlockMask()))

"""Masks from attention and the contrastive term against recorded outputs of AttMask and of a thesis that builds on it.

Masks and patch numbers are equal; scores to 1e-5 relative, leaky sums of them to 1e-4, the contrastive term and its
losses to 1e-4 relative, tokens and attention of the backbone to 1e-5.
"""

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.backbones.vit import ViTEncoder
from halfseen.backbones.weights import import_checkpoint
from halfseen.masking.attention import (
    AttentionMask,
    attention_scores,
    head_scores,
    hide_by_score,
    reveal_hints,
    rollout_blocks,
    rollout_scores,
)
from halfseen.masking.crops import CropMasks
from halfseen.ops.contrastive import contrastive, select_pairs
from halfseen.ops.distillation import class_token_loss, patch_token_loss, teacher_probabilities
from halfseen.ops.patches import gather_tokens
from halfseen.types import Progress
from parity.discovery import companion, load_arrays, parity_files

STUDENT_TEMPERATURE = 0.1
THESIS_SEED = 7
ROLLOUTS = {"rollout_all_": "all", "rollout_mid_": "mid", "rollout_last": "last"}
PROGRESS = Progress(step=0, total_steps=1, steps_per_epoch=1, seed=0, row_start=0, global_batch_size=64)


class ThesisCase:
    """One of a thesis file's settings, with the attention that it needs.

    Attributes:
        mask: the setting, as it leaks between images in the reference.
        attention: what the teacher gives for it, both crops stacked.
    """

    def __init__(self, arrays: dict[str, np.ndarray], number: int) -> None:
        every = torch.from_numpy(arrays["attn"])  # [L, 2 B, heads, T, T]
        self.depth, _, _, tokens, _ = every.shape
        self.side = math.isqrt(tokens - 1)
        self.images = int(arrays["batch"])
        method = str(arrays["method"][number])
        settings: dict[str, object] = {"masking_prob": 1.0}
        if method in ROLLOUTS:
            settings |= {"score": "rollout", "rollout": ROLLOUTS[method], "rollout_order": "reference"}
        else:
            settings |= {"score": method.removesuffix("_raw"), "layer": int(arrays["layer"][number]) + 1}
        if method == "power":
            settings["power"] = float(arrays["power"][number])
        self.settings = settings | {"leaky_batch_accumulation": method in ("log_raw", "power")}
        self.mask = self.with_settings()
        need = self.crops(self.mask, self.mask).need
        looks = [(every[layer - 1], rows) for layer, rows in zip(*need, strict=True)]
        self.attention = [each.mean(1) if rows == "head_mean" else each[:, :, 0] for each, rows in looks]
        self.need = need

    def with_settings(self, **changed: object) -> AttentionMask:
        return AttentionMask.model_validate(self.settings | changed)

    def crops(self, *masks: AttentionMask) -> CropMasks:
        """Two masks: those of a per-crop run; one: a run with one strategy for both crops."""
        grid = (self.side, self.side)
        return CropMasks(masks if len(masks) > 1 else masks[0], 2, grid, self.depth, has_class_token=True)

    def scores(self, mask: AttentionMask, images: slice, last_descends: bool) -> Tensor:
        maps = {layer: rows[images] for layer, rows in zip(self.need.layers, self.attention, strict=True)}
        return attention_scores(mask, maps, self.side**2, self.depth, last_descends)

    def masks(self, crops: CropMasks) -> np.ndarray:
        """Masks as training draws them: bool [2, B, side, side]."""
        return crops.draw(self.attention, {}, PROGRESS).reshape(2, self.images, self.side, self.side).numpy()


@pytest.mark.parametrize("path", parity_files("attention_masking", "thesis_masks_"))
def test_scores_and_masks_of_every_strategy(path: Path) -> None:
    arrays = load_arrays(path)
    assert len(arrays["method"])
    for number in range(len(arrays["method"])):
        case = ThesisCase(arrays, number)
        first = slice(0, case.images)
        clean = case.with_settings(leaky_batch_accumulation=False)
        scores = {
            "multi": case.scores(case.mask, first, last_descends=True),
            "single": case.scores(case.mask, slice(None), last_descends=False),
            "perimage": case.scores(clean, first, last_descends=True),
        }
        leaky = case.mask.leaky_batch_accumulation
        for name, ours in scores.items():
            tolerance = {"rtol": 0.0, "atol": 1e-4} if leaky and name != "perimage" else {"rtol": 1e-5}
            np.testing.assert_allclose(ours.numpy(), arrays[f"m{number}_{name}_score"], **tolerance)

        for j, ratio in enumerate(arrays["ratios"].tolist()):
            fixed = {"pred_ratio": ratio, "pred_ratio_var": 0.0}
            mask, lowest = case.with_settings(**fixed), case.with_settings(**fixed, select="low")
            per_image = case.with_settings(**fixed, leaky_batch_accumulation=False)
            single = case.masks(case.crops(mask))
            recorded = {
                f"multi_mask_r{j}": case.masks(case.crops(mask, mask))[0],
                f"multi_mask_low_r{j}": case.masks(case.crops(lowest, lowest))[0],
                f"single_mask0_r{j}": single[0],
                f"single_mask1_r{j}": single[1],
                f"perimage_mask_r{j}": case.masks(case.crops(per_image, per_image))[0],
            }
            for name, ours in recorded.items():
                np.testing.assert_array_equal(ours, arrays[f"m{number}_{name}"], err_msg=f"m{number}_{name}")

        # The reference draws image by image: a ratio from NumPy, then a coin from Python's generator.
        ratios, coins = np.random.RandomState(THESIS_SEED), random.Random(THESIS_SEED)
        drawn = [(int(ratios.uniform(0.1, 0.5) * case.side**2), coins.randint(0, 1)) for _ in range(case.images)]
        num_hidden, keep = torch.tensor(drawn).unbind(1)
        seeded = hide_by_score(scores["multi"], num_hidden) & keep.bool().unsqueeze(1)
        np.testing.assert_array_equal(
            seeded.reshape(-1, case.side, case.side).numpy(), arrays[f"m{number}_seeded_mask"], err_msg=f"m{number}"
        )


@pytest.mark.parametrize("path", parity_files("attention_masking", "thesis_masks_"))
def test_pairs_of_the_contrastive_term(path: Path) -> None:
    arrays = load_arrays(path)
    for number in range(len(arrays["method"])):
        case = ThesisCase(arrays, number)
        scores = case.crops(case.mask).pair_scores(case.attention)
        sizes = [int(name.rpartition("k")[2]) for name in arrays if re.fullmatch(rf"m{number}_pos_idx_k\d+", name)]
        assert sizes
        for k in sizes:
            pairs = select_pairs(scores, k)
            np.testing.assert_array_equal(pairs.positive.numpy(), arrays[f"m{number}_pos_idx_k{k}"])
            np.testing.assert_array_equal(pairs.negative.numpy(), arrays[f"m{number}_neg_idx_k{k}"])


@pytest.mark.parametrize("path", parity_files("attention_masking", "rollout_"))
def test_rollout(path: Path) -> None:
    arrays = load_arrays(path)
    matrices = torch.from_numpy(load_arrays(path.with_name(str(arrays["attn_file"])))["attn"]).mean(2)
    depth, num_patches = len(matrices), matrices.shape[-1] - 1
    products = {
        "all_ascending": rollout_blocks("all", "reference", depth),
        "mid_ascending": rollout_blocks("mid", "reference", depth),
        "last_ascending": rollout_blocks("last", "reference", depth),
        "last_descending": rollout_blocks("last", "reference", depth, last_descends=True),
        "paper_all_descending_normalised": rollout_blocks("all", "paper", depth),
    }
    assert products.keys() == arrays.keys() - {"attn_file"}
    for name, blocks in products.items():
        scores = rollout_scores([matrices[block - 1] for block in blocks], num_patches).numpy()
        if name.endswith("normalised"):
            scores = scores / 2**depth
        np.testing.assert_allclose(scores, arrays[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", parity_files("attention_masking", "attmask"))
def test_attmask_high_and_low(path: Path) -> None:
    arrays = load_arrays(path)
    recorded_scores = torch.from_numpy(arrays["cls_attention"])
    images, num_patches = recorded_scores.shape
    scores = head_scores(torch.from_numpy(arrays["last_attention"])[:, :, 0], num_patches, "raw")
    np.testing.assert_allclose(scores.numpy(), recorded_scores.numpy(), rtol=1e-5)
    names = [name for name in arrays if name.startswith(("high_", "low_"))]
    assert names
    for name in names:
        select, ratio, probability, seed = re.fullmatch(r"(high|low)_r([\d.]+)_p([\d.]+)(?:_seed(\d+))?", name).groups()
        mask = hide_by_score(scores, int(num_patches * float(ratio)), lowest=select == "low")
        if seed is not None:
            uniform = torch.rand(images, generator=torch.Generator().manual_seed(int(seed)))
            np.testing.assert_array_equal(uniform.numpy(), arrays[f"bernoulli_uniform_seed{seed}"])
            mask &= (uniform <= float(probability)).unsqueeze(1)
        np.testing.assert_array_equal(mask.numpy(), arrays[name], err_msg=name)


@pytest.mark.parametrize("path", parity_files("attention_masking", "attmask"))
def test_attmask_hints(path: Path) -> None:
    arrays = load_arrays(path)
    scores = torch.from_numpy(arrays["cls_attention"])
    images, num_patches = scores.shape
    cases = sorted({name.split("_")[0] for name in arrays if re.match(r"hint\d+_", name)})
    assert cases
    for case in cases:
        ratio, show_ratio, show_max = arrays[f"{case}_args"].tolist()
        num_shown = int(show_ratio * num_patches)
        base = hide_by_score(scores, int(num_patches * ratio))
        top = hide_by_score(scores, int(num_patches * show_max))
        np.testing.assert_array_equal(base.numpy(), arrays[f"{case}_base"])
        np.testing.assert_array_equal(top.numpy(), arrays[f"{case}_topset"])

        seeded = [name for name in arrays if re.fullmatch(rf"{case}_p[\d.]+_seed\d+", name)]
        assert seeded
        for name in seeded:
            probability, seed = re.fullmatch(rf"{case}_p([\d.]+)_seed(\d+)", name).groups()
            generator = torch.Generator().manual_seed(int(seed))
            keep = torch.rand(images, generator=generator) <= float(probability)
            torch.rand(images, generator=generator)  # The top set's coin, drawn and not used.
            noise = torch.zeros(images, num_patches)
            if num_shown:
                noise.scatter_(1, torch.multinomial(top.float(), num_shown, generator=generator), 0.5)
            mask = reveal_hints(base, top, noise, num_shown) & keep.unsqueeze(1)
            np.testing.assert_array_equal(mask.numpy(), arrays[name], err_msg=name)

        # Our own draws: as often as the original's, and never outside of what is both top and hidden.
        draws, generator = 400, torch.Generator().manual_seed(0)
        noise = torch.rand(draws, images, num_patches, generator=generator).flatten(0, 1)
        shown = base.repeat(draws, 1) & ~reveal_hints(base.repeat(draws, 1), top.repeat(draws, 1), noise, num_shown)
        count = shown.unflatten(0, (draws, images)).sum(0)
        share = num_shown / top[0].sum()
        expected = draws * share * (top & base)
        spread = 5 * float(draws * share * (1 - share)) ** 0.5
        assert ((count - expected).abs() <= spread).all()
        np.testing.assert_array_equal(count.numpy() > 0, arrays[f"{case}_reveal_count_400"] > 0)
        assert np.abs(arrays[f"{case}_reveal_count_400"] - expected.numpy()).max() <= spread


@pytest.mark.parametrize("path", parity_files("attention_masking", "contrastive"))
def test_contrastive_term_and_the_losses_beside_it(path: Path) -> None:
    arrays = load_arrays(path)
    cases = sorted({name.split("_")[0] for name in arrays if name.endswith("_config")})
    assert cases
    for case in cases:
        read = {name.removeprefix(f"{case}_"): array for name, array in arrays.items() if name.startswith(f"{case}_")}
        images, _, _, k, tau, scale, _ = read["config"].tolist()
        images = int(images)
        given = {name: torch.from_numpy(array) for name, array in read.items() if name.startswith(("stu", "teach"))}
        temperature = float(read["patch_temp"])
        no_center = torch.zeros(given["teacher_cls"].shape[-1])
        targets = teacher_probabilities(given["teacher_patch"], torch.from_numpy(read["center2_before"]), temperature)
        pairs = [torch.from_numpy(read[name]) for name in ("pos_idx", "neg_idx")]
        assert all(ids.shape == (2 * images, int(k)) for ids in pairs)

        def term(features: Tensor, pairs=pairs, images=images, tau=tau, scale=scale) -> Tensor:
            return scale * contrastive(*(gather_tokens(features, ids).unflatten(0, (2, images)) for ids in pairs), tau)

        mask = torch.cat([torch.from_numpy(read[f"mask{crop}"]).flatten(1) for crop in range(2)])
        losses = {
            "contrastive": term(targets),
            "loss_cls": class_token_loss(
                teacher_probabilities(given["teacher_cls"], no_center, temperature).unflatten(0, (2, images)),
                torch.cat([given["student_cls"], given["student_local_cls"]]).unflatten(0, (-1, images)),
                STUDENT_TEMPERATURE,
            ),
            "loss_patch": patch_token_loss(
                targets[mask],
                given["student_patch"][mask],
                STUDENT_TEMPERATURE,
                mask.nonzero()[:, 0],
                len(mask),
            ),
        }
        for name, ours in losses.items():
            np.testing.assert_allclose(ours.numpy(), read[name], rtol=1e-4, err_msg=f"{case}_{name}")
        np.testing.assert_allclose(sum(losses.values()).numpy(), read["loss"], rtol=1e-4, err_msg=case)
        assert losses["contrastive"].requires_grad == bool(read["contrastive_requires_grad"])
        student = given["student_patch"].clone().requires_grad_()
        assert term(student.softmax(-1)).requires_grad


@pytest.mark.parametrize("path", parity_files("attention_masking", "vit12_attention"))
def test_attention_of_every_block(path: Path) -> None:
    arrays = load_arrays(path)
    attention = arrays["attention"]
    weights = companion(path.with_suffix(".safetensors"), "vit12_attention", "vit12_backbone")
    encoder = import_checkpoint(weights, num_heads=attention.shape[2]).build().eval()
    assert isinstance(encoder, ViTEncoder) and encoder.num_layers == len(attention)
    images, blocks = torch.from_numpy(arrays["images"]), range(1, len(attention) + 1)
    with torch.no_grad():
        features = encoder(images, attention_layers=blocks, attention_rows="class")
        means = encoder(images, attention_layers=blocks, attention_rows="head_mean").attention
        whole = [encoder.attention(images, block) for block in blocks]
    tokens = torch.cat([features.prefix, features.patches], dim=1)
    np.testing.assert_allclose(tokens.numpy(), arrays["tokens"], rtol=0, atol=1e-5)
    for recorded, row, mean, every in zip(attention, features.attention, means, whole, strict=True):
        np.testing.assert_allclose(every.numpy(), recorded, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row.numpy(), recorded[:, :, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(mean.numpy(), recorded.mean(1), rtol=0, atol=1e-5)

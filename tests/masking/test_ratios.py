"""Shares that masks hide: which settings are possible, and what is drawn."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ConfigError
from halfseen.masking.ratios import check_hides, draw_ratio, ratio_ranges, ratios_from_noise


@given(
    ranges=st.lists(st.tuples(st.floats(0.2, 0.8), st.floats(0, 0.2)), min_size=1, max_size=3), seed=st.integers(0, 99)
)
def test_shares_lie_in_one_of_the_ranges(ranges: list[tuple[float, float]], seed: int) -> None:
    ratios, widths = (tuple(column) for column in zip(*ranges, strict=True))
    noise = torch.rand(50, 2, generator=torch.Generator().manual_seed(seed))
    generator = random.Random(seed)
    drawn = [
        *ratios_from_noise(ratios, widths, noise).tolist(),
        *(draw_ratio(ratios, widths, generator) for _ in noise),
    ]
    for share in drawn:
        assert any(ratio - width - 1e-12 <= share <= ratio + width + 1e-12 for ratio, width in ranges)


def test_fixed_shares_are_exact_and_draw_nothing() -> None:
    generator = random.Random(1)
    before = generator.getstate()
    assert draw_ratio(0.3, 0.0, generator) == 0.3
    assert generator.getstate() == before
    assert ratios_from_noise(0.3, 0.0, torch.rand(4, 2)).tolist() == [0.3] * 4


def test_of_a_list_each_entry_is_as_likely() -> None:
    noise = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0))
    drawn = ratios_from_noise((0.0, 0.3), (0.0, 0.2), noise)
    hidden = drawn[drawn > 0]
    # Four standard deviations of 20,000 fair coins, and of the mean of 10,000 numbers uniform in [0.1, 0.5].
    assert abs(len(hidden) / len(drawn) - 0.5) < 4 * 0.5 / 20_000**0.5
    assert abs(float(hidden.mean()) - 0.3) < 4 * (0.4 / 12**0.5) / 10_000**0.5


@pytest.mark.parametrize(
    ("ratio", "width", "message"),
    [
        (0.3, (0.1,), "got a list of 1 for 1 pred_ratio"),
        ((0.1, 0.3), (0.1, 0.1, 0.1), "got a list of 3 for 2 pred_ratio"),
        (0.3, 0.4, r"got 0\.4 around a pred_ratio of 0\.3, but -0\.1 to 0\.7 must lie .* Write at most 0\.3"),
        (0.8, 0.3, r"0\.5 to 1\.1 must lie within 0 and 1"),
        ((0.0, 0.3), 0.2, r"got 0\.2 around a pred_ratio of 0, but -0\.2 to 0\.2"),
    ],
)
def test_impossible_ranges_are_refused(ratio: object, width: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"pred_ratio_var: .*{message}"):
        ratio_ranges(ratio, width)


def test_one_width_counts_for_all() -> None:
    assert ratio_ranges((0.2, 0.3), 0.1) == ((0.2, 0.1), (0.3, 0.1))


def test_a_share_that_never_hides_a_patch_is_refused() -> None:
    check_hides(0.3, 0.2, 2, "method.mask")
    check_hides(0.0, 0.0, 2, "method.mask")
    with pytest.raises(ConfigError, match=r"method\.mask\.pred_ratio: 0\.5 of 1 patches.* at least 1, smaller"):
        check_hides(0.3, 0.2, 1, "method.mask")

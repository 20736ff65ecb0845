"""The cost of all analyses is measured part by part."""

from benchmarks.analysis import measure


def test_all_passes_but_noise_are_in_the_bill() -> None:
    cost = measure("timm:vit_tiny_patch16_224", 6, image_size=32)
    assert set(cost.parts) == {"shared pass", "shared results", "layers", "masking", "reconstruction"}
    assert 0 < cost.bare < cost.whole and sum(cost.parts.values()) < cost.whole
    assert cost.peak > 1e8

"""The kept tokens are the most attended ones and hold about the share that was asked for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.ops.attention_mass import kept_mass


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 100))
def test_the_most_attended_tokens_hold_the_share(share: float, seed: int) -> None:
    attention = torch.rand(3, 40, generator=torch.Generator().manual_seed(seed))
    kept = kept_mass(attention, share)
    mass = (attention * kept).sum(dim=1) / attention.sum(dim=1)
    most = attention.amax(dim=1) / attention.sum(dim=1)
    assert (mass >= share - 1e-5).all()
    assert (mass <= share + most + 1e-5).all()
    for head, chosen in zip(attention, kept, strict=True):
        assert chosen.all() or head[chosen].min() >= head[~chosen].max()


def test_a_shuffled_map_gives_a_shuffled_mask() -> None:
    attention = torch.rand(2, 25, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(25, generator=torch.Generator().manual_seed(2))
    assert torch.equal(kept_mass(attention[:, order], 0.6), kept_mass(attention, 0.6)[:, order])

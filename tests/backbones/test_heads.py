"""Heads: the wide last layer may run where it is wanted only, and rows keep the length they should."""

import pytest
import torch

from halfseen.backbones.heads import DistillationHead, MSNHead, WeightNormLinear


def head(**settings: object) -> DistillationHead:
    torch.manual_seed(0)
    return DistillationHead(8, 12, hidden_dim=16, bottleneck_dim=6, **settings)


def test_weight_norm_is_torchs_own() -> None:
    layer = WeightNormLinear(5, 7, trainable_norm=True)
    with torch.no_grad():
        layer.weight_g.uniform_(0.5, 2.0)
    reference = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 7, bias=False))
    reference.parametrizations.weight.original0.data.copy_(layer.weight_g)
    reference.parametrizations.weight.original1.data.copy_(layer.weight_v)
    rows = torch.randn(3, 5)
    torch.testing.assert_close(layer(rows), reference(rows))
    torch.testing.assert_close(layer.weight.norm(dim=1, keepdim=True), layer.weight_g)


def test_the_mean_of_outputs_is_the_output_of_the_mean() -> None:
    tokens = torch.randn(3, 9, 8)
    separate = head(patch_out_dim=10)
    narrow = separate.bottleneck(tokens)
    torch.testing.assert_close(narrow.norm(dim=-1), torch.ones(3, 9))
    torch.testing.assert_close(separate.patch_logits(narrow).mean((0, 1)), separate.patch_logits(narrow.mean((0, 1))))
    assert separate.patch_logits(narrow).shape == (3, 9, 10) and separate.num_patch_outputs == 10
    shared = head()
    assert torch.equal(shared.patch_logits(narrow), shared.logits(narrow)) and shared.num_patch_outputs == 12


@pytest.mark.parametrize(("fixed", "count"), [(True, 0), (False, 2)])
def test_the_length_of_rows_is_learned_only_where_it_is_asked_for(fixed: bool, count: int) -> None:
    built = head(patch_out_dim=10, norm_last_layer=fixed)
    learned = [name for name, p in built.named_parameters() if name.endswith("weight_g") and p.requires_grad]
    assert len(learned) == count


@pytest.mark.parametrize("norm", ["bn", "syncbn", "csyncbn", "ln"])
def test_a_norm_moves_the_names_of_the_layers_and_takes_any_tokens(norm: str) -> None:
    built = head(norm=norm)
    assert {name.split(".")[1] for name in built.state_dict() if name.startswith("mlp.")} == {"0", "1", "3", "4", "6"}
    again = head(norm=norm)
    tokens = torch.randn(4, 5, 8)
    torch.testing.assert_close(built.bottleneck(tokens).flatten(0, 1), again.bottleneck(tokens.flatten(0, 1)))


def test_centring_subtracts_the_mean_of_earlier_rows_only() -> None:
    built = head(norm="csyncbn")
    centring, tokens = built.mlp[1], torch.randn(20, 16) + 3
    torch.testing.assert_close(centring(tokens), tokens)  # the running mean is still 0
    torch.testing.assert_close(centring.running_mean, 0.1 * tokens.mean(dim=0))
    torch.testing.assert_close(centring(tokens), tokens - 0.1 * tokens.mean(dim=0))
    assert set(centring.state_dict()) == set(torch.nn.BatchNorm1d(16).state_dict())
    settled = centring.eval().running_mean.clone()
    centring(tokens).sum().backward()
    assert torch.equal(centring.running_mean, settled) and centring.weight.grad is not None


def test_without_a_bottleneck_the_mlp_gives_the_outputs() -> None:
    built = DistillationHead(8, 12, hidden_dim=16, bottleneck_dim=0)
    tokens = torch.randn(3, 8)
    assert torch.equal(built.logits(built.bottleneck(tokens)), built.mlp(tokens))
    assert not any("last_layer" in name for name in built.state_dict())


def test_msn_head_normalises_each_call_by_itself() -> None:
    torch.manual_seed(0)
    built = MSNHead(8, 16, 4)
    first, second = torch.randn(6, 8), 3 * torch.randn(10, 8) + 1
    assert not torch.allclose(torch.cat([built(first), built(second)]), built(torch.cat([first, second])), atol=1e-3)
    assert built.bn1.num_batches_tracked == 3
    assert not any("bn" in name for name in MSNHead(8, 16, 4, batch_norm=False).state_dict())

"""A term's backward pass at once: the same gradients, without its activations in memory."""

import gc

import pytest
import torch
from torch import Tensor, nn

from halfseen.ops.flops import count_flops
from halfseen.ops.local_backward import backward_at_once


@pytest.fixture
def parts() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 3)), torch.randn(5, 6)


@pytest.mark.parametrize("frozen", ["nothing", "encoder", "first layer of the term"])
def test_gradients_are_those_of_the_plain_call(parts: tuple[nn.Module, nn.Module, Tensor], frozen: str) -> None:
    encoder, decoder, rows = parts
    if frozen == "encoder":
        encoder.requires_grad_(False)
    if frozen == "first layer of the term":
        next(decoder.children()).requires_grad_(False)
    networks = nn.ModuleList([encoder, decoder])

    def term(tokens: Tensor) -> Tensor:
        value: Tensor = decoder(tokens).square().mean()
        return value

    def gradients(at_once: bool) -> tuple[Tensor, list[Tensor | None]]:
        networks.zero_grad()
        tokens = encoder(rows)
        value = backward_at_once(term, tokens, list(decoder.parameters())) if at_once else term(tokens)
        (0.3 * value + tokens.sum() * 1e-2).backward()
        return value, [None if p.grad is None else p.grad.clone() for p in networks.parameters()]

    if frozen == "encoder":
        rows.requires_grad_()
    plain, expected = gradients(at_once=False)
    value, found = gradients(at_once=True)
    torch.testing.assert_close(value, plain, rtol=0, atol=0)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert any(each is not None for each in found)


def test_terms_that_share_parameters_and_draw_random_numbers_add_up(parts: tuple[nn.Module, nn.Module, Tensor]) -> None:
    """Two terms of one decoder with dropout, whose gradients add up over two passes, as in gradient accumulation."""
    encoder, decoder, rows = parts
    networks = nn.ModuleList([encoder, decoder])

    def term(tokens: Tensor) -> Tensor:
        value: Tensor = nn.functional.dropout(decoder(tokens).square(), 0.5).mean()
        return value

    def gradients(at_once: bool) -> list[Tensor]:
        networks.zero_grad()
        torch.manual_seed(1)
        for half in (rows[:2], rows[2:]):
            tokens = encoder(half)
            terms = [
                backward_at_once(term, x, list(decoder.parameters())) if at_once else term(x)
                for x in (tokens, tokens.sin())
            ]
            (sum(terms) / 2).backward()
        return [p.grad.clone() for p in networks.parameters() if p.grad is not None]

    expected = gradients(at_once=False)
    assert len(expected) == 6 and all(bool(each.any()) for each in expected)
    for one, other in zip(gradients(at_once=True), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_a_term_whose_input_needs_no_gradient_still_learns(parts: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, decoder, _ = parts
    backward_at_once(lambda x: decoder(x).sum(), torch.randn(5, 8), list(decoder.parameters())).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in decoder.parameters())


def test_activations_are_gone_before_the_backward_pass(parts: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, decoder, _ = parts
    wide = 50_021
    tokens = torch.randn(wide, 8, requires_grad=True)

    def held(at_once: bool) -> int:
        def term(x: Tensor) -> Tensor:
            value: Tensor = decoder(x).mean()
            return value

        value = backward_at_once(term, tokens, list(decoder.parameters())) if at_once else term(tokens)
        sizes: list[int] = []
        seen = [value.grad_fn]
        while seen:
            node = seen.pop()
            if node is None:
                continue
            sizes += [x.numel() for x in getattr(node, "saved_tensors", ()) if x is not None]
            sizes += [getattr(node, name).numel() for name in ("_saved_self", "_saved_mat1") if _tensor(node, name)]
            seen += [child for child, _ in node.next_functions]
        gc.collect()
        return max(sizes, default=0)

    assert held(at_once=False) >= wide * 64
    assert held(at_once=True) == wide * 8  # The gradient of the tokens themselves.


def _tensor(node: object, name: str) -> bool:
    return isinstance(getattr(node, name, None), Tensor)


def test_half_precision_and_no_gradient_are_computed_plainly(parts: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, decoder, _ = parts
    tokens = torch.randn(5, 8, requires_grad=True)

    def node() -> str:
        value = backward_at_once(lambda x: decoder(x).float().sum(), tokens, list(decoder.parameters()))
        return type(value.grad_fn).__name__

    assert node() == "_AtOnceBackward"
    with torch.autocast("cpu", torch.float16):
        assert node() == "SumBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert node() == "_AtOnceBackward"
    with torch.no_grad():
        assert node() == "NoneType"


def test_operations_are_counted_as_those_of_the_plain_call(parts: tuple[nn.Module, nn.Module, Tensor]) -> None:
    encoder, decoder, rows = parts

    def term(tokens: Tensor) -> Tensor:
        value: Tensor = decoder(tokens).square().mean()
        return value

    plain = count_flops(lambda: term(encoder(rows)).backward())
    own = list(decoder.parameters())
    assert plain > 0
    assert count_flops(lambda: backward_at_once(term, encoder(rows), own).backward()) == plain

"""timm's blocks run by hand: timm's numbers, attention on the way, less kept, a last block for some tokens only."""

import weakref

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from halfseen.backbones.base import Encoder
from halfseen.backbones.blocks import attention_matrix, normed, run_block, run_block_for, run_mlp
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.errors import ConfigError, ShapeError
from halfseen.ops.recompute import watching_kept

FAMILIES: dict[str, dict[str, object]] = {
    "vit": {"name": "vit_tiny", "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},
    "scaled": {"name": "vit_tiny", "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "layer_scale": 0.5},
    "no_class": {
        "name": "vit_tiny",
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "class_token": False,
    },
    "conv": {"name": "vitc_4gf", "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    "beit": {"name": "simmim_vit_tiny", "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},
    "beit_per_block": {
        "name": "simmim_vit_tiny",
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "relative_positions": "per_block",
    },
    "viny": {
        "name": "viny_4m",
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "head_dim": 24,
        "class_token": True,
    },
    "swin": {"name": "swin_tiny", "embed_dim": 16, "depths": (1, 1), "num_heads": 1},
}
WITH_CLASS = [name for name in FAMILIES if name not in ("no_class", "swin")]
CAN_DROP = ["vit", "scaled", "conv", "beit", "viny", "no_class"]
SIDE = 32


def encoder_of(family: str, **more: object) -> Encoder:
    encoder = build_encoder(ModelConfig.model_validate({**FAMILIES[family], **more}), SIDE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return encoder.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def some_block(**more: object) -> Block:
    torch.manual_seed(3)
    block = Block(32, 4, qkv_bias=True, **more)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return block


def gradients(out: Tensor, tokens: Tensor, block: nn.Module) -> list[Tensor]:
    above = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
    return list(torch.autograd.grad(out, [tokens, *block.parameters()], above, retain_graph=True))


@pytest.mark.parametrize("more", [{}, {"init_values": 0.3}, {"qk_norm": True}, {"scale_attn_norm": True}])
def test_a_block_run_by_hand_is_timms(more: dict[str, object]) -> None:
    block = some_block(**more)
    tokens = torch.randn(2, 9, 32, requires_grad=True)
    ours, theirs = run_block(block, tokens), block(tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for our, their in zip(gradients(ours, tokens, block), gradients(theirs, tokens, block), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5 * float(their.abs().max() + 1))


def test_half_precision_attention_is_as_exact_as_timms() -> None:
    """Relative error of output and gradients under bfloat16, against float32, beside timm's own block."""
    block = some_block()
    tokens = torch.randn(4, 50, 32, requires_grad=True)
    exact = block(tokens)
    errors = []
    for run in (lambda: run_block(block, tokens), lambda: block(tokens)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = run()
        found = [rough.detach(), *gradients(rough, tokens, block)]
        true = [exact.detach(), *gradients(exact, tokens, block)]
        errors.append(max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)))
    assert errors[0] < 1.2 * errors[1] < 0.05


class Watched(nn.Module):
    """An activation that counts its calls and knows whether its outputs are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.gelu(x)
        self.outputs.append(weakref.ref(out))
        return out


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_activation_of_an_mlp_is_computed_again_instead_of_kept(precision: torch.dtype) -> None:
    mlp = some_block().mlp
    x = torch.randn(3, 7, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        plain = mlp(x)
        mlp.act = Watched()
        ours = run_mlp(mlp, x)
    assert torch.equal(ours, plain)
    assert len(mlp.act.outputs) == 1 and mlp.act.outputs[0]() is None
    for our, their in zip(gradients(ours, x, mlp), gradients(plain, x, mlp), strict=True):
        assert torch.equal(our, their)
    assert len(mlp.act.outputs) == 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_normalised_tokens_are_computed_again_instead_of_kept(precision: torch.dtype) -> None:
    block = some_block()
    x = torch.randn(3, 7, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        plain = block.mlp.fc1(block.norm2(x))
        with normed(block.norm2, x) as tokens:
            assert tokens.dtype == precision
            ours = block.mlp.fc1(tokens)
            watched = weakref.ref(tokens)
    del tokens
    assert watched() is None
    assert torch.equal(ours, plain)
    parts = nn.ModuleList([block.norm2, block.mlp.fc1])
    for our, their in zip(gradients(ours, x, parts), gradients(plain, x, parts), strict=True):
        assert torch.equal(our, their)


def test_what_is_kept_is_told_from_within_what_is_computed_again() -> None:
    block, x = some_block(), torch.randn(3, 7, 32, requires_grad=True)
    with watching_kept(block.parameters()) as kept:
        out = run_block(block, x)
    numbers = kept.living() / 4 / 21  # For each token.
    # Input, q, k, v, attended, the sum with its projection, the MLP inside (4 D); a little for norms and softmax.
    assert 10 * 32 <= numbers < 11 * 32
    out.sum().backward()


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(-4, None), slice(2, 5)])
def test_a_block_for_some_tokens_gives_their_rows_and_gradients(wanted: slice) -> None:
    block = some_block(init_values=0.4, drop_path=0.5).train()
    tokens = torch.randn(6, 9, 32, requires_grad=True)
    torch.manual_seed(5)
    whole = run_block(block, tokens)[:, wanted]
    torch.manual_seed(5)
    few = run_block_for(block, tokens, wanted)
    torch.testing.assert_close(few, whole)
    for our, their in zip(gradients(few, tokens, block), gradients(whole, tokens, block), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "drop"), [(family, False) for family in WITH_CLASS] + [(family, True) for family in CAN_DROP[:-1]]
)
def test_attention_on_the_way_equals_the_whole_matrix(family: str, drop: bool) -> None:
    encoder, images = encoder_of(family), pictures()
    ids = torch.rand(3, 16).argsort(dim=1)[:, :5] if drop else None
    last = encoder.num_layers
    with torch.no_grad():
        rows = encoder(images, visible_ids=ids, attention_layers=(last, 1)).attention
        means = encoder(images, visible_ids=ids, attention_layers=(last, 1), attention_rows="head_mean").attention
        T = encoder.num_prefix_tokens + (5 if drop else 16)
        assert [tuple(part.shape) for part in rows] == [(3, encoder.num_heads, T)] * 2
        assert [tuple(part.shape) for part in means] == [(3, T, T)] * 2
        assert not torch.allclose(rows[0], rows[1], atol=1e-3)
        torch.testing.assert_close(means[0].sum(-1), torch.ones(3, T))
        torch.testing.assert_close(rows[0].mean(1), means[0][:, 0])
        either = encoder(
            images, visible_ids=ids, attention_layers=(last, 1, last), attention_rows=("class", "class", "head_mean")
        ).attention
        for found, expected in zip(either, (*rows, means[0]), strict=True):
            assert torch.equal(found, expected)
        if not drop:
            for index, layer in enumerate((last, 1)):
                matrix = encoder.attention(images, layer)
                torch.testing.assert_close(rows[index], matrix[:, :, 0])
                torch.testing.assert_close(means[index], matrix.mean(1))


def test_attention_is_float32_and_close_under_bfloat16() -> None:
    encoder, images = encoder_of("vit"), pictures()
    with torch.no_grad():
        exact = encoder(images, attention_layers=(3,)).attention[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = encoder(images, attention_layers=(3,))
    assert features.attention[0].dtype == torch.float32
    torch.testing.assert_close(features.attention[0].sum(-1), torch.ones(3, 4))
    torch.testing.assert_close(features.attention[0], exact, rtol=0, atol=0.02)


class Largest(TorchDispatchMode):
    """Remembers the shapes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.shapes |= {
            tuple(part.shape) for part in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(part)
        }
        return out


def test_the_class_tokens_row_needs_no_matrix_of_all_pairs() -> None:
    encoder = encoder_of("vit")
    with torch.no_grad(), Largest() as seen:
        encoder(pictures(), attention_layers=(1, 2, 3))
    assert seen.shapes and not any(shape[-2:] == (17, 17) for shape in seen.shapes)


def test_attention_that_does_not_exist_is_refused() -> None:
    for family in ("no_class", "swin"):
        with pytest.raises(ConfigError, match="no class token"):
            encoder_of(family)(pictures(), attention_layers=(1,))
    assert encoder_of("no_class")(pictures(), attention_layers=(1,), attention_rows="head_mean").attention
    for layer in (0, 4):
        with pytest.raises(ConfigError, match=rf"attention_layers: got \[{layer}\], this encoder has blocks 1 to 3"):
            encoder_of("vit")(pictures(), attention_layers=(layer,))
    with pytest.raises(ConfigError, match="attention_rows: got 2 for 1 blocks"):
        encoder_of("vit")(pictures(), attention_layers=(1,), attention_rows=("class", "head_mean"))
    with pytest.raises(ConfigError, match="blocks 1 to 3"):
        encoder_of("vit").attention(pictures(), 0)


@pytest.mark.parametrize(
    ("family", "hiding"),
    [(family, hiding) for family in FAMILIES for hiding in ("nothing", "replace")]
    + [(family, "drop") for family in CAN_DROP],
)
@pytest.mark.parametrize("some", [True, False])
def test_the_forward_for_selected_tokens_equals_the_whole_one(family: str, hiding: str, some: bool) -> None:
    encoder, images = encoder_of(family, drop_path=0.5).train(), pictures(5)
    if family == "conv":
        encoder.eval()  # its BatchNorm moves with each pass
    inputs = encoder.image_size // encoder.patch_size
    hidden: dict[str, Tensor] = {}
    if hiding == "replace":
        mask = torch.rand(5, inputs**2) < 0.4
        hidden = {"mask": mask, "mask_token": torch.randn(encoder.mask_dim)}
    elif hiding == "drop":
        hidden = {"visible_ids": torch.rand(5, inputs**2).argsort(dim=1)[:, :7]}
    torch.manual_seed(6)
    features = encoder(images, **hidden)
    selected = torch.rand(features.patches.shape[:2], generator=torch.Generator().manual_seed(7)) < 0.3
    selected[1] = False
    torch.manual_seed(6)
    found = encoder.forward_selected(images, **hidden, selected=selected.flatten().nonzero()[:, 0] if some else None)
    expected = features.patches[selected] if some else features.patches[:0, 0]
    torch.testing.assert_close(found.summary, encoder.summary(features), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.patches, expected, rtol=1e-5, atol=1e-5)
    above = torch.randn(found.patches.shape), torch.randn(found.summary.shape)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    ours, theirs = (
        torch.autograd.grad((patches * above[0]).sum() + (summary * above[1]).sum(), trained, allow_unused=True)
        for patches, summary in ((found.patches, found.summary), (expected, encoder.summary(features)))
    )
    for our, their in zip(ours, theirs, strict=True):
        assert (our is None) == (their is None)
        if their is not None:
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5 * float(their.abs().max() + 1))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_mask_is_no_selection(family: str) -> None:
    encoder = encoder_of(family)
    with pytest.raises(ShapeError, match=r"selected: got torch.bool of shape \(3, 16\), expected int64"):
        encoder.forward_selected(pictures(), selected=torch.zeros(3, 16, dtype=torch.bool))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_selected_tokens_come_in_the_order_of_the_request(family: str) -> None:
    encoder, images = encoder_of(family).eval(), pictures()
    with torch.no_grad():
        patches = encoder(images).patches
        N = patches.shape[1]
        found = encoder.forward_selected(images, selected=torch.tensor([2 * N + 1, 3, 2 * N + 1, N])).patches
    torch.testing.assert_close(found, torch.stack([patches[2, 1], patches[0, 3], patches[2, 1], patches[1, 0]]))


def test_registers_are_no_class_token() -> None:
    """The class token stands before the registers; a model with registers alone is summarised by its patches."""
    images = torch.randn(2, 3, 28, 28)
    with_class = build_encoder(ModelConfig(name="vit_small_patch14_reg4_dinov2"), 28).eval()
    only = build_encoder(ModelConfig(name="vit_wee_patch16_reg1_gap_256"), 32).eval()
    assert with_class.has_class_token and with_class.num_prefix_tokens == 5
    assert not only.has_class_token and only.num_prefix_tokens == 1
    with torch.no_grad():
        features = with_class(images)
        found = with_class.forward_selected(images, selected=torch.arange(8))
        torch.testing.assert_close(found.summary, features.prefix[:, 0])
        torch.testing.assert_close(found.patches, features.patches.flatten(0, 1))
        pictured = pictures(2)
        torch.testing.assert_close(only.forward_selected(pictured).summary, only(pictured).patches.mean(1))
    with pytest.raises(ConfigError, match="no class token"):
        only(pictured, attention_layers=(1,))


def test_the_matrix_of_a_block_stops_there() -> None:
    encoder = encoder_of("vit")
    tokens = torch.randn(1, 4, 32)
    torch.nn.init.constant_(encoder.blocks[2].norm1.weight, float("nan"))
    assert attention_matrix(tokens, encoder.blocks, 2).isfinite().all()

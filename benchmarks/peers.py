"""The same training step without this library: in transformers, or written plainly where no package has the method."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Contestant


def mae_peer(case: Case) -> nn.Module:
    """`ViTMAEForPreTraining` with the sizes of the case."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=case.image_size,
        patch_size=16,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=4 * 384,
        mask_ratio=0.75,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
    )
    return ViTMAEForPreTraining(config)


def swin_peer(case: Case) -> nn.Module:
    """`SwinForMaskedImageModeling` with the sizes of the case."""
    from transformers import SwinConfig, SwinForMaskedImageModeling

    config = SwinConfig(
        image_size=case.image_size,
        patch_size=4,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=6,
        drop_path_rate=0.0,
        encoder_stride=32,
    )
    return SwinForMaskedImageModeling(config)


def swin_mask(case: Case, seed: int = 0) -> Tensor:
    """SimMIM's mask for the peer: bool [B, patches], 60 % of the 32-pixel cells."""
    generator = torch.Generator().manual_seed(seed)
    cells = case.image_size // 32
    hidden = -(-cells * cells * 6 // 10)
    order = torch.rand(case.batch_size, cells * cells, generator=generator).argsort(1)
    mask = (order < hidden).reshape(case.batch_size, cells, cells)
    return mask.repeat_interleave(8, 1).repeat_interleave(8, 2).flatten(1)


def import_peer(case: Case) -> None:
    """Load all modules that the peer of a case needs, so that they count as imports, not as its memory."""
    assert case.peer is not None
    if case.peer.package == "plain":
        for module in ("benchmarks.plain", "benchmarks.plain_localmim"):
            importlib.import_module(module)
    else:
        import transformers

        assert hasattr(transformers, case.peer.title)  # Transformers loads its modules when they are asked for.


def build_peer(case: Case, precision: str) -> Contestant:
    """The peer of a case, ready to take steps: forward under autocast, backward, AdamW."""
    torch.manual_seed(0)
    if case.peer is not None and case.peer.package == "plain":
        from benchmarks.plain import build_plain
        from benchmarks.plain_localmim import build_localmim

        return build_localmim(case) if case.method == "localmim" else build_plain(case)
    model = {"mae": mae_peer, "simmim": swin_peer}[case.method](case).train()
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
    inputs: dict[str, Callable[[], Tensor]] = {"pixel_values": lambda: images}
    if case.method == "simmim":
        inputs["bool_masked_pos"] = lambda: swin_mask(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = model(**{name: make() for name, make in inputs.items()}).loss
        return loss

    def backward(loss: Tensor) -> None:
        loss.backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Contestant(forward, backward, update, trained)

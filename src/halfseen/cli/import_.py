"""`halfseen import`: official weights in, with what became of every tensor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

SHOWN = 20


def command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of MAE, SimMIM, KAMIM, ViNy, LocalMIM, iBOT, AttMask, DINO, MSN, timm or halfseen."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write encoder.safetensors and encoder.json to.")],
    kind: Annotated[
        str | None, typer.Option(help="Whose layout it is; told by the tensors' names if left out.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Resize positions and bias tables to images of this side.")
    ] = None,
    num_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Attention heads of a plain ViT of unusual width: weights don't show them."),
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="student or teacher, of a file that holds both; the teacher if left out.")
    ] = None,
    patch_merge_order: Annotated[
        str | None,
        typer.Option(
            help="LocalMIM's Swin: pretrain (default) keeps its features; as_published leaves the weights of patch "
            "merging in their order, as the published fine-tuning does."
        ),
    ] = None,
) -> None:
    """Read official weights and write their encoder as safetensors under timm's names.

    Nothing in the file is executed: a pickle that holds more than tensors is refused.

    Example: halfseen import mae_pretrain_vit_base.pth --out weights/mae_base
    """
    from halfseen.backbones.weights import export_encoder, import_checkpoint
    from halfseen.cli.export import loading_lines
    from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD

    imported = import_checkpoint(
        file, kind, image_size=image_size, num_heads=num_heads, role=role, patch_merge_order=patch_merge_order
    )
    encoder = imported.build()
    typer.echo(f"Kind: {imported.kind}; {imported.config.name}, {encoder.image_size} px, {encoder.num_layers} blocks")
    if imported.role is not None:
        others = [other for other in imported.roles if other != imported.role]
        typer.echo(f"Role: {imported.role}" + (f"; --role {others[0]} takes the other network" if others else ""))
    if imported.scales:
        each = ", ".join(f"{number} (scale {scale:g})" for number, scale in imported.scales.items())
        typer.echo(f"Branches: {each}; the norm of the last one is the encoder's final norm")
    for word, names in imported.report._asdict().items():
        _list(word, names)
    if imported.scales:
        _list("decoder", list(imported.decoder_state))
        _list("norms and constants of branches", list(imported.branch_state))
    beyond = len(imported.decoder_state) + len(imported.branch_state) + len(imported.head_state)
    if beyond:
        typer.echo(
            f"{beyond} tensors of decoder and head are not part of the encoder; `pretrain init=FILE` can use them."
        )
    if imported.projection_state:
        _list("head", list(imported.projection_state))
        typer.echo("The head has no place in the encoder; `pretrain init=FILE` can use it.")
    if imported.mask_token is not None:
        typer.echo("The mask token has no place in the encoder; `pretrain init=FILE` can use it.")
    weights = export_encoder(
        encoder,
        out,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        role=imported.role or "imported",
        extra={"origin": str(file)},
    )
    typer.echo(f"Written: {weights} and {weights.with_suffix('.json')}, normalised like ImageNet")
    typer.echo(loading_lines(weights))


def _list(word: str, names: Sequence[str]) -> None:
    typer.echo(f"{word}: {len(names)}")
    for name in names[:SHOWN]:
        typer.echo(f"  {name}")
    if len(names) > SHOWN:
        typer.echo(f"  ... and {len(names) - SHOWN} more")

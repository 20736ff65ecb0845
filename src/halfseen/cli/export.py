"""`halfseen export`: a run's encoder as weights that timm loads, or that this library loads where timm can't."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    encoder: Annotated[str, typer.Argument(help="A run's folder, an encoder.safetensors, or an official checkpoint.")],
    out: Annotated[Path, typer.Option(help="The folder to write encoder.safetensors and encoder.json to.")],
    role: Annotated[str | None, typer.Option(help="student or teacher, of a run that has both.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Resize the positions to images of this side; as trained if left out.")
    ] = None,
) -> None:
    """Write an encoder as safetensors under timm's names, and print the lines of Python that load it.

    Example: halfseen export runs/demo --out exported
    """
    from halfseen.backbones.weights import export_encoder, load_encoder

    loaded = load_encoder(encoder, role, image_size=image_size)
    weights = export_encoder(
        loaded.encoder, out, mean=loaded.mean, std=loaded.std, role=loaded.role, extra={"origin": loaded.origin}
    )
    typer.echo(f"Written: {weights} and {weights.with_suffix('.json')}")
    typer.echo(loading_lines(weights))


def loading_lines(weights: Path) -> str:
    """Python that loads an exported encoder, with what is worth knowing about it as comments."""
    described = weights.with_suffix(".json")
    about = json.loads(described.read_text(encoding="utf-8"))
    notes = [f"# {note}" for note in about["notes"]]
    if about["timm"] is None:
        lines = ["import halfseen", f"encoder = halfseen.load_encoder({str(weights)!r}).encoder"]
    else:
        lines = [
            "import json, pathlib, timm, safetensors.torch; "
            f"about = json.loads(pathlib.Path({str(described)!r}).read_text())['timm']",
            "model = timm.create_model(about['model_name'], **about['kwargs']); "
            f"model.load_state_dict(safetensors.torch.load_file({str(weights)!r}))",
        ]
    return "\n".join([*notes, *lines])

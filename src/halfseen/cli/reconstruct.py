"""`halfseen reconstruct`: what a run's method predicts for hidden patches, as pictures and numbers."""

from pathlib import Path
from typing import Annotated

import typer

from halfseen.cli.inputs import console, forward_settings, need_run, open_images, whole_or_split
from halfseen.errors import ConfigError


def command(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    data: Annotated[
        str | None, typer.Argument(help="DATA to take the images from: its test split if it has one; else the run's.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 8,
    mask_ratio: Annotated[
        list[float] | None, typer.Option(help="Hidden share in (0, 1); may be repeated. The run's own if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the masks.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest one found if left out.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for reconstruction.npz and .png; RUN/figures, or ./reconstructions with DATA."),
    ] = None,
) -> None:
    """Show original, masked, predicted and pasted pictures, with PSNR and SSIM.

    Example: halfseen reconstruct runs/demo --mask-ratio 0.5 --mask-ratio 0.75
    """
    found = need_run(run)
    ratios: list[float | None] = [None] if mask_ratio is None else [*mask_ratio]
    for ratio in ratios:
        if ratio is not None and not 0 < ratio < 1:
            raise ConfigError(f"--mask-ratio: got {ratio:g}, expected a share between 0 and 1, for instance 0.75.")
    forward = forward_settings(device, "fp32")

    from halfseen.analysis.reconstruct import reconstruct_images
    from halfseen.pretraining.build import load_method
    from halfseen.reports.figures.pictures import draw_reconstructions

    method = load_method(found.folder)
    settings = found.config
    name = settings.data.source if data is None else data
    pictures = reconstruct_images(
        method,
        open_images(name, whole_or_split(name, "test"), found),
        mean=settings.data.mean,
        std=settings.data.std,
        image_size=settings.data.image_size,
        crop_ratio=settings.evaluate.crop_ratio,
        count=images,
        mask_ratios=ratios,
        seed=seed,
        device=forward.device,
    )
    if pictures is None:
        raise ConfigError(
            f"'{run}': '{method.name}' as it was trained here predicts no pixels, so there is nothing to reconstruct. "
            "MAE, SimMIM, KAMIM and LocalMIM do, with pixels as their target."
        )
    folder = out if out is not None else found.folder / "figures" if data is None else Path("reconstructions")
    arrays = pictures.write(folder)
    figure = draw_reconstructions(arrays)
    from rich.table import Table

    table = Table("hidden", "PSNR hidden", "PSNR pasted", "SSIM hidden", "SSIM pasted")
    for number, share in enumerate(pictures.hidden_share):
        table.add_row(
            f"{100 * share:.1f} %",
            f"{pictures.psnr_hidden[number].mean():.2f} dB",
            f"{pictures.psnr_whole[number].mean():.2f} dB",
            f"{pictures.ssim_hidden[number].mean():.4f}",
            f"{pictures.ssim_whole[number].mean():.4f}",
        )
    screen = console()
    screen.print(table)
    screen.print(
        f"Means of {len(pictures.original)} images of {name}, in pixel space at range 1. {pictures.note}",
        soft_wrap=True,
    )
    screen.print(f"Written: {arrays} and {figure}", soft_wrap=True)

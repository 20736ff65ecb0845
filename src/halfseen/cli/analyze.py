"""`halfseen analyze`: what encoders have learned, looked at from within, one or several side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.inputs import Run, console, find_run, forward_settings, open_images, progress_line, whole_or_split
from halfseen.cli.measuring import CropRatio, Device, ForwardBatch, ImageSize, Precision, Pretrained, Role, Workers
from halfseen.config.load import Layer, is_override, load_config
from halfseen.errors import ConfigError

if TYPE_CHECKING:
    from halfseen.analysis.analyze_config import AnalysisName
    from halfseen.analysis.findings import Analysis, AnalyzedEncoder

SHOWN_NUMBERS = (
    "attention_distance_last",
    "attention_information_last",
    "high_frequency_last",
    "variance_within",
    "variance_across",
    "cosine_at_1",
    "probe_held_out",
    "layer_probe_best",
    "rankme_mean",
    "alpha_req_mean",
    "lidar",
    "agreement_least",
    "psnr_pixel_masked",
    "average_distance",
)
"""The few that the terminal shows, in the report's words."""


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER... [KEY=VALUE]...",
            help="Runs, encoder.safetensors, official checkpoints or timm:NAME; and other settings, e.g. "
            "masked_images=100 or tsne=false.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="DATA to look at: its test split, or all of it; the first run's own data if left out."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this analysis; may be repeated. attention, fourier, spectra, cka, geometry, similarity, "
            "embedding, rank, layers, probe, masking, noise, reconstruction."
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Most images, the classes in turn; default 500.")] = None,
    random_init: Annotated[
        bool, typer.Option("--random-init", help="Put the first encoder's network with fresh weights beside it.")
    ] = False,
    role: Role = None,
    image_size: ImageSize = None,
    crop_ratio: CropRatio = None,
    batch_size: ForwardBatch = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws tokens, masks, noise and fresh weights.")] = 0,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
    figures: Annotated[bool, typer.Option(help="Draw the figures beside the arrays, as PNG and SVG.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the arrays and figures; RUN/analysis of a single run, or ./analysis."),
    ] = None,
) -> None:
    """Look into encoders: attention, spectra, alignment of layers, geometry of patches, ranks, masked queries, noise.

    What an analysis isn't defined for is said in a sentence; the others run.

    Example: halfseen analyze runs/demo --data bundled:fashion-scenes --only attention --only geometry
    """
    names = [word for word in words if not is_override(word)]
    if not names:
        raise ConfigError("ENCODER: missing. Name a run, a file or timm:NAME.")
    from halfseen.reports.analysis_files import FOLDER

    runs = [find_run(name) for name in names]
    if out is not None and find_run(str(out)) is not None:
        raise ConfigError(
            f"--out: '{out}' is a run's own folder, with figures of its own. Write into '{out / FOLDER}'."
        )
    first_run = next((run for run in runs if run is not None), None)
    if data is None and first_run is None:
        raise ConfigError("--data: missing. Name the images to look at, for instance --data bundled:fashion-scenes.")
    source = data if data is not None or first_run is None else first_run.config.data.source
    options = {"images": images, "crop_ratio": crop_ratio, "batch_size": batch_size}
    changes = [f"{name}={value}" for name, value in options.items() if value is not None]
    changes += [word for word in words if is_override(word)]
    forward = forward_settings(device, precision, first_run)

    from halfseen.analysis.analyze import analyze
    from halfseen.analysis.analyze_config import ANALYSES, AnalyzeConfig

    chosen = _chosen(only or [])
    own = {}
    if first_run is not None:
        own = {name: getattr(first_run.config.evaluate, name) for name in ("resize", "crop_ratio")}
    config = load_config(AnalyzeConfig, [Layer("the run", own)], changes).config
    split = whole_or_split(str(source), "test")
    pictures = open_images(str(source), split, first_run)
    encoders = _load(names, runs, role, image_size, pretrained, "reconstruction" in (chosen or ANALYSES))
    if random_init:
        encoders.insert(1, _fresh(names[0], runs[0], role, image_size, pretrained, seed))
    with progress_line() as on_progress:
        found = analyze(
            encoders,
            pictures,
            config,
            chosen or ANALYSES,
            split=split if split == "test" else "all",
            seed=seed,
            device=forward.device,
            precision=forward.precision,
            workers=workers,
            on_progress=on_progress,
        )
    folder = out
    if folder is None:
        folder = runs[0].folder / FOLDER if len(names) == 1 and runs[0] is not None else Path(FOLDER)
    summary = found.write(folder)
    from halfseen.reports.figures.analysis import draw_analysis, remove_figures

    if figures:
        drawn = draw_analysis(summary)
    else:
        drawn = []
        remove_figures(summary.parent)
    _show(found, str(source), summary, len(drawn))


def _chosen(only: list[str]) -> "list[AnalysisName]":
    """The analyses that words name, in the order of the list.

    Raises:
        ConfigError: an unknown one.
    """
    import difflib

    from halfseen.analysis.analyze_config import ANALYSES

    for word in only:
        if word not in ANALYSES:
            near = difflib.get_close_matches(word, ANALYSES, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"--only: unknown analysis '{word}'. Known: {', '.join(ANALYSES)}.{hint}")
    return [name for name in ANALYSES if name in only]


def _load(
    words: list[str],
    runs: list[Run | None],
    role: str | None,
    image_size: int | None,
    pretrained: bool,
    methods: bool,
) -> "list[AnalyzedEncoder]":
    """The encoders, and the methods of those that belong to runs where reconstructions are wanted."""
    from halfseen.analysis.findings import AnalyzedEncoder
    from halfseen.backbones.weights import load_encoder
    from halfseen.pretraining.build import load_method

    found = []
    for word, run, name in zip(words, runs, _names(words), strict=True):
        loaded = load_encoder(word, role, image_size=image_size, pretrained=pretrained)
        method = load_method(run.folder) if run is not None and methods else None
        found.append(AnalyzedEncoder(name, loaded.encoder, loaded.mean, loaded.std, loaded.origin, loaded.role, method))
    return found


def _fresh(
    word: str, run: Run | None, role: str | None, image_size: int | None, pretrained: bool, seed: int
) -> "AnalyzedEncoder":
    """An encoder's network as its training begins."""
    from halfseen.analysis.findings import RANDOM_INIT, AnalyzedEncoder
    from halfseen.backbones.weights import load_encoder
    from halfseen.cli.inputs import same_network

    loaded = load_encoder(word, role, image_size=image_size, pretrained=pretrained)
    encoder = same_network(loaded, run, seed)()
    return AnalyzedEncoder(RANDOM_INIT, encoder, loaded.mean, loaded.std, f"{loaded.origin}, fresh weights")


def _names(words: list[str]) -> list[str]:
    """Short names for files and figures, none of them twice."""
    from halfseen.analysis.findings import file_name

    names: list[str] = []
    for word in words:
        path = Path(word.removeprefix("timm:"))
        stem = path.parent.name if path.name == "encoder.safetensors" else path.name.removesuffix(path.suffix)
        if word.startswith("timm:"):
            stem = path.name
        names.append(file_name(stem, names))
    return names


def _show(found: "Analysis", source: str, summary: Path, figures: int) -> None:
    from rich.table import Table

    from halfseen.reports.inside.numbers import number_row

    table = Table("", *(each.subject.name for each in found.encoders))
    for key in SHOWN_NUMBERS:
        values = [each.numbers.get(key) for each in found.encoders]
        if any(value is not None for value in values):
            row = number_row(key, values)
            table.add_row(row.words, *row.cells)
    screen = console()
    screen.print(table)
    said: dict[tuple[str, str], list[str]] = {}
    for each in found.encoders:
        for name, notes in each.notes.items():
            for note in notes:
                said.setdefault((name, note), []).append(each.subject.name)
    for (name, note), whose in said.items():
        who = "" if len(whose) == len(found.encoders) else f" ({', '.join(whose)})"
        screen.print(f"- {name}{who}: {note}", soft_wrap=True)
    for note in found.notes:
        screen.print(f"- {note}", soft_wrap=True)
    count = found.encoders[0].arrays["images/indices"].size
    counted = "1 image" if count == 1 else f"{count} images"
    where = f"{summary}, arrays beside it"
    if figures:
        where += f", {figures} figures in {summary.parent / 'figures'}"
    screen.print(f"Written: {where} ({counted} of {source}).", soft_wrap=True)

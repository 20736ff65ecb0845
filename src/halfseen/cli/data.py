"""`halfseen data check`: the data doctor on the command line."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from halfseen.data.doctor import Report

app = typer.Typer(help="Look at data before training on it.", add_completion=False, no_args_is_help=True)
SHOWN_FILES = 20


@app.callback()
def data() -> None:
    """Look at data before training on it."""


@app.command(epilog="Example: halfseen data check my_photos --json report.json")
def check(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, manifest.csv|parquet, bundled:NAME or torchvision:NAME.")
    ],
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report here.")
    ] = None,
    skip_list: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write the skip list; default: halfseen_skip.json in the folder."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Look at N images of each split only.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads; default: all cores.")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Call larger pictures bad (training: data.max_pixels).")
    ] = None,
) -> None:
    """Find unreadable, truncated and duplicate files, and count sizes, modes, formats and labels.

    Bad files go onto a skip list that training on the same folder leaves out.
    """
    from rich.console import Console

    from halfseen.data.config import DataConfig
    from halfseen.data.doctor import check as examine
    from halfseen.data.doctor import find_shared, update_skip_list
    from halfseen.data.sources import Split, has_split, open_source

    console = Console(highlight=False)
    config = DataConfig(source=source) if max_pixels is None else DataConfig(source=source, max_pixels=max_pixels)
    splits: list[Split] = [split for split in ("train", "test") if has_split(source, split)]
    reports: dict[str, Report] = {}
    list_path: Path | None = None
    for split in splits or ["train"]:
        opened = open_source(source, split, config=config, use_skip_list=False)
        with console.status(f"looking at the images ({split})") as status:
            reports[split] = examine(
                opened,
                limit=limit,
                workers=workers,
                on_progress=lambda done, total: status.update(f"looked at {done} of {total} images"),
            )
        _print_report(console, split, reports[split])
        list_path = update_skip_list(opened, reports[split], skip_list) or list_path
    shared = find_shared(reports["train"], reports["test"]) if len(reports) == 2 else []
    _print_shared(console, shared)
    if list_path is not None:
        console.print(f"Skip list: {list_path}", markup=False, soft_wrap=True)
    if json_path is not None:
        content = {split: report.to_dict() for split, report in reports.items()}
        content["shared_by_train_and_test"] = {"pairs": shared}
        _write_json(json_path, content, str(list_path) if list_path else None)
        console.print(f"Report: {json_path}", markup=False, soft_wrap=True)


def _write_json(path: Path, content: dict[str, dict[str, object]], list_path: str | None) -> None:
    from halfseen.errors import DataError

    try:
        path.write_text(json.dumps({**content, "skip_list": list_path}, indent=2, ensure_ascii=False), "utf-8")
    except OSError as error:
        raise DataError(f"--json: can't write '{path}' ({error.strerror}). Name a writable file.") from None


def _print_report(console: "Console", split: str, report: "Report") -> None:
    # A line of its own: as the table's title a long path would be broken at the table's width.
    console.print(f"{report.source} ({split})", style="bold", markup=False, soft_wrap=True)
    console.print(_make_table(report))
    for title, lines in (
        ("Bad files", [f"{bad.path}: {bad.reason}" for bad in report.bad]),
        ("Not reachable", [f"{left.path}: {left.reason}" for left in report.left_out]),
        ("Same content", [" = ".join(paths) for paths in report.duplicates]),
    ):
        if lines:
            console.print(f"{title} ({len(lines)}):", style="bold")
            for line in lines[:SHOWN_FILES]:
                console.print(f"  {line}", markup=False, soft_wrap=True)
            if len(lines) > SHOWN_FILES:
                console.print(f"  ... and {len(lines) - SHOWN_FILES} more (--json FILE lists all)")


def _make_table(report: "Report") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    duplicates = sum(len(paths) - 1 for paths in report.duplicates)
    rows = {
        "images": f"{report.num_images}, looked at {report.num_checked}",
        "bad": str(len(report.bad)),
        "duplicates": str(duplicates),
        "EXIF-rotated": f"{report.num_rotated} (are turned upright)",
        "formats": _list_counts(report.formats),
        "modes": _list_counts(report.modes),
        "width": _list_percentiles(report.width_percentiles),
        "height": _list_percentiles(report.height_percentiles),
        "shorter side": _list_counts(report.shorter_side_histogram),
        "classes": _list_classes(report),
        "mean": _list_values(report.mean),
        "std": _list_values(report.std),
        "decoding": f"{report.images_per_second:,.0f} images/s per core" if report.images_per_second else "in memory",
        "time": f"{report.seconds:.1f} s",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _print_shared(console: "Console", shared: list[tuple[str, str]]) -> None:
    if shared:
        console.print(f"{len(shared)} test images are also in the training split, which makes a test worthless:")
        for train, test in shared[:SHOWN_FILES]:
            console.print(f"  {test} = {train}", markup=False, soft_wrap=True)


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"


def _list_percentiles(percentiles: dict[int, int]) -> str:
    return ", ".join(f"{percent} %: {value}" for percent, value in percentiles.items()) or "none"


def _list_values(values: tuple[float, float, float] | None) -> str:
    return "none" if values is None else ", ".join(f"{value:.3f}" for value in values)


def _list_classes(report: "Report") -> str:
    if not report.labels:
        return "no labels"
    counts = list(report.labels.items())
    text = ", ".join(f"{name}: {count}" for name, count in counts[:SHOWN_FILES])
    rest = f", ... {len(counts)} classes in all" if len(counts) > SHOWN_FILES else ""
    unlabelled = f"; {report.num_unlabelled} without a label" if report.num_unlabelled else ""
    return text + rest + unlabelled

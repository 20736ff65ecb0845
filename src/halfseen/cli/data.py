"""`halfseen data`: the data doctor, and ImageNet into class folders, on the command line."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from halfseen.data.doctor import Report
    from halfseen.data.imagenet import Synsets
    from halfseen.data.placing import Mode, Plan

app = typer.Typer(
    help="Look at data before training on it, and bring it into order.", add_completion=False, no_args_is_help=True
)
SHOWN_FILES = 20
MODES: dict["Mode", str] = {"copy": "Copied", "move": "Moved", "symlink": "Linked", "hardlink": "Linked"}


@app.callback()
def data() -> None:
    """Look at data before training on it, and bring it into order."""


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


@app.command(
    "arrange-imagenet",
    epilog="Example: halfseen data arrange-imagenet --src val --devkit ILSVRC2012_devkit_t12.tar.gz --dst imagenet/val",
)
def arrange_imagenet(
    src: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The flat folder of ILSVRC2012_val_00000001.JPEG and so on.")
    ] = None,
    val_tar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ILSVRC2012_img_val.tar, unpacked to DST/val.")
    ] = None,
    train_tar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ILSVRC2012_img_train.tar, unpacked to DST/train.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="ILSVRC2012_validation_ground_truth.txt.")] = None,
    meta: Annotated[Path | None, typer.Option(metavar="FILE", help="meta.mat of the development kit.")] = None,
    devkit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ILSVRC2012_devkit_t12.tar.gz, which holds both: instead of the two."),
    ] = None,
    dst: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the class folders go; default: into --src itself.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="copy (default), move, symlink or hardlink the files of --src; only move takes them away."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
) -> None:
    """Sort ImageNet (ILSVRC2012) into class folders, from the flat validation images or the published archives.

    Labels, classes and images are counted before anything is touched. A run that was stopped goes on where it was when
    the same command is given again.
    """
    from halfseen.cli.inputs import progress_line
    from halfseen.data.imagenet import plan_folder, plan_training_archive, plan_validation_archive
    from halfseen.data.placing import bytes_to_write, check_room, find_unplaced, place

    chosen = _check_arrangement(src, val_tar, train_tar, labels, meta, devkit, dst, mode)
    listed, synsets = _read_kit(labels, meta, devkit, with_labels=src is not None or val_tar is not None)
    plans: list[Plan] = []
    with progress_line() as progress:
        if src is not None and synsets is not None:
            plans.append(plan_folder(src, dst or src, listed, synsets))
        if dst is not None and val_tar is not None and synsets is not None:
            plans.append(
                plan_validation_archive(
                    val_tar, dst / "val", listed, synsets, lambda done, of: progress("checking val", done, of)
                )
            )
        if dst is not None and train_tar is not None:
            plans.append(
                plan_training_archive(
                    train_tar, dst / "train", synsets, lambda done, of: progress("checking train", done, of)
                )
            )
    todo = [find_unplaced(plan, chosen) for plan in plans]
    for plan in plans:
        check_room(plan.dst, sum(bytes_to_write(each, rows, chosen) for each, rows in zip(plans, todo, strict=True)))
    for plan, rows in zip(plans, todo, strict=True):
        if not dry_run:
            with progress_line() as progress:
                place(plan, rows, chosen, lambda done, of: progress("placing", done, of))
        _tell_arrangement(plan, len(rows), chosen, dry_run)
    if dry_run:
        typer.echo("Nothing was touched.")
    elif src is not None and chosen != "move" and (dst is None or dst.resolve() == src.resolve()):
        typer.echo(f"The flat files are in {src} as well; --mode move takes them away.")


@app.command(epilog="Example: halfseen data split imagenet --out splits --per-class 1 --per-class 5 --fraction 0.01")
def split(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder of class folders, or a manifest with labels.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the folders subsets1, subsets2 ... go.")],
    per_class: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Images of each class; may be repeated. Default 1, 2, 5."),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", help="Share of all images, spread over the classes: 0.01 for 1 %; repeatable."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, metavar="N", help="Independent draws, a folder for each.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same images.")] = 0,
) -> None:
    """Draw which training images have a label, as text files that `halfseen logistic --split` reads.

    Of one draw the smaller splits are parts of the larger ones. Files have the format of MSN's published lists: a file
    name a line where it begins with its class, else `<class>/<file>`.
    """
    from halfseen.data.label_splits import draw_label_splits, split_lines
    from halfseen.data.sources import open_source
    from halfseen.errors import DataError

    opened = open_source(source, "train")
    counts = per_class if per_class or fraction else [1, 2, 5]
    names = [f"{count}imgs_class.txt" for count in counts or ()]
    names += [f"{100 * share:g}percent.txt" for share in fraction or ()]
    files: dict[Path, list[str]] = {}
    for draw in range(draws):
        drawn = draw_label_splits(opened, per_class=counts or (), fractions=fraction or (), draw=draw, seed=seed)
        for name, part in zip(names, drawn, strict=True):
            files[out / f"subsets{draw + 1}" / name] = split_lines(opened, part.rows)
    there = next((path for path in files if path.exists()), None)
    if there is not None:
        raise DataError(f"--out: '{there}' exists already. Name another folder, or delete the old splits.")
    for path, lines in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise DataError(f"--out: can't write '{path}' ({error.strerror}). Name a writable folder.") from None
        typer.echo(f"{path}: {len(lines):,} images")


def _check_arrangement(
    src: Path | None,
    val_tar: Path | None,
    train_tar: Path | None,
    labels: Path | None,
    meta: Path | None,
    devkit: Path | None,
    dst: Path | None,
    mode: str | None,
) -> "Mode":
    """The mode, if the options go together; archives are always copied out.

    Raises:
        ConfigError: they don't.
    """
    from halfseen.errors import ConfigError

    archive = val_tar or train_tar
    if (src is None) == (archive is None):
        raise ConfigError(
            "arrange-imagenet: give either --src, the flat folder of validation images, or --val-tar and --train-tar, "
            "one of them or both."
        )
    if archive is not None and dst is None:
        raise ConfigError("--dst: missing. Name the folder that will hold train/ and val/.")
    if archive is not None and mode is not None:
        raise ConfigError(f"--mode: got '{mode}', but images are always copied out of an archive. Leave it out.")
    if devkit is not None and (labels or meta):
        raise ConfigError("--devkit: it holds the labels and meta.mat; leave --labels and --meta out, or --devkit.")
    if devkit is None and (src or val_tar) and not (labels and meta):
        raise ConfigError(
            f"{'--meta' if labels else '--labels'}: missing. Give --devkit ILSVRC2012_devkit_t12.tar.gz, or --labels "
            "and --meta with the two files in its folder `data`."
        )
    if labels is not None and not (src or val_tar):
        raise ConfigError("--labels: they belong to validation images, but only --train-tar is given. Leave it out.")
    known = next((each for each in MODES if each == (mode or "copy")), None)
    if known is None:
        raise ConfigError(f"--mode: unknown '{mode}'. Known: {', '.join(MODES)}.")
    return known


def _read_kit(
    labels: Path | None, meta: Path | None, devkit: Path | None, with_labels: bool
) -> tuple[list[int], "Synsets | None"]:
    """Labels and classes as far as they are given; counts other than the published ones are told on stderr."""
    from halfseen.data.imagenet import read_devkit, read_labels, read_synsets, unusual_counts

    if devkit is not None:
        listed, synsets = read_devkit(devkit)
    elif meta is not None:
        listed, synsets = read_labels(labels) if labels is not None else [], read_synsets(meta)
    else:
        return [], None
    for sentence in unusual_counts(listed if with_labels else None, synsets):
        typer.echo(f"Warning: {sentence}.", err=True)
    return listed, synsets


def _tell_arrangement(plan: "Plan", num_new: int, mode: "Mode", dry_run: bool) -> None:
    folders = {target.partition("/")[0] for target in plan.targets}
    there = len(plan) + plan.num_placed - num_new
    verb = f"Would {mode}" if dry_run else MODES[mode]
    typer.echo(
        f"{verb} {num_new:,} images from {plan.origin} into {len(folders):,} class folders below {plan.dst}"
        f"{f'; {there:,} were there already' if there else ''}."
    )


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

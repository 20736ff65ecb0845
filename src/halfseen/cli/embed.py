"""`halfseen embed`: an encoder's features of somebody's images, as a file for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfseen.cli.inputs import find_run, forward_settings, need_suffix, open_images, progress_line, whole_or_split
from halfseen.cli.measuring import (
    Device,
    EncoderWord,
    ImageSize,
    Precision,
    Pretrained,
    Role,
    Workers,
)
from halfseen.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from halfseen.data.sources import Source
    from halfseen.evaluation.features import FeatureSet


def command(
    encoder: EncoderWord,
    data: Annotated[str, typer.Argument(help="DATA: a folder, a manifest, bundled:fashion, torchvision:NAME.")],
    out: Annotated[Path, typer.Option(help="The file to write: .npz or .parquet.")],
    split: Annotated[str, typer.Option(help="train (all, where the data has no parts) or test.")] = "train",
    feature: Annotated[str | None, typer.Option(help="cls, mean, cls+mean or mean-before-norm; default mean.")] = None,
    role: Role = None,
    image_size: ImageSize = None,
    crop_ratio: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Centre crop over the resized shorter side.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 128,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = 0,
    pretrained: Pretrained = False,
) -> None:
    """Write the features of all images of DATA, with their paths and labels.

    An .npz holds the arrays features [n, D], labels (-1 = none), indices, paths and class_names.

    Example: halfseen embed runs/demo my_photos --out features.npz
    """
    need_suffix("--out", out, (".npz", ".parquet"))
    if split not in ("train", "test"):
        raise ConfigError(f"--split: got '{split}', expected train or test.")
    run = find_run(encoder)
    forward = forward_settings(device, precision, run)

    from halfseen.backbones.weights import load_encoder
    from halfseen.evaluation.features import EncoderFeatures, extract_features
    from halfseen.evaluation.results import KNNConfig, feature_kind

    if out.suffix == ".parquet":
        _need_parquet()
    settings = KNNConfig.model_validate({}) if run is None else run.config.evaluate
    loaded = load_encoder(encoder, role, image_size=image_size, pretrained=pretrained)
    images = open_images(data, "test" if split == "test" else whole_or_split(data, "train"), run)
    extractor = EncoderFeatures(
        loaded.encoder,
        loaded.mean,
        loaded.std,
        feature=settings.feature if feature is None else feature_kind(feature),
        device=forward.device,
        precision=forward.precision,
    )
    with progress_line() as on_progress:
        found = extract_features(
            {"encoder": extractor},
            images,
            image_size=loaded.encoder.image_size,
            resize=settings.resize,
            crop_ratio=settings.crop_ratio if crop_ratio is None else crop_ratio,
            batch_size=batch_size,
            workers=workers,
            on_progress=lambda done, of: on_progress("features", done, of),
        )["encoder"]
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, found, images)
    for file in found.skipped:
        typer.echo(f"Skipped: {file.path!r}: {file.reason}", err=True)
    count, width = found.features.shape
    typer.echo(f"Written: {out} ({count:,} images, {width} numbers each, {len(found.skipped)} files skipped)")


def _write(out: Path, found: "FeatureSet", images: "Source") -> None:
    """Both forms hold the same; the file appears whole or not at all."""
    import numpy as np

    indices = found.indices.numpy()
    paths = [images.path(int(index)) for index in indices]
    beside = out.with_name(out.name + ".part")
    if out.suffix == ".npz":
        with beside.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                features=found.features.numpy(),
                labels=found.labels.numpy(),
                indices=indices,
                paths=np.array(paths, dtype=np.str_),
                class_names=np.array(images.class_names, dtype=np.str_),
            )
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        features = found.features.contiguous().numpy()
        table = pa.table(
            {
                "index": indices,
                "path": [path.encode("utf-8", "replace").decode() for path in paths],
                "label": found.labels.numpy(),
                "class_name": [images.class_names[label] if label >= 0 else None for label in found.labels.tolist()],
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1]),
            }
        )
        pq.write_table(table, beside)
    beside.replace(out)


def _need_parquet() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "--out: a .parquet file needs pyarrow, which is not installed. Run: pip install 'halfseen[parquet]', or "
            "write an .npz."
        ) from error

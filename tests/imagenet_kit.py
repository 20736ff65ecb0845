"""ImageNet in its published form, in small: meta.mat, the list of labels, the archives."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

FIELDS = (
    "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images",
)  # fmt: skip


def write_meta(
    path: Path,
    ids: Sequence[int],
    wnids: Sequence[str],
    num_children: Sequence[int] | None = None,
    num_train_images: Sequence[int] | None = None,
) -> Path:
    """A meta.mat with the genuine struct array `synsets` of shape (M, 1)."""
    synsets = np.empty((len(ids), 1), dtype=[(name, object) for name in FIELDS])
    for row, (number, wnid) in enumerate(zip(ids, wnids, strict=True)):
        children = 0 if num_children is None else int(num_children[row])
        synsets[row, 0] = (
            np.array([[number]], np.uint16),
            str(wnid),
            f"words of {wnid}",
            f"gloss of {wnid}",
            np.array([[children]], np.uint8),
            np.zeros((1, children), np.uint16),
            np.array([[0]], np.uint8),
            np.array([[0 if num_train_images is None else num_train_images[row]]], np.uint16),
        )
    savemat(path, {"synsets": synsets})
    return path


def write_labels(path: Path, labels: Sequence[int]) -> Path:
    path.write_text("".join(f"{label}\n" for label in labels))
    return path


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write_images(folder: Path, contents: Sequence[bytes]) -> Path:
    """The flat folder of validation images, numbered from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents, start=1):
        (folder / image_name(number)).write_bytes(content)
    return folder


def tar_of(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A plain archive; a `TarInfo` is stored as it is, without content."""
    with io.BytesIO() as written:
        with tarfile.open(fileobj=written, mode="w") as archive:
            for name, content in members.items():
                if isinstance(content, tarfile.TarInfo):
                    archive.addfile(content)
                else:
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    archive.addfile(about, io.BytesIO(content))
        return written.getvalue()


def write_devkit(path: Path, labels: Path, meta: Path) -> Path:
    """ILSVRC2012_devkit_t12.tar.gz with its two data files and a read-me file."""
    root = "ILSVRC2012_devkit_t12"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (
            (f"{root}/readme.txt", b"ImageNet Large Scale Visual Recognition Challenge 2012"),
            (f"{root}/data/ILSVRC2012_validation_ground_truth.txt", labels.read_bytes()),
            (f"{root}/data/meta.mat", meta.read_bytes()),
        ):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path

"""Makes the bundled data set: `python scripts/make_bundled_data.py FOLDER_OF_FASHION_MNIST`.

FOLDER holds Fashion-MNIST's four original IDX files and its licence text. Of each class the first 1,000 training and
the first 200 test images, in the order of the files, go into src/halfseen/data/assets/fashion.npz: one PNG mosaic (4.9
MB; zlib on the raw bytes gives 5.2, lzma 4.5 but takes 0.6 s to load instead of 0.1) and the labels beside it.
"""

import argparse
import gzip
import shutil
from pathlib import Path

import cv2
import numpy as np

ASSETS = Path(__file__).parent.parent / "src" / "halfseen" / "data" / "assets"
SIDE = 28
MOSAIC_COLUMNS = 120
NUM_CLASSES = 10
PER_CLASS = {"train": 1000, "test": 200}
FILES = {"train": "train", "test": "t10k"}


def main() -> None:
    """Reads the folder named on the command line and writes the two assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with Fashion-MNIST's IDX files and LICENSE.txt")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write into")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images, labels = {}, {}
    for split, prefix in FILES.items():
        whole = read_idx(arguments.folder / f"{prefix}-images-idx3-ubyte.gz")
        classes = read_idx(arguments.folder / f"{prefix}-labels-idx1-ubyte.gz")
        chosen = choose_balanced(classes, PER_CLASS[split])
        images[split], labels[split] = whole[chosen], classes[chosen]
    target = arguments.out / "fashion.npz"
    write_assets(target, images["train"], labels["train"], images["test"], labels["test"])
    shutil.copyfile(arguments.folder / "LICENSE.txt", arguments.out / "FASHION_MNIST_LICENSE.txt")
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def choose_balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices, ascending, of the first `per_class` images of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == number)[:per_class] for number in range(NUM_CLASSES)]))


def write_assets(
    path: Path, train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray
) -> None:
    """Writes mosaic and labels. Images: uint8 [n, 28, 28]; the number of all images is a multiple of 120."""
    images = np.concatenate([train_images, test_images])
    rows = len(images) // MOSAIC_COLUMNS
    mosaic = images.reshape(rows, MOSAIC_COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3)
    mosaic = mosaic.reshape(rows * SIDE, MOSAIC_COLUMNS * SIDE)
    done, png = cv2.imencode(
        ".png", mosaic, [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_ALL_FILTERS]
    )
    if not done:
        raise SystemExit("the mosaic could not be compressed")
    np.savez(path, mosaic=png.ravel(), train_labels=train_labels, test_labels=test_labels)


if __name__ == "__main__":
    main()

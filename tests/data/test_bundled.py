"""The bundled images: balanced, small, fast to unpack, and made by the script that the repository keeps."""

import gzip
import importlib.util
import struct
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import cv2
import numpy as np

from halfseen.data.bundled import CLASS_NAMES, _unpack, load_fashion
from halfseen.data.sources import has_split, open_source

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_bundled_data.py"


def test_counts_classes_and_balance() -> None:
    train, test = open_source("bundled:fashion"), open_source("bundled:fashion", "test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.class_names == CLASS_NAMES
    assert np.bincount(train.labels).tolist() == [1000] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert has_split("bundled:fashion", "test")
    assert train.is_sound


def test_images_are_grey_in_three_channels() -> None:
    image = open_source("bundled:fashion").read(123)
    assert image.shape == (28, 28, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image[..., 0], image[..., 2])
    assert np.array_equal(image[..., 1], load_fashion("train").images[123])


def test_it_is_really_fashion_mnist() -> None:
    """Facts of the original files: the first training image is an ankle boot, and known classes look as they must."""
    train = load_fashion("train")
    assert CLASS_NAMES[train.labels[0]] == "ankle boot"
    assert int(train.images[0].sum()) == 76_247
    mean = train.images.mean() / 255
    assert 0.27 < mean < 0.30  # 0.286 in the whole set


def test_train_and_test_share_no_image() -> None:
    train = {image.tobytes() for image in load_fashion("train").images}
    assert not any(image.tobytes() in train for image in load_fashion("test").images)


def test_the_assets_are_small_and_carry_the_licence() -> None:
    assets = resources.files("halfseen.data") / "assets"
    sizes = [len(entry.read_bytes()) for entry in assets.iterdir() if entry.is_file()]
    assert sum(sizes) <= 6_000_000
    licence = (assets / "FASHION_MNIST_LICENSE.txt").read_text()
    assert "MIT" in licence
    assert "Zalando" in licence


def test_unpacking_takes_little_time() -> None:
    times = []
    for _ in range(3):
        _unpack.cache_clear()
        started = time.process_time()
        load_fashion("train")
        times.append(time.process_time() - started)
    assert min(times) < 0.3


def test_raw_pixels_classify_as_well_as_they_are_known_to() -> None:
    """Cosine 20-nearest-neighbours on raw pixels: about 81 % on this set."""
    train, test = load_fashion("train"), load_fashion("test")
    memory, queries = (split.images.reshape(len(split.images), -1).astype(np.float32) for split in (train, test))
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    nearest = np.argpartition(-queries @ memory.T, 20, axis=1)[:, :20]
    votes = np.eye(10)[train.labels[nearest]].sum(axis=1)
    assert 0.79 < (votes.argmax(axis=1) == test.labels).mean() < 0.83


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def test_the_script_chooses_the_first_of_each_class_and_loses_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)  # images of one dot each: noise would take zlib a minute
    whole = {}
    for prefix, count in (("train", 11_000), ("t10k", 2_500)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images.reshape(count, -1)[np.arange(count), generator.integers(0, 784, size=count)] = 200
        labels = generator.permutation(np.arange(count) % 10).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
        whole[prefix] = (images, labels)
    (tmp_path / "LICENSE.txt").write_text("MIT")
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "--out", str(tmp_path / "out")], check=True)
    content = np.load(tmp_path / "out" / "fashion.npz", allow_pickle=False)
    spec = importlib.util.spec_from_file_location("make_bundled_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    images, labels = whole["train"]
    chosen = script.choose_balanced(labels, 1000)
    assert np.bincount(labels[chosen]).tolist() == [1000] * 10
    for number in range(10):
        assert np.array_equal(chosen[labels[chosen] == number], np.flatnonzero(labels == number)[:1000])
    assert np.array_equal(content["train_labels"], labels[chosen])
    mosaic = cv2.imdecode(content["mosaic"], cv2.IMREAD_GRAYSCALE)
    row, column = divmod(777, 120)
    assert np.array_equal(mosaic[28 * row : 28 * row + 28, 28 * column : 28 * column + 28], images[chosen[777]])
    assert mosaic.shape == (100 * 28, 120 * 28)

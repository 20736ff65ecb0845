"""Every validation image of ImageNet lands in the folder of its class, through the real command."""

from pathlib import Path

import numpy as np
import pytest

from halfseen.cli.main import run
from imagenet_kit import image_name, write_images, write_labels, write_meta
from parity.discovery import load_arrays, parity_files


@pytest.mark.parametrize("path", parity_files("localmim", "ilsvrc2012_mapping"))
def test_images_lie_in_the_folder_of_their_wnid(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    ids, wnids = arrays["ilsvrc2012_id"].tolist(), arrays["wnid"].tolist()
    meta = write_meta(tmp_path / "meta.mat", ids, wnids, arrays.get("num_children"))
    wnid_of = dict(zip(ids, wnids, strict=True))
    firsts = [name for name in arrays if name.startswith("val_label_first")]
    assert firsts
    for name in firsts:
        labels = arrays[name].astype(np.int64).tolist()
        src = write_images(tmp_path / name, [b""] * len(labels))
        listed = write_labels(tmp_path / f"{name}.txt", labels)
        words = ["data", "arrange-imagenet", "--src", str(src), "--labels", str(listed), "--meta", str(meta)]
        assert run([*words, "--mode", "move"]) == 0
        found = {file.relative_to(src).as_posix() for file in src.rglob("*") if file.is_file()}
        assert found == {f"{wnid_of[label]}/{image_name(number)}" for number, label in enumerate(labels, start=1)}

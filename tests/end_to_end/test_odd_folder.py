"""A folder with every odd image there is trains to its end; what can't be used is listed with its reason."""

import json
from pathlib import Path

from command_line import TINY, run
from odd_images import write_odd_images


def test_a_folder_of_odd_files_trains_to_the_end(tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path / "odd")
    assert len(odd) >= 200
    words = (*TINY["mae"], "train.epochs=2", "data.max_bad_fraction=0.9", "--name", "odd")
    done = run("pretrain", "odd", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    data = json.loads((tmp_path / "runs" / "odd" / "data.json").read_text())
    listed = {Path(each["path"]).name: each["reason"] for each in [*data["left_out"], *data["skipped"]]}
    for each in odd:
        if each.reason is None:
            assert each.path.name not in listed, listed.get(each.path.name)
        else:
            assert each.reason in listed[each.path.name], each.path.name


def test_too_many_bad_files_stop_the_run_before_it_trains(tmp_path: Path) -> None:
    write_odd_images(tmp_path / "odd")
    done = run("pretrain", "odd", *TINY["mae"], "data.max_bad_fraction=0.01", "--name", "odd", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.max_bad_fraction" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "odd" / "metrics.jsonl").exists()

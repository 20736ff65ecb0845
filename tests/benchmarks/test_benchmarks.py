"""The benchmark measures what it says, in turns, and its own contestants are the models of the papers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.clock import interleaved, resident_now, resident_peak, spread

ROOT = Path(__file__).resolve().parents[2]


def test_contestants_take_turns_and_the_order_turns_round() -> None:
    calls: list[str] = []
    seconds = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], repetitions=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(times) for times in seconds] == [3, 3]


def test_the_slower_one_is_seen() -> None:
    quick, slow = interleaved([lambda: time.sleep(0.001), lambda: time.sleep(0.02)], repetitions=3)
    assert min(slow) >= 0.02 > min(quick)


def test_spread_is_half_the_quartile_distance_over_the_median() -> None:
    assert spread([1.0, 1.0, 1.0]) == 0.0
    assert spread([8.0, 10.0, 12.0]) == pytest.approx(0.2)


def test_peak_memory_belongs_to_the_process_that_asks() -> None:
    """A child must not start with its parent's peak, as `ru_maxrss` does on Linux."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system tells the peak in another way")
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    command = [sys.executable, "-c", "from benchmarks.clock import resident_peak; print(resident_peak())"]
    child = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    now = resident_now()
    assert resident_peak() >= now > 400_000_000
    assert child < resident_peak() - 100_000_000


@pytest.mark.slow
def test_one_case_end_to_end(tmp_path: Path) -> None:
    """KAMIM with ViT-S, without a peer: the numbers fit together and the model has the paper's size."""
    options = ["--case", "kamim", "--precision", "fp32", "--repetitions", "2", "--no-peers", "--no-views"]
    command = [sys.executable, "-m", "benchmarks", *options, "--json", str(tmp_path / "numbers.json")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    (row,) = json.loads((tmp_path / "numbers.json").read_text())["steps"]
    assert row["trained_parameters"] == 21_941_760
    assert row["images_per_second"] > 0 and row["gemm_share"] > 0
    assert all(seconds >= 0 for seconds in row["seconds_per_image"].values())
    parts = row["seconds_per_image"]
    step = parts["forward"] + parts["backward"] + parts["update"]
    assert 1 / row["images_per_second"] == pytest.approx(step, rel=0.5)
    assert row["ours_peak_gib"] > row["ours_imports_gib"] > 0
    assert "KAMIM ViT-S/16, FAST" in printed

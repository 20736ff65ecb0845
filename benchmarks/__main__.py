"""`make bench`: how fast the methods train on this machine, beside the same models elsewhere, in one run.

Prints images per second, the share of the machine's matrix-product peak, what a step is made of, and peak memory. MAE
and SimMIM stand beside transformers, iBOT, MSN and LocalMIM beside plain implementations written out here. The
two contestants of a case take their steps in turns and the ratio is the median over neighbours in time, so it hardly
depends on the machine's mood; images per second do.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import views
from benchmarks.batches import case_batch, photographs
from benchmarks.cases import CASES, Case, Contestant, chosen
from benchmarks.clock import GEMM_FLOPS, gemm, in_fresh_process, interleaved, spread
from benchmarks.flops import count_flops
from benchmarks.ours import build, build_ours
from halfseen.data.loader import Job, TrainingWorker
from halfseen.data.sources import Source
from halfseen.engine.config import available_cores, native_precision

GIBIBYTE = 2**30


class Phases(NamedTuple):
    """Median seconds per image of a step's parts."""

    data: float
    augment: float
    forward: float
    backward: float
    update: float

    def shares(self) -> str:
        """Percentages of their sum."""
        return " / ".join(f"{part / sum(self):3.0%}" for part in self)


class Timed:
    """A contestant whose phases are timed at each step."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.seconds: dict[str, list[float]] = {"forward": [], "backward": [], "update": []}

    def __call__(self) -> None:
        """One step."""
        marks = [time.perf_counter()]
        loss = self.contestant.forward()
        marks.append(time.perf_counter())
        self.contestant.backward(loss)
        marks.append(time.perf_counter())
        self.contestant.update()
        marks.append(time.perf_counter())
        for name, start, end in zip(self.seconds, marks[:-1], marks[1:], strict=True):
            self.seconds[name].append(end - start)

    def median(self, phase: str) -> float:
        """Seconds of a phase, the first (cold) step left out."""
        return statistics.median(self.seconds[phase][1:])


def data_seconds(case: Case, source: Source, repetitions: int) -> tuple[float, float]:
    """Seconds per image in this process: for reading and decoding, and for cutting the views and their extras."""
    worker = TrainingWorker(source, build(case).view_plan(), seed=0)
    count = len(source)

    def decode() -> None:
        for index in range(count):
            source.read(index)

    def whole() -> None:
        worker(Job(0, torch.arange(count).numpy()))

    decoding, both = (statistics.median(times) / count for times in interleaved([decode, whole], repetitions))
    return decoding, max(0.0, both - decoding)


def measure(name: str, precision: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one case at one precision."""
    case, source = chosen(name, arguments.batch_size), photographs(folder)
    checkpoints, batch = arguments.activation_checkpointing, case_batch(case, source)
    contestants, formats = [build_ours(case, precision, batch, checkpoints)], [precision]
    if case.peer and arguments.peers:
        from benchmarks.peers import build_peer

        formats.append(case.peer_precision(precision))
        contestants.append(build_peer(case, formats[1]))
    flops = [count_flops(contestant) for contestant in contestants]
    timed = [Timed(contestant) for contestant in contestants]
    keeping = [build_ours(case, precision, batch).step] if checkpoints else []
    products: dict[str, Callable[[], object]] = {each: gemm(each) for each in formats}
    times = interleaved([*products.values(), *timed, *keeping], arguments.repetitions)
    peaks = {each: GEMM_FLOPS / min(seconds) for each, seconds in zip(products, times, strict=False)}
    seconds = times[len(products) : len(products) + len(timed)]
    step = statistics.median(seconds[0])
    data, augment = data_seconds(case, source, arguments.repetitions)
    phases = Phases(data, augment, *(timed[0].median(phase) / case.batch_size for phase in timed[0].seconds))
    row: dict[str, Any] = {
        "case": name,
        "precision": precision,
        "batch_size": case.batch_size,
        "images_per_second": case.batch_size / step,
        "spread": spread(seconds[0]),
        "gemm_flops": peaks[precision],
        "gemm_share": flops[0] / step / peaks[precision],
        "step_flops": flops[0],
        "trained_parameters": contestants[0].num_trained,
        "seconds_per_image": phases._asdict(),
        "shares": phases.shares(),
    }
    if checkpoints:
        longer = [ours / plain for ours, plain in zip(seconds[0], times[-1], strict=True)]
        row |= {"checkpointing_time": statistics.median(longer), "checkpointing_spread": spread(longer)}
    if case.peer and len(contestants) == 2:
        ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
        their_step, their_peak = statistics.median(seconds[1]), peaks[formats[1]]
        row |= {
            "peer": case.peer.title,
            "peer_precision": formats[1],
            "peer_images_per_second": case.batch_size / their_step,
            "peer_gemm_flops": their_peak,
            "peer_gemm_share": flops[1] / their_step / their_peak,
            "peer_step_flops": flops[1],
            "peer_trained_parameters": contestants[1].num_trained,
            "ratio": statistics.median(ratios),
            "ratio_spread": spread(ratios),
        }
    for who, its_format in zip(("ours", "peer"), formats, strict=False):
        process = "checkpointed" if who == "ours" and checkpoints else who
        memory = in_fresh_process(name, process, its_format, str(case.batch_size), str(folder))
        row |= {f"{who}_peak_gib": memory["peak"] / GIBIBYTE, f"{who}_imports_gib": memory["before"] / GIBIBYTE}
    if "peer_peak_gib" in row:
        own, theirs = (row[f"{who}_peak_gib"] - row[f"{who}_imports_gib"] for who in ("ours", "peer"))
        row |= {"memory_ratio": row["ours_peak_gib"] / row["peer_peak_gib"], "step_memory_ratio": own / theirs}
    return row


def line(row: dict[str, Any]) -> str:
    """One row of the table as text."""
    case = CASES[row["case"]]
    text = (
        f"{case.title:22}{case.image_size:4} px x{row['batch_size']:<3}{row['precision']:5}"
        f"{row['images_per_second']:7.2f} /s ±{row['spread']:3.0%}"
        f"{row['gemm_share']:6.0%} of {row['gemm_flops'] / 1e9:3.0f} GFLOP/s  {row['shares']}"
        f"{row['ours_peak_gib']:7.2f} GiB"
    )
    if "checkpointing_time" in row:
        longer, its_spread = row["checkpointing_time"], row["checkpointing_spread"]
        text += f" | {longer:.2f}x the time of a step that keeps all (±{its_spread:.0%})"
    if "ratio" in row:
        text += (
            f" | {row['peer']}: {row['peer_images_per_second']:.2f} /s, "
            f"{row['peer_gemm_share']:.0%} of {row['peer_gemm_flops'] / 1e9:.0f} GFLOP/s, "
            f"{row['peer_step_flops'] / row['step_flops']:.2f}x our operations, {row['peer_peak_gib']:.2f} GiB; "
            f"ours is {row['ratio']:.2f}x as fast (±{row['ratio_spread']:.0%}) in {row['memory_ratio']:.2f}x "
            f"the memory ({row['step_memory_ratio']:.2f}x without imports)"
        )
    return text


def at_default_precision(rows: list[dict[str, Any]], native: str) -> list[str]:
    """What a user of either library gets without naming a precision: ours in the native one, the peer in fp32."""
    default = {row["case"]: row["images_per_second"] for row in rows if row["precision"] == native}
    plain = [
        row
        for row in rows
        if row["precision"] == row.get("peer_precision") == "fp32"
        and row["case"] in default
        and CASES[row["case"]].peer_precision("bf16") == "bf16"  # Else the row of the native precision says it.
    ]
    return [
        f"{CASES[row['case']].title}: {native} here is {default[row['case']] / row['peer_images_per_second']:.2f}x as "
        f"fast as {row['peer']} in its default, fp32"
        for row in plain
        if native != "fp32"
    ]


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this case (may be repeated)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), action="append", help="only this precision")
    parser.add_argument("--batch-size", type=int, help="images per step, instead of each case's own number")
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="ours keeps the inputs of blocks only, beside a step that keeps all",
    )
    parser.add_argument("--repetitions", type=int, default=7, help="measured steps of each contestant (default 7)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="measure ours alone")
    parser.add_argument("--no-views", dest="views", action="store_false", help="leave out the view pipelines")
    parser.add_argument("--json", type=Path, help="write all numbers to this file too")
    arguments = parser.parse_args()
    if arguments.repetitions < 2:
        parser.error("--repetitions: expected at least 2")
    if arguments.batch_size is not None and arguments.batch_size < 2:
        parser.error("--batch-size: expected at least 2; batch norms need as many")
    wanted = [CASES[name].peer for name in arguments.case or CASES]
    needed = any(peer is not None and peer.package == "transformers" for peer in wanted)
    if arguments.peers and needed and find_spec("transformers") is None:
        parser.error("transformers is not installed. Run `make bench`, or give --no-peers")
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = read_arguments()
    native = native_precision("cpu")
    precisions = arguments.precision or (["fp32", "bf16"] if native == "bf16" else ["fp32"])
    peers = f", transformers {version('transformers')}" if arguments.peers and find_spec("transformers") else ""
    print(f"{available_cores()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads{peers}")
    print(f"default precision here: {native}. Columns: images/s, spread, share of the matrix-product peak of this")
    print("precision, a step's data / augment / forward / backward / update, peak resident memory of a fresh process")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        views.write_photographs(Path(place), 16)
        for name in arguments.case or CASES:
            for precision in precisions:
                rows.append(measure(name, precision, Path(place), arguments))
                print(line(rows[-1]), flush=True)
    for sentence in at_default_precision(rows, native):
        print(sentence)
    speeds = views.measure() if arguments.views else []
    if speeds:
        print(views.table(speeds))
    if arguments.json:
        record = {"steps": rows, "views": [speed._asdict() for speed in speeds]}
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    sys.exit(main())

"""Progressive freezing against recorded timelines: rates, freeze times and branches, micro-batch by micro-batch."""

import numpy as np
import pytest

from halfseen.ops.freezing import FreezeSchedule
from halfseen.ops.schedules import rebased_cosine
from parity.discovery import load_arrays, parity_files


def cases() -> list:
    """Every case of every file; a case's settings are read from its own arrays."""
    found = []
    for parameter in parity_files("freezeout", "lr_timelines"):
        path = parameter.values[0]
        if path is None:
            return [pytest.param(None, None, marks=parameter.marks)]
        names = sorted({name.split("/")[0] for name in load_arrays(path)})
        found += [pytest.param(path, name, id=f"{path.stem}-{name}") for name in names]
    return found


@pytest.mark.parametrize(("path", "case"), cases())
def test_timeline(path, case):
    arrays = load_arrays(path)
    record = {name.removeprefix(f"{case}/"): array for name, array in arrays.items() if name.startswith(f"{case}/")}
    t0, epochs, warmup, per_epoch, accumulation, peak, minimum, depth = record["cfg"].tolist()
    mode = str(record["mode"])
    skipped = 0 if bool(record["freeze_patch_embed"]) else 1
    schedule = FreezeSchedule(
        last_unit=int(depth) - skipped,
        t0=t0,
        scale=str(record["how_scale"]),
        epochs=int(epochs),
        warmup_epochs=int(warmup),
        micro_batches_per_epoch=int(per_epoch),
        accumulation=int(accumulation),
        layerwise_lr=mode != "shared",
        scale_lr=mode == "scaled",
    )
    taps = [block - skipped for block in (2, 4, int(depth) - 2, int(depth))]
    steps, units = record["lr_layers"].shape
    assert units == schedule.last_unit + 1

    np.testing.assert_allclose(schedule.ends, record["T_iter_after_warmup"], rtol=1e-14)
    moments = [-1 if moment is None else moment for moment in schedule.freezing_micro_batches]
    np.testing.assert_array_equal(moments, record["first_frozen_iteration"])
    np.testing.assert_array_equal([schedule.frozen(step) for step in range(steps)], record["min_active_layer_index"])
    np.testing.assert_array_equal(
        [len(taps) - schedule.branches_gone(taps, step) for step in range(steps)], record["n_branches"]
    )

    def others(step: int) -> float:
        epoch = schedule.refreshed(step) / per_epoch
        return rebased_cosine(epoch, base=peak, total=epochs, warmup=warmup, minimum=minimum)

    def of_unit(unit: int, step: int) -> float:
        if unit < schedule.frozen(step):
            return float("nan")
        return schedule.rate(unit, step, peak) if schedule.anneals(step) else others(step)

    np.testing.assert_allclose(
        [others(step) for step in range(steps)], record["lr_other"], rtol=1e-12, atol=1e-14 * peak
    )
    ours = [[of_unit(unit, step) for unit in range(units)] for step in range(steps)]
    np.testing.assert_allclose(ours, record["lr_layers"], rtol=1e-12, atol=1e-14 * peak)

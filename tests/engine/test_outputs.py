"""Collapses are named within the first epochs, healthy runs are left in peace."""

import math

from halfseen.engine.finding import Finding
from halfseen.engine.health import Health, RunShape
from halfseen.engine.outputs import OutputsOf, OutputWatch

LN_K = math.log(256)


def watch(warmup: float = 100, of: OutputsOf = "images") -> OutputWatch:
    return OutputWatch(num_outputs=256, rows=64, warmup_steps=warmup, steps_per_epoch=100, of=of)


def look(outputs: OutputWatch, count: int = 60, **values: float) -> list[Finding]:
    steps = range(10, 10 * count + 1, 10)
    return [finding for step in steps for finding in outputs.check({"step": step, "loss": 1.0, **values})]


def test_one_output_for_all_images_is_named_within_the_first_epoch() -> None:
    found = look(watch(), teacher_entropy=0.01, assignment_entropy=0.02, prototypes_used=1.0, agreement=1.0)
    assert {finding.id for finding in found} == {"one_output"}
    assert found[0].step <= 100
    assert "Collapse" in found[0].sentence and "method.me_max" in found[0].sentence


def test_the_same_soft_output_for_all_images_is_a_collapse_too() -> None:
    assert {f.id for f in look(watch(), teacher_entropy=1.9, assignment_entropy=1.95)} == {"one_output"}


def test_a_handful_of_outputs_is_a_collapse() -> None:
    found = look(watch(), teacher_entropy=0.15, assignment_entropy=1.09, prototypes_used=3.0, agreement=0.75)
    assert {finding.id for finding in found} == {"one_output"}
    assert "the same 3 outputs" in found[0].sentence and found[0].step <= 100


def test_uniform_outputs_are_named_after_the_warmup_only() -> None:
    values = {"teacher_entropy": 0.995 * LN_K, "assignment_entropy": LN_K, "agreement": 0.5}
    found = look(watch(warmup=300), **values)
    assert {finding.id for finding in found} == {"uniform_outputs"}
    assert found[0].step == 300
    assert f"ln K = {LN_K:.4g}" in found[0].sentence


def test_a_healthy_run_is_left_in_peace() -> None:
    assert look(watch(), teacher_entropy=1.2, assignment_entropy=4.8, prototypes_used=50.0, agreement=0.6,
                center_norm=2.0) == []  # fmt: skip
    early = {"teacher_entropy": 5.4, "assignment_entropy": 5.5, "agreement": 0.02}
    assert look(watch(warmup=300), count=29, **early) == [], "during the warm-up a teacher may know nothing yet"


def test_few_outputs_chance_agreement_and_a_growing_centre() -> None:
    few = look(watch(), teacher_entropy=0.5, assignment_entropy=1.6, prototypes_used=3.0)
    assert {finding.id for finding in few} == {"few_outputs"}
    apart = look(watch(), teacher_entropy=1.0, assignment_entropy=4.5, agreement=0.005)
    assert {finding.id for finding in apart} == {"disagreement"}
    outputs = watch()
    found = [
        finding
        for step in range(1, 101)
        for finding in outputs.check(
            {"step": step, "teacher_entropy": 1.0, "assignment_entropy": 4.5, "center_norm": 1.05**step}
        )
    ]
    assert {finding.id for finding in found} == {"center_grows"}


def test_the_watcher_of_a_run_looks_at_outputs_where_there_are_any() -> None:
    shape = RunShape(steps_per_epoch=100, last_step=1000, num_outputs=256, rows=64)
    record = {"loss": 1.0, "teacher_entropy": 0.0, "assignment_entropy": 0.0}
    assert {f.id for step in range(10, 400, 10) for f in Health(shape).check({"step": step, **record})} == set()
    health = Health(shape)
    assert {f.id for step in range(10, 400, 10) for f in health.check({"step": step, **record})} == {"one_output"}
    without = Health(shape._replace(num_outputs=None))
    assert "one_output" not in {f.id for step in range(10, 400, 10) for f in without.check({"step": step, **record})}


def test_the_sentences_name_what_the_outputs_are_of() -> None:
    ill = (
        {"teacher_entropy": 0.01, "assignment_entropy": 0.02},
        {"teacher_entropy": LN_K, "assignment_entropy": LN_K},
        {"teacher_entropy": 0.5, "assignment_entropy": 1.6, "prototypes_used": 3.0},
        {"teacher_entropy": 1.0, "assignment_entropy": 4.5, "agreement": 0.0},
    )
    expected = ("all patches the same output", "method.teacher_patch_temp)", "Patches are told apart", "of the patches")
    for values, words in zip(ill, expected, strict=True):
        of_images, of_patches = (look(watch(of=of), **values)[0].sentence for of in ("images", "patches"))
        assert words in of_patches and "image" not in of_patches
        assert "image" in of_images and "patch" not in of_images


def test_the_watcher_of_a_run_is_told_what_the_outputs_are_of() -> None:
    shape = RunShape(steps_per_epoch=100, last_step=1000, num_outputs=256, rows=64, outputs_of="patches")
    assert Health(shape).outputs == watch(warmup=0, of="patches")

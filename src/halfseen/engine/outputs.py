"""What a teacher's outputs tell about a run of self-distillation: whether they still tell images apart.

Every image (or, where patches are what is learned, every hidden patch) spreads a probability of 1 over K outputs
(prototypes). Two collapses make the loss small and the encoder useless: every image gives the same single output, or
every image gives all outputs alike. In both the entropy of the mean output over a batch equals the mean entropy of the
outputs: their difference, the information that an output has about its image, is gone.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from halfseen.engine.finding import Finding

RECORDS = 5
"""Lines of the log that must agree before something is said."""
FIRST_STEPS = 50
"""Updates after which a teacher must tell images apart; before, its centre has not settled."""
UNIFORM_STEPS = 200
UNIFORM_SHARE = 0.98
INFORMATION_SHARE = 0.05
FEW_SHARE = 0.35
"""Below this share of its largest value the entropy of the mean output is that of a handful of outputs."""
FEW_OUTPUTS_SHARE = 0.05
CENTER_GROWTH = 10.0
CENTER_RECORDS = 20


OutputsOf = Literal["images", "patches"]

_ONE = {"images": "image", "patches": "patch"}
_TEMPERATURES = {"images": "method.teacher_temp, method.start_sharpen", "patches": "method.teacher_patch_temp"}
_REASONS = {
    "images": "the views of an image are too different, or the step too large. Raise the smallest crop scale",
    "patches": "too much is hidden, or the step too large. Lower method.mask.pred_ratio",
}


@dataclass
class OutputWatch:
    """Watches the outputs of one run.

    Attributes:
        num_outputs: K.
        rows: images of a micro-batch on one process: the fewest over which the numbers of the log are taken. They bound
            how many outputs can be used, so a small one makes the watcher slow to speak, never wrong.
        warmup_steps: updates of the warm-up.
        steps_per_epoch: updates of an epoch.
        of: what the outputs are of.
    """

    num_outputs: int
    rows: int
    warmup_steps: float
    steps_per_epoch: int
    of: OutputsOf = "images"
    recent: deque[Mapping[str, float | int]] = field(default_factory=lambda: deque(maxlen=RECORDS))
    centers: list[float] = field(default_factory=list)

    def check(self, record: Mapping[str, float | int]) -> list[Finding]:
        """Findings at one line of the log.

        Reads `step`, `teacher_entropy` (mean entropy of an image's output, nats), `assignment_entropy` (entropy of the
        batch's mean output, nats) and, where present, `prototypes_used`, `agreement` and `center_norm`.
        """
        if "teacher_entropy" not in record or "assignment_entropy" not in record:
            return []
        self.recent.append(record)
        step = int(record["step"])
        found = self._center(step, record.get("center_norm"))
        if len(self.recent) < RECORDS or step < FIRST_STEPS:
            return found
        one = self._one_output(step)
        if one:
            return found + one
        return found + self._uniform(step) + self._few_outputs(step) + self._disagreement(step)

    def _mean(self, key: str) -> float | None:
        values = [float(record[key]) for record in self.recent if key in record]
        return fmean(values) if values else None

    def _settled(self, step: int) -> bool:
        """Whether a run that learns must show it by now: the warm-up is over, and each image was seen."""
        return step >= max(UNIFORM_STEPS, self.warmup_steps, self.steps_per_epoch)

    def _most(self) -> float:
        """The largest entropy, in nats, that the mean output of a batch of sharp outputs can have."""
        return math.log(max(2, min(self.num_outputs, self.rows)))

    def _one_output(self, step: int) -> list[Finding]:
        mean_output, each = self._mean("assignment_entropy") or 0.0, self._mean("teacher_entropy") or 0.0
        few = mean_output < FEW_SHARE * self._most()
        same = mean_output - each < INFORMATION_SHARE * self._most() and mean_output < 0.5 * math.log(self.num_outputs)
        if not few and not same:
            return []
        return [
            Finding(
                "one_output",
                f"Collapse: the teacher gives all {self.of} the same {_count(math.exp(mean_output))}. The mean output "
                f"of a batch has an entropy of {mean_output:.3g} nats, that of one {_ONE[self.of]} {each:.3g}; were "
                f"{self.of} told apart, the first would be near {self._most():.3g}. Nothing balances the outputs: "
                "switch on method.centering (iBOT, DINO) or method.me_max (MSN), raise method.memax_weight, or lower "
                "train.lr.base.",
                step,
            )
        ]

    def _uniform(self, step: int) -> list[Finding]:
        limit, each = math.log(self.num_outputs), self._mean("teacher_entropy") or 0.0
        if not self._settled(step) or each < UNIFORM_SHARE * limit:
            return []
        return [
            Finding(
                "uniform_outputs",
                f"The loss is stuck near ln K: the teacher's output for one {_ONE[self.of]} has an entropy of "
                f"{each:.4g} nats, and all {self.num_outputs} outputs alike would have ln K = {limit:.4g}. It says "
                f"nothing about the {_ONE[self.of]}. Lower the teacher's temperature ({_TEMPERATURES[self.of]}), "
                "lengthen train.lr.warmup_epochs or lower train.lr.base.",
                step,
            )
        ]

    def _few_outputs(self, step: int) -> list[Finding]:
        used = self._mean("prototypes_used")
        possible = min(self.num_outputs, self.rows)
        if used is None or not self._settled(step) or used >= max(2.0, FEW_OUTPUTS_SHARE * possible):
            return []
        return [
            Finding(
                "few_outputs",
                f"Only {used:.1f} outputs are the largest for any {_ONE[self.of]} of a batch; up to {possible} could "
                f"be. {self.of.capitalize()} are told apart into very few groups: raise method.memax_weight or the "
                "batch, or lower method.center_momentum.",
                step,
            )
        ]

    def _disagreement(self, step: int) -> list[Finding]:
        agreement = self._mean("agreement")
        if agreement is None or not self._settled(step):
            return []
        chance = 1.0 / self.num_outputs
        if agreement > 2 * chance:
            return []
        return [
            Finding(
                "disagreement",
                f"Student and teacher agree on {100 * agreement:.1f} % of the {self.of}, hardly more than by chance "
                f"({100 * chance:.1f} %): {_REASONS[self.of]}, or lower train.lr.base.",
                step,
            )
        ]

    def _center(self, step: int, norm: float | int | None) -> list[Finding]:
        if norm is None or not math.isfinite(norm):
            return []
        self.centers.append(float(norm))
        if len(self.centers) < 2 * CENTER_RECORDS:
            return []
        early = fmean(self.centers[CENTER_RECORDS // 2 : CENTER_RECORDS])
        late = fmean(self.centers[-RECORDS:])
        if late < CENTER_GROWTH * early or early == 0.0:
            return []
        return [
            Finding(
                "center_grows",
                f"The norm of the teacher's centre has grown from {early:.3g} to {late:.3g}: the outputs of all "
                f"{self.of} drift together. Set method.norm_last_layer=true, or lower train.lr.base or train.optimizer."
                "weight_decay.",
                step,
            )
        ]


def _count(number: float) -> str:
    """A number of outputs in words."""
    return "output" if number < 1.5 else f"{number:.0f} outputs"

"""Is a process reward model good enough to be the only reward of a policy?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pure_rllib.reporting.tables import format_table

MIN_AUC = 0.95
MIN_FIRST_ERROR_F1 = 0.95
MIN_AUC_OF_MINIMUM = 0.99
"""Between the figures of two PRMs of chain arithmetic: one that policies hacked in two
of three runs (first-error F1 0.94), and its second round, in one of three (0.97); see
docs/results.md. A rule of thumb from one small task."""


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One figure and what it has to reach.

    Attributes:
        name: of the figure.
        value: measured; NaN where there was nothing to measure.
        needed: the least that passes.
    """

    name: str
    value: float
    needed: float

    @property
    def passed(self) -> bool:
        """Whether the figure is reached; an unknown one is not."""
        return self.value >= self.needed


def gate_checks(figures: Mapping[str, Any]) -> list[GateCheck]:
    """Compares figures with what a PRM needs before RL.

    A policy searches for the kind of error that the PRM sees worst, so each kind has to
    be seen; and the min form pays the worst step, so the minimum has to tell right
    solutions from wrong ones.

    Args:
        figures: as `measure` computes them; of `arithmetic` and `steps` at least one.
    """
    checks = []
    for part in ("arithmetic", "steps"):
        if part not in figures:
            continue
        found = figures[part]
        aucs = found["auc"] if part == "arithmetic" else {"errors": found["auc"]}
        rows = [(f"AUC of {kind}", auc, MIN_AUC) for kind, auc in aucs.items()]
        rows += [
            ("first-error F1", found["first_error_f1"], MIN_FIRST_ERROR_F1),
            ("AUC of the minimum", found["auc_minimum"], MIN_AUC_OF_MINIMUM),
        ]
        checks += [
            GateCheck(f"{part}: {name}", value, needed) for name, value, needed in rows
        ]
    return checks


def gate_summary(checks: Sequence[GateCheck]) -> str:
    """Lays out the checks and says what they mean."""
    rows = [
        [c.name, f"{c.value:.3f}", f"{c.needed:.2f}", "ok" if c.passed else "MISSED"]
        for c in checks
    ]
    missed = [check for check in checks if not check.passed]
    verdict = (
        f"gate: closed. {len(missed)} of {len(checks)} figures are missed: as the only "
        "reward this PRM is likely to be hacked. Add verifiable rewards, or train it "
        "on with --rollouts."
        if missed
        else "gate: open. Each figure is reached."
    )
    return format_table(["gate", "value", "needed", ""], rows) + "\n" + verdict

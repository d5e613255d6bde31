"""Claims about costs that layer shapes decide: FLOPs of a mean step and bytes of a training, over those of SGD.

They are counted without a run, where nothing was measured in the paper's setting, and say of themselves that they are
counted only: the paper's seconds depend on its machine and program too.
"""

from __future__ import annotations

from functools import cache

from curvbench.analysis.papers import Claim, Column, Experiment
from curvbench.analysis.verdicts import Bounded, Reading
from curvbench.prediction import Cost, cost, shapes

BASE = "sgdm"  # SGD with momentum, by whose costs those of a method are divided
UNITS = {"step": "FLOPs of a mean step", "total": "bytes of a training, to leading order"}


class Counted:
    """The counts of an experiment's rows, read as the cells of a run are."""

    surrogate = False

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def decides(self, claim: Claim) -> bool:
        """Whether every row of a claim has shapes, and every column a count."""
        members = [member for member in claim.chain if isinstance(member, str)]
        return bool(members) and all(
            self.experiment.column(m).counted and self.experiment.shapes_of(_row(m)) for m in members
        )

    def note(self, claim: Claim) -> str:
        """What was counted, and what it leaves open."""
        columns = [self.experiment.column(member) for member in claim.chain if isinstance(member, str)]
        kinds = " and ".join(UNITS[kind] for kind in UNITS if any(column.counted == kind for column in columns))
        has_seconds = any(column.unit in ("s", "h") for column in columns)
        return f"counted only: {kinds}, over SGD's" + ", no seconds" * has_seconds

    def read(self, member: str | float) -> Reading:
        """A member of a claim with its count, the same for every seed."""
        if not isinstance(member, str):
            return Reading("", {0: Bounded.exactly(float(member))}, counted=True)
        value = self._value(_row(member), self.experiment.column(member))
        return Reading(_row(member), {0: Bounded.exactly(value)}, counted=True)

    def absent(self, member: str | float) -> bool:
        """Whether a member belongs to a method that curvbench does not have."""
        return isinstance(member, str) and bool(self.experiment.rows[_row(member)].absent)

    def stands_in(self, column: Column) -> bool:
        """Whether a surrogate is read in another metric than the paper's: a count is of the paper's own network."""
        return False

    def _value(self, row: str, column: Column) -> float:
        entry, at = (
            self.experiment.rows[row],
            (self.experiment.shapes_of(row), self.experiment.batch, self.experiment.refresh),
        )
        of_method = _cost(entry.priced or entry.probe, *at)
        return of_method.gradients if column.counted == "step" else of_method.total / _cost(BASE, *at).total


def _row(member: str) -> str:
    return member.rpartition(".")[0]


@cache
def _cost(probe: str, network: str, samples: int, refresh: int) -> Cost:
    return cost(shapes(network), probe, samples=samples, refresh=refresh)

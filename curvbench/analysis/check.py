"""The gate: the measurements of a comparison with a baseline that fail it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from curvbench.analysis import tables
from curvbench.analysis.compare import NOT_JUDGED, SAME, differences
from curvbench.analysis.limits import limit_of

FAILS = ("worse", "only in A")
INEXACT = ("parameters", "dtype", "device", "torch_version", "flop_model")


@dataclass(frozen=True)
class Gate:
    """A comparison of a baseline (A) with a run (B), and the measurements that fail.

    A measurement fails if it is worse or if the run lacks it; with ``any_change`` it fails if it differs.
    ``differences``: the machines and versions that differ, as lines of text. ``steps``: the run in which each failing
    measurement changed. ``left_out``: what could not be read; a gate that has not seen everything does not pass.
    """

    table: pd.DataFrame
    any_change: bool = False
    differences: Sequence[str] = ()
    left_out: Sequence[str] = ()
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def failing(self) -> pd.DataFrame:
        """Cells without a value first, then measurements by the size of their change."""
        verdict = self.table["verdict"]
        fails = ~verdict.isin([*SAME, NOT_JUDGED]) if self.any_change else verdict.isin(FAILS)
        return by_size(self.table[fails])

    @property
    def improved(self) -> pd.DataFrame:
        """The measurements that are better and do not fail."""
        return by_size(self._passing("better"))

    @property
    def changed(self) -> pd.DataFrame:
        """The measurements without a direction that differ, and those that only the run has."""
        return by_size(self._passing("changed", "only in B"))

    @property
    def passed(self) -> bool:
        """Whether nothing fails, and nothing was left out."""
        return self.failing.empty and not self.left_out

    def as_json(self) -> str:
        """``passed``, counts by verdict, the rows that failed, became better or changed, and the steps."""
        kinds = {"failing": self.failing, "improved": self.improved, "changed": self.changed, "steps": self.steps}
        content = {"passed": self.passed, "differences": list(self.differences), "left_out": list(self.left_out)}
        content |= {"verdicts": self.table["verdict"].value_counts().to_dict()}
        return json.dumps(content | {name: tables.records(rows) for name, rows in kinds.items()}, indent=1) + "\n"

    def _passing(self, *verdicts: str) -> pd.DataFrame:
        return self.table[self.table["verdict"].isin(() if self.any_change else verdicts)]


def refuse_incomparable(baseline: pd.DataFrame, run: pd.DataFrame) -> None:
    """Raise ValueError if FLOPs, bytes or errors of the two cannot be compared: such a gate must not pass."""
    differing = differences(baseline, run)
    for name in INEXACT:
        if name in differing:
            x, y = differing[name]
            advice = "measure the baseline again (--update), or `curvbench compare` the two"
            raise ValueError(f"the baseline has {name} {x}, the run has {y}, and no gate can compare them: {advice}")


def without_lone_times(rows: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """The rows without sampled metrics that the baseline has nowhere: a baseline holds no times by intention."""
    held = set(baseline["metric"].dropna())
    names = [name for name in rows["metric"].dropna().unique() if limit_of(name).sampled and name not in held]
    return rows[~rows["metric"].isin(names)]


def by_size(table: pd.DataFrame) -> pd.DataFrame:
    """Cells first, then measurements by the size of their change; from zero is largest."""
    size = table["change"].abs().fillna(np.inf).where(table["metric"] != "", np.inf)
    order = pd.DataFrame({"cell": table["metric"] != "", "size": -size}).sort_values(["cell", "size"], kind="stable")
    return table.loc[order.index]


def counts(table: pd.DataFrame) -> str:
    """The number of measurements with each verdict, and the reasons why some were not judged."""
    verdicts = table["verdict"].value_counts()
    reasons = table.loc[table["verdict"] == NOT_JUDGED, "reason"].value_counts()
    lines = [f"{len(table)} compared: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())]
    return "\n".join([*lines, *(f"not judged: {count} ({reason})" for reason, count in reasons.items())])

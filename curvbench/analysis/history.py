"""A metric over runs, oldest first, with the steps in it."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis import views

STEP = 0.01


def history_table(frame: pd.DataFrame, problem: str, quantity: views.Quantity, step: float = STEP) -> pd.DataFrame:
    """One row per run and probe: run, probe, value (median over seeds), change to the run before, and whether a step.

    A step is a relative change of more than ``step``. Runs sort by name, which is the time of their beginning.
    """
    parts = []
    for run, rows in frame.groupby("run_id", sort=True):
        found = views.values(views.of_problem(rows, problem), quantity)["median"].rename("value")
        parts.append(found.rename_axis("probe").reset_index().assign(run=run))
    if not parts:
        return pd.DataFrame(columns=["run", "probe", "value", "change", "step"])
    table = pd.concat(parts, ignore_index=True)[["run", "probe", "value"]]
    before = table.groupby("probe", sort=False)["value"].shift()
    table["change"] = table["value"] / before.where(before != 0) - 1
    table["step"] = (table["value"] - before).abs() > step * before.abs()
    return table

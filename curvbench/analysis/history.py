"""A metric over runs, oldest first, with the steps in it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from curvbench.analysis import frames, views
from curvbench.analysis.limits import LIMITS, Limit, limit_of
from curvbench.analysis.pairs import KEY, medians

STEP = 0.01  # relative change from one run to the next


def history_table(frame: pd.DataFrame, problem: str, quantity: views.Quantity, step: float = STEP) -> pd.DataFrame:
    """One row per run and probe: run, probe, value (median over seeds), change since the run before, and ``step``.

    A step is a relative change of more than ``step``. Runs sort by name, which is the time of their beginning.
    """
    parts = []
    for run, rows in frame.groupby("run_id", sort=True):
        values = views.values(frames.of_problem(rows, problem), quantity)["median"].rename("value")
        parts.append(values.rename_axis("probe").reset_index().assign(run=run))
    if not parts:
        empty = pd.DataFrame(columns=["run", "probe", "value", "change", "step"])
        return empty.astype({"value": "float64", "change": "float64", "step": bool})
    table = pd.concat(parts, ignore_index=True)[["run", "probe", "value"]]
    before = table.groupby("probe", sort=False)["value"].shift()
    table["change"] = table["value"] / before.where(before != 0) - 1
    table["step"] = (table["value"] - before).abs() > step * before.abs()
    return table


def steps(runs: Mapping[str, pd.DataFrame], worse: pd.DataFrame, limits: Mapping[str, Limit] = LIMITS) -> pd.DataFrame:
    """For each row of ``worse``, the first run from which on the measurement has moved from ``a`` towards ``b``.

    ``runs``: rows by name, oldest first. One row per measurement that is moved in the latest run: ``KEY``, ``run``, and
    ``before``, the run before it, which is empty if the measurement is moved in every run.
    """
    values_by_run = pd.DataFrame({name: medians(rows) for name, rows in runs.items()})
    steps = []
    for row in worse[worse["metric"] != ""].to_dict("records"):
        key = tuple(row[name] for name in KEY)
        values = values_by_run.loc[key].dropna() if key in values_by_run.index else pd.Series(dtype="float64")
        limit = limit_of(row["metric"], limits=limits)
        sign = np.sign(row["b"] - row["a"])
        has_moved = sign * (values - row["a"]) > max(limit.relative * abs(row["a"]), limit.absolute)
        if len(has_moved) and has_moved.iloc[-1]:
            last_still = int((~has_moved).to_numpy().nonzero()[0].max(initial=-1))
            before = values.index[last_still] if last_still >= 0 else ""
            steps.append(dict(zip(KEY, key, strict=True)) | {"run": values.index[last_still + 1], "before": before})
    return pd.DataFrame(steps, columns=[*KEY, "run", "before"])

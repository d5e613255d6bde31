"""Tables of the meter ``damping``: a curve over the probe's damping, its best value and its plateau."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis.frames import labels, of_problem, texts
from curvbench.analysis.views import CURVE, Quantity, values
from curvbench.spec import Status

AXIS = "damping"
CURVES = (Quantity("damping.quality", "network"), Quantity("damping.decrease", "network"))
PLATEAU = 0.95  # share of the best value
OUTCOMES = ("damping.best", "damping.plateau", "damping.decrease", "damping.quality")


def curves(frame: pd.DataFrame, problem: str, quantity: Quantity) -> pd.DataFrame:
    """A quantity against the damping in the shape of ``views.sweep``: probe, problem, ``AXIS``, median, min, max."""
    rows = of_problem(frame, problem)
    at = texts(rows, "scope").str.extract(rf"^{CURVE}([^ ]+)$")[0].astype("float64")
    chosen = at.notna() & (rows["metric"] == quantity.metric) & (rows["status"] == Status.OK)
    rows, at = rows[chosen], at[chosen]
    keys = [labels(rows, "probe").rename("probe"), labels(rows, "problem").rename("problem"), at.rename(AXIS)]
    return rows["value"].astype("float64").groupby(keys, sort=False).agg(["median", "min", "max"]).reset_index()


def plateaus(table: pd.DataFrame) -> pd.DataFrame:
    """The points of ``curves`` that are at least ``PLATEAU`` of the best of their line."""
    best = table.groupby(["probe", "problem"])["median"].transform("max")
    return table[(best > 0) & (table["median"] >= PLATEAU * best)]


def outcomes(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """The best damping of the network, its plateau in decades, and what it reaches: one row per probe that has them."""
    rows = of_problem(frame, problem)
    medians = {metric: values(rows, Quantity(metric, "network"))["median"] for metric in OUTCOMES}
    return pd.DataFrame(medians).dropna(how="all").rename_axis("probe").reset_index()

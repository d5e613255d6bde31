"""Two runs side by side: the same probe, problem, seed, metric and scope in both."""

from __future__ import annotations

import numpy as np
import pandas as pd

from curvbench.analysis.frames import is_cell_ending, labels, texts
from curvbench.analysis.limits import limit_of
from curvbench.analysis.views import Quantity, meaning
from curvbench.spec import Status

_PARTS = ("relative", "absolute")
KEY = ["probe", "problem", "seed", "metric", "scope", "epoch"]


def pairs(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """One row per measurement of either run: its key, ``a``, ``b``, ``change`` = b / a - 1, and ``verdict``.

    The verdict is ``better`` or ``worse`` by the metric's direction, ``changed`` without a direction, ``equal``,
    or ``only in A``, ``only in B``.
    """
    both = medians(a).rename("a").to_frame().join(medians(b).rename("b"), how="outer").reset_index()
    both["change"] = both["b"] / both["a"].where(both["a"] != 0) - 1
    both["verdict"] = _verdict(both)
    return both


def measurements(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a value, with ``KEY`` as their index."""
    rows = frame[(frame["status"] == Status.OK) & ~is_cell_ending(frame)]
    named = {"probe": labels(rows, "probe"), "problem": labels(rows, "problem"), "seed": rows["seed"]}
    named |= {column: texts(rows, column) for column in ("metric", "scope")}
    epoch = rows["epoch"].astype("Int64").fillna(-1).astype("int64")
    return rows.set_axis(pd.MultiIndex.from_frame(pd.DataFrame({**named, "epoch": epoch})))


def medians(frame: pd.DataFrame) -> pd.Series:
    """The value of each measurement by ``KEY``, the median if several runs have it."""
    return measurements(frame)["value"].groupby(level=KEY, sort=False).median()


def of_quantity(table: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """The rows of one metric in one scope."""
    return table[(table["metric"] == quantity.metric) & (table["scope"] == quantity.scope)]


def largest_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``pairs`` by the size of their change: changes from 0 first, measurements of one run only last."""
    from_zero = (table["a"] == 0) & table["b"].notna() & (table["b"] != 0)
    sizes = table["change"].abs().mask(from_zero, np.inf)
    return table.loc[sizes.sort_values(ascending=False, kind="stable", na_position="last").index]


def is_change(table: pd.DataFrame) -> pd.Series:
    """Which rows of ``pairs`` differ by more than ``limits.LIMITS`` allow, or are in one run only."""
    limits = {metric: limit_of(metric) for metric in set(table["metric"])}
    relative, absolute = (table["metric"].map({m: getattr(at, part) for m, at in limits.items()}) for part in _PARTS)
    allowed = np.maximum(relative * table["a"].abs(), absolute)
    return ~((table["b"] - table["a"]).abs() <= allowed) & (table["verdict"] != "equal")


def _verdict(both: pd.DataFrame) -> np.ndarray:
    sign = both["metric"].map({m: {"lower": 1, "higher": -1, "": 0}[meaning(m).better] for m in set(both["metric"])})
    gain = (both["b"] - both["a"]) * sign
    cases = {
        "only in A": both["a"].notna() & both["b"].isna(),
        "only in B": both["b"].notna() & both["a"].isna(),
        "equal": both["a"] == both["b"],
        "worse": gain > 0,
        "better": gain < 0,
    }
    return np.select(list(cases.values()), list(cases), default="changed")

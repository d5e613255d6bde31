"""The sentence on a sweep of updates: how far the error of every method falls as it goes on learning."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis import sweep
from curvbench.analysis.frames import labels
from curvbench.analysis.summary import digits
from curvbench.analysis.verdict.words import counted, few

METRIC = "error.relative"


def learning(rows: pd.DataFrame) -> str | None:
    """The error of the network after the fewest and after the most updates, for every method that was swept."""
    table = sweep.table(rows, str(labels(rows, "problem").iloc[0]), METRIC) if len(rows) else pd.DataFrame()
    parts = []
    for curve, errors in table.drop(columns=sweep.ANY, errors="ignore").iterrows():
        known = errors.dropna().sort_index()
        if len(known) > 1:
            ends = [f"{digits(known[n])} after {counted(int(n), 'update')}" for n in (known.index[0], known.index[-1])]
            parts.append(f"from {ends[0]} to {ends[1]} with {curve}")
    return f"The relative error of the network goes {few(parts)}." if parts else None

"""The sentence on a run of the meter ``exact``: what the exact Fisher of a network costs."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis import exact
from curvbench.analysis.summary import digits
from curvbench.words import one_line


def cost_of_the_exact(rows: pd.DataFrame) -> str | None:
    """Seconds, work and memory of the exact Fisher of a problem, and how far from the machine's peak; None without."""
    if not exact.is_measured(rows):
        return None
    (row,) = exact.table(rows).rename(columns=one_line).to_dict("records")
    text = f"The exact Fisher of {row['N']:,.0f} samples takes {digits(row['total s'])} s"
    text += f", {digits(row['work GFLOP'])} GFLOP and {digits(row['memory MB'])} MB"
    if pd.notna(row["total x floor"]):
        text += f", {digits(row['total x floor'])} times as long as its FLOPs at the peak of the machine"
    if pd.notna(row["sampling x work"]):
        text += f"; an estimate of its norm to 1% would take {digits(row['sampling x work'])} times the work"
    return f"{text}."

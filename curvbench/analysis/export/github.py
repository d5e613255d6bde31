"""For github-action-benchmark: its ``customSmallerIsBetter``, a list of named values."""

from __future__ import annotations

import json

import pandas as pd

from curvbench.analysis import frames, views
from curvbench.analysis.export import TRACKED
from curvbench.analysis.frames import problems


def of_rows(rows: pd.DataFrame) -> str:
    """One entry per probe, problem and followed metric: the median over seeds, and the range of several values.

    A metric that is best at 1 is given as its distance from 1, so that smaller is better everywhere.
    """
    entries = []
    for problem in problems(rows):
        selected = frames.of_problem(rows, problem)
        for quantity in TRACKED:
            unit = views.meaning(quantity.metric).unit
            for probe, (value, low, high) in views.values(selected, quantity).dropna().iterrows():
                name = f"{probe} on {problem}: {quantity.heading}"
                spread = {"range": f"{low:.6g} to {high:.6g}"} if high > low else {}
                entries.append({"name": name, "unit": unit, "value": value} | spread)
    return json.dumps(entries, indent=1) + "\n"

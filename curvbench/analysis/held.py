"""Tables of statistics held elsewhere: against the number of samples that made them, and against their age."""

from __future__ import annotations

import re

import pandas as pd

from curvbench.analysis.frames import labels, texts
from curvbench.analysis.views import Quantity
from curvbench.spec import METRICS, Status

FLOOR = "exact Fisher (floor)"
SAMPLES = (
    Quantity("error.population", "layer blocks"),
    Quantity("error.unbiased", "layer blocks"),
    Quantity("direction.population", "network"),
)
AGES = (Quantity("stale.quality", "network"), Quantity("stale.error", "layer blocks"), Quantity("stale.cost", "step"))
_FLOORS = {"error.population": "error.floor", "stale.error": "stale.floor"}
_AGE = ", age "

SAMPLES_LEGEND = (
    "columns: samples N of the statistics; error: |F^ - F_B| / |F_B| with the exact Fisher F_B of a larger batch B, no "
    "sample of which made the statistics; floor: the same of the exact Fisher of the N samples, which a method with "
    "less noise can undercut; unbiased: against the population, without the noise of B, negative where noise hides "
    "the error; quality: of the step for B's gradient against F_B"
)
AGES_LEGEND = (
    "columns: age k of the statistics in steps of one training, the same for all methods; quality: of the step for the "
    "gradient k steps later, against the exact Fisher there; error: |F^_t - F_t+k| / |F_t+k|; floor: the drift of the "
    "exact Fisher itself; cost: of a step in gradients, beside its own, refreshed every k steps (every step for k = 0)"
)


def families(frame: pd.DataFrame) -> list[str]:
    """The labels of the problems without the number of samples, in the order of the rows."""
    return list(dict.fromkeys(_family(labels(frame, "problem"))))


def against_samples(frame: pd.DataFrame, family: str, quantity: Quantity) -> pd.DataFrame:
    """Medians over seeds of a quantity: one row per probe, the floor first, one column per number of samples.

    A missing value is NaN.
    """
    rows = frame[_family(labels(frame, "problem")) == family]
    counts = rows[rows["metric"] == "problem.samples"].drop_duplicates("cell_id").set_index("cell_id")["value"]
    columns = rows["cell_id"].map(counts.astype(int))
    return _pivoted(rows, columns, quantity, rows["scope"] == quantity.scope)


def against_age(frame: pd.DataFrame, problem: str, quantity: Quantity) -> pd.DataFrame:
    """Medians over seeds of a quantity: one row per probe, the floor first, one column per age.

    A missing value is NaN.
    """
    rows = frame[labels(frame, "problem") == problem]
    return _pivoted(rows, rows["step"], quantity, texts(rows, "scope").str.startswith(quantity.scope + _AGE))


def title(place: str, quantity: Quantity, frame: pd.DataFrame) -> str:
    """The problem, the quantity and its meaning, and what the statistics are held against."""
    methods = texts(frame[frame["metric"] == quantity.metric], "method")
    known = methods.str.extract(r"(of \d+ other samples|at step \d+ of [^,]*)")[0].dropna().unique()
    return ", ".join([f"{place}, {quantity}", *known]) + f": {METRICS[quantity.metric].text}"


def _pivoted(rows: pd.DataFrame, columns: pd.Series, quantity: Quantity, in_scope: pd.Series) -> pd.DataFrame:
    probes, good = labels(rows, "probe"), in_scope & (rows["status"] == Status.OK)
    parts = []
    for metric, names in ((_FLOORS.get(quantity.metric), None), (quantity.metric, probes)):
        chosen = good & (rows["metric"] == metric)
        index = pd.Series(FLOOR, rows.index) if names is None else names
        values = rows.loc[chosen, "value"].astype("float64")
        parts.append(values.groupby([index[chosen], columns[chosen]], sort=False).median().unstack())
    table = pd.concat([part for part in parts if len(part)]) if any(map(len, parts)) else pd.DataFrame()
    order = [name for name in [FLOOR, *dict.fromkeys(probes)] if name in table.index]
    return table.reindex(index=order, columns=sorted(table.columns)).rename(columns=int)


def _family(problems: pd.Series) -> pd.Series:
    return problems.map(lambda label: re.sub(r"\[\]$", "", re.sub(r"samples=\d+,|,?samples=\d+(?=\])", "", label)))

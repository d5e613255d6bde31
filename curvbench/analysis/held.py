"""Tables of statistics held elsewhere: against the number of samples that made them, and against their age."""

from __future__ import annotations

import re

import pandas as pd

from curvbench.analysis.frames import labels, texts
from curvbench.analysis.views import Quantity
from curvbench.spec import METRICS, Status

FLOOR = "exact Fisher (floor)"
N, STEPS = "samples", "age + 1"
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
    return _pivoted(sampling(frame[_family(labels(frame, "problem")) == family], quantity), N)


def against_age(frame: pd.DataFrame, problem: str, quantity: Quantity) -> pd.DataFrame:
    """Medians over seeds of a quantity: one row per probe, the floor first, one column per age.

    A missing value is NaN.
    """
    return _pivoted(aging(frame[labels(frame, "problem") == problem], quantity), STEPS).rename(columns=lambda s: s - 1)


def sampling(frame: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """A quantity against samples, in the shape of ``views.sweep``: probe, problem, ``N``, median, min and max.

    ``problem`` is its family. The floor comes first, as a probe of its own, if the quantity has one.
    """
    counted = frame[frame["metric"] == "problem.samples"]
    counts = dict(zip(texts(counted, "cell_id"), counted["value"], strict=True))
    rows = frame.assign(curves_of=_family(labels(frame, "problem")), place=texts(frame, "cell_id").map(counts))
    return _curves(rows[rows["scope"] == quantity.scope], quantity, N)


def aging(frame: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """A quantity against age, in the shape of ``views.sweep``: probe, problem, ``STEPS``, median, min and max.

    ``STEPS`` is k + 1, because a logarithmic axis has no 0. The floor comes first, as a probe of its own, if the
    quantity has one.
    """
    rows = frame.assign(curves_of=labels(frame, "problem"), place=frame["step"] + 1)
    return _curves(rows[texts(frame, "scope").str.startswith(quantity.scope + _AGE)], quantity, STEPS)


def as_drawn(curves: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """The curves of a figure, whose axis shows the distance from 1 of a quantity that is best at 1."""
    if not quantity.is_gap:
        return curves
    return curves.assign(median=1 - curves["median"], min=1 - curves["max"], max=1 - curves["min"])


def title(place: str, quantity: Quantity, frame: pd.DataFrame) -> str:
    """The problem, the quantity and its meaning, and what the statistics are held against."""
    methods = texts(frame[frame["metric"] == quantity.metric], "method")
    known = methods.str.extract(r"(of \d+ other samples|at step \d+ of [^,]*)")[0].dropna().unique()
    return ", ".join([f"{place}, {quantity}", *known]) + f": {METRICS[quantity.metric].text}"


def _curves(rows: pd.DataFrame, quantity: Quantity, axis: str) -> pd.DataFrame:
    """The curves of rows with the columns ``curves_of`` and ``place``, the value on the axis."""
    parts = []
    for metric in filter(None, (_FLOORS.get(quantity.metric), quantity.metric)):
        chosen = rows[(rows["metric"] == metric) & (rows["status"] == Status.OK) & rows["place"].notna()]
        probes = labels(chosen, "probe") if metric == quantity.metric else pd.Series(FLOOR, chosen.index, dtype=object)
        keys = [probes.rename("probe"), chosen["curves_of"].rename("problem"), chosen["place"].rename(axis)]
        keys[-1] = keys[-1].astype("int64")
        parts.append(chosen["value"].astype("float64").groupby(keys, sort=False).agg(["median", "min", "max"]))
    return pd.concat(parts).reset_index()


def _pivoted(curves: pd.DataFrame, axis: str) -> pd.DataFrame:
    table = curves.pivot(index="probe", columns=axis, values="median")
    return table.reindex(list(dict.fromkeys(curves["probe"])))


def _family(problems: pd.Series) -> pd.Series:
    return problems.map(lambda label: re.sub(r"\[\]$", "", re.sub(r"\bsamples=\d+,|,?\bsamples=\d+(?=\])", "", label)))

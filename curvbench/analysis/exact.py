"""The cost of the exact Fisher in a run of the meter ``exact``: one row per problem."""

from __future__ import annotations

import pandas as pd

from curvbench.analysis.frames import labels
from curvbench.analysis.summary import choices
from curvbench.spec import Status

COLUMNS = {
    "N": ("problem.samples", "network", 1.0),
    "passes\ns": ("time.wall", "passes", 1.0),
    "contraction\ns": ("time.wall", "contraction", 1.0),
    "spectrum\ns": ("time.wall", "spectrum", 1.0),
    "total\ns": ("time.wall", "total", 1.0),
    "passes\nx floor": ("time.floor", "passes", 1.0),
    "contraction\nx floor": ("time.floor", "contraction", 1.0),
    "total\nx floor": ("time.floor", "total", 1.0),
    "total\nx values": ("time.floor.values", "total", 1.0),
    "work\nGFLOP": ("flops.counted", "total", 1e-9),
    "memory\nMB": ("memory.peak", "total", 1e-6),
    "sampling\nx work": ("flops.hutchinson", "total", 1.0),
}
"""Heading: metric, scope and the factor to the shown unit."""

LEGEND = (
    "seconds of the exact Fisher in three stages: passes through the network, Gram matrices, spectrum; "
    "x floor: over the seconds that the counted FLOPs take at the peak of the machine's matrix product in the dtype "
    "each runs in, measured in the same process; x values: the same, with passes of mixed precision at the peak of "
    "float64, in which their values are; memory: highest live bytes above the model; sampling: work of a Hutchinson "
    "estimate of |F| to 1 % over that of the exact one"
)


def is_measured(frame: pd.DataFrame) -> bool:
    """Whether the rows have costs of the exact Fisher, which no probe has."""
    return bool(frame["scope"].eq("contraction").any())


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over seeds: one row per problem, with the columns of ``COLUMNS``; a missing value is NaN."""
    rows = frame[frame["status"] == Status.OK]
    keys = [labels(rows, "problem"), rows["metric"], rows["scope"]]
    medians = rows["value"].astype("float64").groupby(keys, sort=False).median()
    problems = list(dict.fromkeys(labels(rows, "problem")))
    content = {
        heading: [factor * medians.get((problem, metric, scope), float("nan")) for problem in problems]
        for heading, (metric, scope, factor) in COLUMNS.items()
    }
    return pd.DataFrame(content, index=problems)


def title(frame: pd.DataFrame) -> str:
    """What is covered, the precision, the device, its threads and its peaks."""
    peaks = frame[frame["metric"] == "machine.peak"].groupby("scope")["value"].median()
    rates = [f"{scope} {rate / 1e9:.0f} GFLOP/s" for scope, rate in peaks.items()]
    places = frame[["device_name", "threads"]].drop_duplicates()
    devices = [f"{name}, {threads} thread{'s' if threads > 1 else ''}" for name, threads in places.to_numpy()]
    precisions = frame.loc[frame["metric"] == "time.floor", "method"].unique()
    which = " and ".join(choices(frame))
    return f"exact Fisher of {which} in {', '.join(precisions)} on " + "; ".join([*devices, *rates])

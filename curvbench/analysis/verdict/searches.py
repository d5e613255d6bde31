"""Sentences on trials of a search: the best setting of every method, settings at the edge of the grid, failures."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import pandas as pd

from curvbench.analysis.summary import contenders, digits
from curvbench.analysis.verdict.trainings import failed, last_values
from curvbench.analysis.verdict.words import counted, few
from curvbench.analysis.views import arguments, meaning
from curvbench.spec import Status

JUDGES = ("valid.accuracy", "valid.loss")
FEWEST = 3  # tried values of a number of which the least and the greatest are edges


def best_settings(rows: pd.DataFrame) -> str | None:
    """The setting with the best value on the validation part for every method."""
    best, metric = _best(rows), judge(rows)
    if not best:
        return f"Not enough measured: no trial has ended with a {meaning(metric).label or metric}."
    parts = [f"{probe} with {setting} ({digits(value)})" for probe, (setting, value) in best.items()]
    trials = counted(rows["cell_id"].nunique(), "trial")
    return f"Of {trials}, the settings with the best {meaning(metric).label} are {few(parts)}."


def at_the_edge(rows: pd.DataFrame) -> str | None:
    """Which chosen numbers are the least or the greatest that was tried."""
    tried = _tried(rows)
    edges = []
    for probe, (setting, _) in _best(rows).items():
        for name, value in arguments(setting).items():
            numbers = tried.get((probe, name), set())
            if len(numbers) >= FEWEST and value in (min(numbers), max(numbers)):
                edges.append(f"{name}={value:g} of {probe} ({min(numbers):g} to {max(numbers):g})")
    return f"At the edge of what was tried, so that a better value may lie beyond: {few(edges)}." if edges else None


SENTENCES = (best_settings, at_the_edge, failed)


def _best(rows: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """The best setting of every probe and its median over seeds."""
    metric = judge(rows)
    sign = 1 if meaning(metric).better == "lower" else -1
    best: dict[str, tuple[str, float]] = {}
    for label, values in last_values(rows, metric).items():
        probe, setting = parted(label)
        value = median(values.values())
        if probe not in best or sign * value < sign * best[probe][1]:
            best[probe] = setting, value
    return best


def _tried(rows: pd.DataFrame) -> Mapping[tuple[str, str], set[float]]:
    """The numbers that were tried, by probe and name."""
    tried: dict[tuple[str, str], set[float]] = {}
    for label in contenders(rows).unique():
        probe, setting = parted(label)
        for name, value in arguments(setting).items():
            if isinstance(value, float):
                tried.setdefault((probe, name), set()).add(value)
    return tried


def parted(label: str) -> tuple[str, str]:
    """The probe and the setting of a contender such as ``kfac {lr=0.1}``."""
    probe, _, setting = label.partition(" {")
    return probe, setting.removesuffix("}") or "the only setting"


def judge(rows: pd.DataFrame) -> str:
    """The metric on the validation part by which trials are judged."""
    measured = set(rows.loc[rows["status"] == Status.OK, "metric"].dropna())
    return next((metric for metric in JUDGES if metric in measured), "valid.accuracy")

"""Trials of a search as tables: every setting, the best of each method, and which hyperparameters matter."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import pandas as pd

from curvbench.analysis.roles import name_of
from curvbench.analysis.summary import digits
from curvbench.analysis.verdict.searches import parted
from curvbench.analysis.verdict.trainings import last_values
from curvbench.analysis.views import arguments, meaning
from curvbench.spec import TRIALS

BINS = 3  # parts of a hyperparameter whose values are almost all different
FEWEST = 6  # trials of a method that say anything of its hyperparameters
VALUE, RANGE = "value", "value range"
IMPORTANCE = (
    "share: the part of the differences between a method's trials, by rank, that one hyperparameter explains alone, "
    f"corrected for chance (Kelley's epsilon squared). A method needs {FEWEST} trials, and where few of them share a "
    f"value they are in {BINS} groups of equal size. It says nothing of hyperparameters that matter together."
)


def are_trials(suite: str) -> bool:
    """Whether the runs of a suite hold the trials of a search."""
    return suite.endswith(TRIALS)


def table(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per method and setting, the best first: method, hyperparameters, median ``value`` over seeds, its range.

    ``rows``: of one problem.
    """
    made: list[dict[str, Any]] = []
    for label, by_seed in last_values(rows, metric).items():
        values = list(by_seed.values())
        probe, setting = parted(label)
        own = arguments(probe.removeprefix(name_of(probe)).strip("[]"))
        range = f"{digits(min(values))} to {digits(max(values))}" if len(values) > 1 else ""
        of_training = arguments(setting) if "=" in setting else {}
        made.append({"probe": name_of(probe), **own, **of_training, VALUE: median(values), RANGE: range})
    listed = pd.DataFrame(made, columns=None if made else ["probe", VALUE, RANGE])
    last = [VALUE, *([RANGE] if listed[RANGE].any() else [])]
    first = ["probe", *(name for name in listed if name not in ("probe", VALUE, RANGE))]
    is_rising = meaning(metric).better == "lower"
    return listed[[*first, *last]].sort_values(VALUE, ascending=is_rising, kind="stable").reset_index(drop=True)


def best(trials: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each method, with the number of its trials; ``trials`` as ``table`` gives them."""
    counts = trials["probe"].value_counts()
    first = trials.drop_duplicates("probe")
    return first.assign(trials=first["probe"].map(counts)).dropna(axis=1, how="all").reset_index(drop=True)


def hyperparameters(trials: pd.DataFrame) -> list[str]:
    """The hyperparameters that differ among some trials."""
    names = [str(name) for name in trials if name not in ("probe", VALUE, RANGE)]
    return [name for name in names if trials[name].nunique(dropna=False) > 1]


def importance(trials: pd.DataFrame) -> pd.DataFrame:
    """The share of the differences that each hyperparameter explains alone: one row per method, one column for each.

    Kelley (1935): 1 - (n - 1) / (n - k) * within / total, with k groups of n ranks, and 0 where it is negative. NaN
    where a method has too few trials, or one value of the hyperparameter.
    """
    shares = {
        str(probe): {name: _share(part[name], part[VALUE]) for name in hyperparameters(trials)}
        for probe, part in trials.groupby("probe", sort=False)
    }
    return pd.DataFrame.from_dict(shares, orient="index").dropna(how="all").rename_axis("probe").reset_index()


def _share(settings: pd.Series, values: pd.Series) -> float:
    known = settings.notna() & values.notna()
    settings, ranks = settings[known], values[known].rank()
    count, total = len(ranks), float(((ranks - ranks.mean()) ** 2).sum())
    groups = _groups(settings)
    if count < FEWEST or groups.nunique() < 2 or groups.nunique() >= count or total == 0:
        return math.nan
    within = float(((ranks - ranks.groupby(groups).transform("mean")) ** 2).sum())
    return max(1 - (count - 1) / (count - groups.nunique()) * within / total, 0.0)


def _groups(settings: pd.Series) -> pd.Series:
    """Trials of one value; of numbers of which few trials share a value, parts of equal size."""
    if settings.nunique() <= len(settings) // 2 or not pd.api.types.is_numeric_dtype(settings.infer_objects()):
        return settings.astype(str)
    return pd.qcut(settings.astype("float64").rank(method="first"), BINS, labels=False)

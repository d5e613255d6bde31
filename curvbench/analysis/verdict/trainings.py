"""Sentences on trainings: which contender ends best, which reaches a target first, what an epoch costs, what failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

import pandas as pd

from curvbench.analysis import summary, targets
from curvbench.analysis.frames import is_cell_ending, labels, texts
from curvbench.analysis.roles import BASELINES, name_of
from curvbench.analysis.summary import contenders, digits
from curvbench.analysis.verdict.methods import ranges_meet
from curvbench.analysis.verdict.words import counted, few, listed, times
from curvbench.analysis.views import meaning
from curvbench.spec import SCORES, Status

JUDGES = (*SCORES, "test.accuracy", "test.loss")  # the first of these that was measured decides
Ends = Mapping[str, Mapping[int, float]]


def best_training(rows: pd.DataFrame) -> str | None:
    """Which contender ends with the best value of the test metric, and the next after it."""
    metric = _judge(rows)
    ends = _ranked(last_values(rows, metric), metric)
    if not ends:
        return f"Not enough measured: no training has ended with a {meaning(metric).label or metric}."
    (best, values), *others = ends.items()
    text = f"{best} ends with the best {meaning(metric).label}: {_spread(values)} {_over(ends)}"
    if not others:
        return f"{text}; no other training has ended."
    after, next_values = others[0]
    worst, worst_values = others[-1]
    text += f"; {after} follows with {_spread(next_values)}"
    return f"{text}, and {worst} is last with {_spread(worst_values)}." if len(others) > 1 else f"{text}."


def not_told_apart(rows: pd.DataFrame) -> str | None:
    """Which contenders' ranges over seeds meet that of the best."""
    metric = _judge(rows)
    ends = _ranked(last_values(rows, metric), metric)
    if len(ends) < 2:
        return None
    if _most_seeds(ends) < 2:
        return "Each method was trained with one seed: how far chance alone carries them is not known."
    (best, values), *others = ends.items()
    tied = [label for label, other in others if ranges_meet(values.values(), other.values())]
    if not tied:
        return None
    return f"Over {_most_seeds(ends)} seeds, {best} cannot be told apart from {few(tied)}: their ranges overlap."


def first_at_the_target(rows: pd.DataFrame) -> str | None:
    """Which contender reaches the suite's target, or a target that half of the trainings reach, in fewest epochs."""
    what, table = "the target", _to_suite_target(rows)
    if table is None:
        metric = _judge(rows)
        target = targets.usual_target(rows, metric)
        if math.isnan(target):
            return None
        what = f"a {meaning(metric).label} of {digits(target)}, which half of the trainings reach,"
        table = targets.to_target(targets.trials(rows, metric, target)).set_index("probe")
    hits = table.dropna(subset=["epochs"]).sort_values(["epochs", "seconds"], kind="stable")
    if hits.empty:
        some = [f"{label} does with {row.reached} of {row.of}" for label, row in table[table["reached"] > 0].iterrows()]
        return f"No method reaches {what} with most of its seeds{': ' if some else ''}{few(some) if some else ''}."
    missed = [str(label) for label in table.index if label not in hits.index]
    beside = f"; {few(missed)} did not with most of the seeds" if missed else ""
    return f"{hits.index[0]} reaches {what} first: after {_epochs(hits.iloc[0])}{beside}."


def cost_of_an_epoch(rows: pd.DataFrame) -> str | None:
    """What an epoch of every contender costs in seconds, over one of SGD."""
    table = summary.table(rows, _problem(rows))
    column = f"{summary.PACE} (network)"
    if column not in table:
        return None
    paces = table[column].dropna().sort_values(kind="stable")
    paces = paces[[name_of(label) not in BASELINES for label in paces.index]]
    if paces.empty:
        return None
    parts = [f"{digits(pace)} with {label}" for label, pace in paces.items()]
    return f"An epoch takes, in times the seconds of SGD's, {few(parts)}."


def failed(rows: pd.DataFrame) -> str | None:
    """Which trainings ended without success, and why."""
    endings = rows[is_cell_ending(rows) & (rows["status"] != Status.OK)].drop_duplicates("cell_id")
    if endings.empty:
        return None
    names = contenders(rows)[endings.index] if len(rows) else labels(endings, "probe")
    whys = texts(endings, "status") + ": " + texts(endings, "reason")
    parts = [f"{listed(dict.fromkeys(group))} ({why})" for why, group in names.groupby(whys, sort=False)]
    return f"{counted(len(endings), 'training')} did not end well: {'; '.join(parts)}."


SENTENCES = (best_training, not_told_apart, first_at_the_target, cost_of_an_epoch, failed)


def last_values(rows: pd.DataFrame, metric: str) -> Ends:
    """The value of a metric after the last epoch of every completed training, by contender and seed."""
    cells = rows.assign(contender=contenders(rows))
    cells = cells[~cells["cell_id"].isin(cells.loc[is_cell_ending(cells), "cell_id"])]
    cells = cells[(cells["metric"] == metric) & (cells["status"] == Status.OK) & cells["value"].notna()]
    ends: dict[str, dict[int, list[float]]] = {}
    last = cells.sort_values("epoch", kind="stable").groupby("cell_id", sort=False).tail(1)
    for label, seed, value in zip(last["contender"], last["seed"], last["value"], strict=True):
        ends.setdefault(str(label), {}).setdefault(int(seed), []).append(float(value))
    return {label: {seed: median(values) for seed, values in by_seed.items()} for label, by_seed in ends.items()}


def _ranked(ends: Ends, metric: str) -> Ends:
    """The contenders by the median of their values, the best first."""
    sign = 1 if meaning(metric).better == "lower" else -1
    return dict(sorted(ends.items(), key=lambda item: sign * median(item[1].values())))


def _judge(rows: pd.DataFrame) -> str:
    measured = set(rows.loc[rows["status"] == Status.OK, "metric"].dropna())
    return next((metric for metric in JUDGES if metric in measured), "test.loss")


def _spread(values: Mapping[int, float]) -> str:
    numbers = list(values.values())
    ends = f" ({digits(min(numbers))} to {digits(max(numbers))})" if len(numbers) > 1 else ""
    return digits(median(numbers)) + ends


def _over(ends: Ends) -> str:
    count = _most_seeds(ends)
    return "with one seed" if count < 2 else f"over {count} seeds"


def _most_seeds(ends: Ends) -> int:
    return len({seed for values in ends.values() for seed in values})


def _to_suite_target(rows: pd.DataFrame) -> pd.DataFrame | None:
    """``targets.to_target`` for the target that the suite has; None without such a target."""
    names = {"train.epochs_to_target": "epochs", "train.seconds_to_target": "seconds"}
    ends = rows.assign(probe=contenders(rows), problem=labels(rows, "problem"))[rows["metric"].isin(names)]
    if ends.empty:
        return None
    ends = ends.assign(cost=texts(ends, "metric").map(names), value=ends["value"].where(ends["status"] == Status.OK))
    trials = ends.pivot_table("value", [*targets.TRIAL, "cell_id"], "cost", "last", dropna=False, sort=False)
    known = pd.MultiIndex.from_frame(ends[[*targets.TRIAL, "cell_id"]].drop_duplicates())
    trials = trials.reindex(index=known, columns=list(targets.COSTS)).reset_index()
    return targets.to_target(trials).set_index("probe")


def _epochs(row: pd.Series) -> str:
    seconds = "" if math.isnan(row["seconds"]) else f" and {digits(row['seconds'])} s of training"
    return f"{times(row['epochs'])} epoch{'' if row['epochs'] == 1 else 's'}{seconds}"


def _problem(rows: pd.DataFrame) -> str:
    return str(labels(rows, "problem").iloc[0])

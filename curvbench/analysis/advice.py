"""Advice from rows that exist: which method serves best within a budget, on one problem or over many.

The gap that a method closes is that of fresh statistics; the refresh interval decides its cost alone.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from curvbench import store
from curvbench.analysis import sweep, tables
from curvbench.analysis.frames import labels, of_problem, problems, texts
from curvbench.analysis.summary import digits, is_trained
from curvbench.analysis.verdict import sentences
from curvbench.analysis.verdict.alike import cases
from curvbench.analysis.verdict.methods import Budget, Method, are_tied, budget, compared
from curvbench.analysis.verdict.trainings import best_training
from curvbench.analysis.verdict.words import counted, few, percent, times
from curvbench.spec import TRIALS
from curvbench.words import near_misses

FORMS = ("table", "markdown", "json")
WIDTH = 100  # columns of the legend
COLUMNS = ("problem", "method", "gap closed", "least", "most", "gradients", "memory", "fits", "rank", "damping")
OVERALL = ("method", "problems", "best or tied", "median rank", "median gap")
LEGEND = (
    "gap closed: 0 is the plain gradient, 1 the exact Fisher of every layer, with fresh statistics; least and most: "
    "over batches or seeds; gradients: FLOPs of a step at the refresh interval over those of a plain gradient step; "
    "memory: peak over that of SGD; rank: among the methods that fit the budget"
)


@dataclass(frozen=True)
class Advice:
    """What rows say within a budget: ``sentences``, ``evidence`` by problem and method, ``overall`` by method.

    ``overall`` is empty for one problem.
    """

    sentences: Sequence[str]
    evidence: pd.DataFrame
    overall: pd.DataFrame

    def __str__(self) -> str:
        return self.text("table")

    __repr__ = __str__

    @property
    def shown(self) -> list[pd.DataFrame]:
        """The tables as text; of several problems the evidence is that of the methods that fit, and the best of all."""
        decisive = self.evidence[(self.evidence["fits"] == "yes") | ~self.evidence["problem"].duplicated()]
        tables = (self.overall, decisive if len(self.overall) else self.evidence)
        return [as_text(table) for table in tables if len(table)]

    def text(self, form: str) -> str:
        """Sentences, tables and their legend in one of ``FORMS``."""
        if form == "json":
            found = {"overall": tables.records(self.overall), "evidence": tables.records(self.evidence)}
            return json.dumps({"sentences": list(self.sentences)} | found, indent=1) + "\n"
        said = [f"- {tables.escaped(said) if form == 'markdown' else said}" for said in self.sentences]
        parts = ["\n".join(said) + "\n", *(tables.text(table, form) for table in self.shown)]
        return "\n".join([*parts, *([textwrap.fill(LEGEND, WIDTH) + "\n"] if self.shown else [])])


def advise(
    rows: pd.DataFrame | str | Path,
    *,
    flops: float = 2.0,
    memory: float = 3.0,
    refresh: int = 100,
    problem: str | None = None,
) -> Advice:
    """Say which method serves best within a budget, from rows that exist.

    Args:
        rows: rows as ``curvbench.load`` gives them, or the folder of a run, a suite or results, of which the latest run
            of each suite is read.
        flops: what a step may cost, in gradients.
        memory: what a step may take, in multiples of the peak memory of a plain gradient step.
        refresh: the number of steps from one refresh of statistics and factors to the next.
        problem: the label of the one problem, or its name. None means all problems of the rows.

    Raises:
        ValueError: the budget is none, there are no rows, or no problem has this name.
    """
    limits = budget(flops, memory, refresh)
    frame = rows if isinstance(rows, pd.DataFrame) else store.load(store.resolve(rows))
    if frame.empty:
        raise ValueError("there are no rows: nothing was measured")
    frame = frame.reset_index(drop=True)  # rows of several runs, joined, have numbers twice
    frame = frame if problem is None else _chosen(frame, problem)
    names = problems(frame)
    evidence = _table([row for name, case in _cases(frame) for row in _rows(name, case, limits)], COLUMNS)
    if len(names) == 1:
        said = sentences(frame, flops, memory, refresh)
        return Advice(said, evidence, _table([], OVERALL))
    overall = over_problems(frame, limits)
    return Advice(_over_all(frame, limits, overall), evidence, overall)


def over_problems(frame: pd.DataFrame, limits: Budget) -> pd.DataFrame:
    """One row per method: problems with a value within the budget, how many it is best or tied on, ranks and gaps.

    On a problem where a method has no value, or does not fit the budget, its rank is that after the last.
    """
    ranked = [fitting for _, case in _cases(frame) if (fitting := _fitting(case, limits))]
    names = dict.fromkeys(method.label for fitting in ranked for method in fitting)
    table = _table([_overall(name, ranked) for name in names], OVERALL)
    return table.sort_values(["median rank", "median gap"], ascending=[True, False], kind="stable", ignore_index=True)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table of advice with three digits, as people read it."""
    numbers = ("gap closed", "least", "most", "gradients", "memory", "damping", "median gap")
    formats = {name: digits for name in numbers} | {"median rank": times}
    shown = table.dropna(axis=1, how="all")
    return shown.assign(**{name: shown[name].map(form) for name, form in formats.items() if name in shown})


def _chosen(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """The rows of the problem of this label or name."""
    known = labels(frame, "problem")
    chosen = frame[(known == problem) | (texts(frame, "problem") == problem)]
    if chosen.empty:
        raise ValueError(f"no rows of a problem {problem!r}: {near_misses(problem, known.unique())}")
    return chosen


def _cases(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The measurements of every problem, case by case, by a label that says in which settings cases differ."""
    for problem in problems(frame):
        rows = of_problem(frame, problem)
        rows = rows[~texts(rows, "suite").str.endswith(TRIALS)]
        if is_trained(rows):
            continue
        for name, case in cases(rows).items():
            yield f"{problem} ({name})" if name else problem, sweep.last(case) if len(case) else case


def _fitting(case: pd.DataFrame, limits: Budget) -> list[Method]:
    """The methods that stay within the budget, the best first."""
    return [method for method in compared(case) if method.fits(limits)]


def _rows(name: str, case: pd.DataFrame, limits: Budget) -> Iterator[Mapping[str, object]]:
    fitting = [method.label for method in _fitting(case, limits)]
    for method in compared(case):
        numbers = list(method.gaps.values())
        yield {
            "problem": name,
            "method": method.label,
            "gap closed": method.gap,
            "least": min(numbers) if len(numbers) > 1 else math.nan,
            "most": max(numbers) if len(numbers) > 1 else math.nan,
            "gradients": method.gradients(limits.refresh),
            "memory": method.memory,
            "fits": "yes" if method.fits(limits) else "unknown" if math.isnan(method.excess(limits)) else "no",
            "rank": str(fitting.index(method.label) + 1) if method.label in fitting else "",
            "damping": method.damping,
        }


def _overall(name: str, ranked: Sequence[Sequence[Method]]) -> dict[str, object]:
    ranks, gaps, wins = [], [], 0
    for fitting in ranked:
        place = next((k for k, method in enumerate(fitting) if method.label == name), len(fitting))
        ranks.append(place + 1)
        if place < len(fitting):
            gaps.append(fitting[place].gap)
            wins += fitting[place].gap > 0 and (place == 0 or are_tied(fitting[0], fitting[place]))
    return dict(zip(OVERALL, (name, len(gaps), wins, float(median(ranks)), median(gaps)), strict=True))


def _over_all(frame: pd.DataFrame, limits: Budget, overall: pd.DataFrame) -> list[str]:
    """Sentences over many problems."""
    by_problem = {name: _fitting(case, limits) for name, case in _cases(frame)}
    silent = [name for name, fitting in by_problem.items() if not fitting]
    worse = [name for name, fitting in by_problem.items() if fitting and fitting[0].gap <= 0]
    told = len(by_problem) - len(silent)
    parts = [*_best_overall(limits, overall, told), *_most_wins(overall, told)]
    parts += [f"On {few(worse)}, no method within the budget steps better than the plain gradient."] if worse else []
    parts += [f"Not enough measured on {few(silent)}: no method is known to stay within the budget."] if silent else []
    return [*parts, *_on_trainings(frame)]


def _best_overall(limits: Budget, overall: pd.DataFrame, told: int) -> list[str]:
    if overall.empty:
        return []
    best = overall.iloc[0]
    where = (
        f"on the {best['problems']} of them on which it fits" if best["problems"] < told else "in the median of them"
    )
    return [
        f"Within {limits}, {best['method']} serves best over {counted(told, 'problem')}: its median rank is "
        f"{times(best['median rank'])} of {len(overall)} methods, and it closes {percent(best['median gap'])} of the "
        f"gap between a plain gradient step and a step with the exact Fisher of every layer {where}."
    ]


def _most_wins(overall: pd.DataFrame, told: int) -> list[str]:
    wins = overall[overall["best or tied"] > 0].sort_values("best or tied", ascending=False, kind="stable")
    parts = [f"{row['method']} on {row['best or tied']}" for _, row in wins.iterrows()]
    return (
        [f"Best, or not to be told apart from the best, of {counted(told, 'problem')}: {few(parts)}."] if parts else []
    )


def _on_trainings(frame: pd.DataFrame) -> list[str]:
    """Which method ends best on every problem with trainings."""
    by_problem = {problem: of_problem(frame, problem) for problem in problems(frame)}
    best = {problem: best_training(rows) for problem, rows in by_problem.items() if is_trained(rows)}
    return [f"On {problem}, {sentence}" for problem, sentence in best.items() if sentence is not None]


def _table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))

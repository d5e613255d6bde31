"""Whatever rows are left of a run, and however their texts are stored: every table and every figure is made of them.

Texts come as pandas' own, as Python's or, of many cells, as categories. The same rows have the same answers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

pytest.importorskip("plotly", reason="figures need the extra `dashboard`")

import curvbench as cb
from curvbench import plot, report, store
from curvbench.analysis import (
    advice,
    check,
    claims,
    compare,
    coverage,
    exact,
    frames,
    held,
    history,
    pairs,
    papers,
    scaling,
    summary,
    targets,
    verdict,
    views,
)
from curvbench.analysis.verdict import gates
from curvbench.analysis.views import Quantity
from curvbench.report import terminal
from curvbench.report.run import Run

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
TEXTS = [field.name for field in store.SCHEMA if field.type == pa.string()]
STORED: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "categories": lambda rows: rows.astype(dict.fromkeys(TEXTS, "category")),
    "Python's": lambda rows: rows.astype(dict.fromkeys(TEXTS, object)),
}
ERROR, COSINE, FLOPS = (
    Quantity("error.relative", "network"),
    Quantity("direction.cosine", "network"),
    Quantity("flops.ratio", "step"),
)
RUNS = ("mlp", "sweep", "training")
CLAIMED = papers.experiments()[:2]
Answers = Iterator[tuple[str, object]]


def of_rows(rows: pd.DataFrame) -> Answers:
    """What the analysis says of the rows of a run."""
    ends = views.cells(rows)
    yield "summary.failures", summary.failures(rows)
    yield "summary.digest", summary.digest(rows, {})
    yield "summary.contenders", summary.contenders(rows)
    yield "summary.legend", summary.legend(rows)
    yield "frames.surrogates", frames.surrogates(rows)
    yield "views.quantities", views.quantities(rows, views.FAMILIES)
    yield "views.status", views.status(rows)
    yield "views.cells", ends
    yield "views.differing", views.differing(ends, ["probe"])
    yield "views.trained", views.trained(rows)
    known = views.settings(rows)
    yield "views.settings", known
    yield "views.parameters", views.parameters(rows, known)
    for parameter in ["epoch", *views.parameters(rows, known)]:
        yield f"views.sweep {parameter}", views.sweep(rows, known, parameter, ERROR)
        yield f"plot.sweep {parameter}", plot.sweep(rows, parameter, ERROR, known)
    if len(rows):  # without, it says so: see test_advice
        yield "advice.advise", str(advice.advise(rows, flops=9, memory=99, refresh=10))
    yield "coverage.matrix", coverage.matrix(rows)
    yield "coverage.reasons", coverage.reasons(rows)
    yield "coverage.shares", coverage.shares(rows)
    yield "exact.table", exact.table(rows)
    yield "exact_tables", list(terminal.exact_tables(rows, frames.problems(rows)))
    for place, quantity in enumerate((*held.SAMPLES, *held.AGES)):
        yield f"held {quantity}", (held.sampling if place < len(held.SAMPLES) else held.aging)(rows, quantity)
    yield "samples_tables", list(terminal.samples_tables(rows, frames.problems(rows)))
    yield "staleness_tables", list(terminal.staleness_tables(rows, frames.problems(rows)))
    yield "plot.sampling", plot.sampling(rows)
    yield "plot.aging", plot.aging(rows)
    yield "scaling.growing", scaling.growing(rows)
    yield "growth_tables", list(terminal.growth_tables(rows, frames.problems(rows)))
    yield "error_tables", list(terminal.error_tables(rows, frames.problems(rows)))
    yield "claims.judge", claims.judge(rows, CLAIMED)
    yield "claims.efforts", claims.efforts(rows, CLAIMED[0])
    yield "claims.newest", claims.newest([rows])
    yield "plot.status", plot.status(rows)
    yield "plot.growth", plot.growth(rows, "chain")


def of_first_problem(rows: pd.DataFrame) -> Answers:
    """What is said of the problem of the first row."""
    yield from of_problem(rows, next(iter(frames.problems(rows)), "gone"))


def of_problem(rows: pd.DataFrame, problem: str) -> Answers:
    """What is said of one problem."""
    mine = frames.of_problem(rows, problem)
    values = summary.table(rows, problem)
    yield "summary.table", values
    yield "summary.spread", summary.spread(rows, problem)
    yield "summary.best", summary.best(values)
    yield "summary.statuses", summary.statuses(rows, problem)
    yield "summary.title", summary.title(rows, problem)
    yield "summary_table", terminal.summary_table(rows, problem)
    yield "views.ranking", views.ranking(values, summary.columns(rows, problem))
    yield "views.values", views.values(mine, ERROR)
    yield "views.published", views.published(rows, problem)
    yield "views.final", views.final(rows, problem, views.trained(mine))
    yield "views.tradeoff", views.tradeoff(rows, problem, FLOPS, COSINE)
    yield "views.layers", views.layers(rows, problem, "error.relative")
    yield "verdict.sentences", verdict.sentences(mine)
    yield "plot.tradeoff", plot.tradeoff(rows, problem, FLOPS, COSINE)
    yield "plot.heatmap", plot.heatmap(rows, problem)
    for metric in ("flops.counted", "memory.peak"):
        yield f"views.phases {metric}", views.phases(rows, problem, metric)
        yield f"plot.cost {metric}", plot.cost(rows, problem, metric)
    for metric in ("train.loss", "test.accuracy"):
        yield f"views.curves {metric}", views.curves(rows, problem, metric)
        yield f"plot.curves {metric}", plot.curves(rows, problem, metric, "seconds")


def of_trainings(rows: pd.DataFrame) -> Answers:
    """What is said of targets."""
    usual = targets.usual_target(rows, "test.accuracy")
    yield "targets.usual_target", usual
    trials = targets.trials(rows, "test.accuracy", usual)
    yield "targets.trials", trials
    yield "targets.to_target", targets.to_target(trials)
    yield "targets.profile", targets.profile(trials, "seconds")
    yield "plot.profiles", plot.profiles(rows)


def of_two(rows: pd.DataFrame) -> Answers:
    """What is said of two runs: the rows, and those of them that another filter leaves."""
    other = rows[rows["metric"].ne("error.relative")].assign(run_id="z")
    changes = pairs.pairs(rows, other)
    yield "pairs.pairs", changes
    yield "pairs.largest_first", pairs.largest_first(changes)[pairs.is_change(pairs.largest_first(changes))]
    yield "plot.comparison", plot.comparison(rows, other, ERROR)
    both = pd.concat([rows, other])
    yield "history.history_table", history.history_table(both, "gone", ERROR)
    yield "plot.history", plot.history(both, ERROR)
    yield "compare.differences", compare.differences(rows, other)
    yield "compare.by_suite", compare.by_suite(rows)
    check.refuse_incomparable(rows, other)
    if len(rows) and len(other) and compare.shares_cells(rows, other):  # without, it says so: see test_compare
        judged = compare.compare(rows, other)
        yield "compare.compare", judged
        yield "compare.pivot", compare.pivot(judged)
        yield "compare.described", compare.described(judged)
        yield "check.Gate", check.Gate(judged).as_json()
        yield "gates.sentences", gates.sentences(check.Gate(judged))
        yield "history.steps", history.steps({"r1": rows, "r2": other}, judged)


def said(answer: object) -> object:
    """An answer as what a reader sees of it."""
    if isinstance(answer, pd.DataFrame | pd.Series):
        return answer.to_csv()
    if isinstance(answer, Table):
        console = Console(file=io.StringIO(), width=200)
        console.print(answer)
        return console.file.getvalue()  # type: ignore[attr-defined]
    if isinstance(answer, list | tuple):
        return [said(part) for part in answer]
    if isinstance(answer, dict):
        return {key: said(part) for key, part in answer.items()}
    return answer.to_json() if hasattr(answer, "to_json") else repr(answer)


def answers(rows: pd.DataFrame, *ask: Callable[[pd.DataFrame], Answers]) -> dict[str, Any]:
    return {name: said(answer) for one in ask for name, answer in one(rows)}


def kept(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What random filters leave: some probes, metrics, scopes, epochs and cells, some of them without their values."""
    chance = np.random.default_rng(seed)
    for column, share in (("probe", 0.3), ("problem", 0.8), ("metric", 0.7), ("scope", 0.8), ("cell_id", 0.8)):
        known = rows[column].unique()
        rows = rows[rows[column].isin(known[chance.random(len(known)) < share])]
    lost = chance.random(len(rows)) < 0.2
    ended = {"status": "error", "reason": "what was measured is not a number", "value": np.nan}
    return rows.assign(**{name: rows[name].where(~lost, text) for name, text in ended.items()})


def without_values(rows: pd.DataFrame) -> pd.DataFrame:
    """Cells that all ended early: a row each, as ``store.rows_to_table`` writes it."""
    ends = rows.drop_duplicates("cell_id")
    return ends.assign(status="timeout", reason="not finished in 4 s", metric="", scope="", value=np.nan, epoch=pd.NA)


LEFT: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "nothing": lambda rows: rows.head(0),
    "one cell": lambda rows: rows[rows["cell_id"] == rows["cell_id"].iloc[-1]],
    "no value": lambda rows: rows.assign(status="error", reason="bad", value=np.nan).iloc[::5],
    "failed cells": without_values,
    "a failed cell beside": lambda rows: pd.concat([without_values(rows).head(1), rows.tail(200)]),
    "null texts": lambda rows: rows.tail(300).assign(method=None, probe_args=None, problem_args=None, reason=None),
    "null metrics": lambda rows: without_values(rows).assign(metric=None, scope=None),
    "one epoch": lambda rows: rows[rows["epoch"] == rows["epoch"].max()],
}


@pytest.fixture(scope="module")
def runs() -> dict[str, pd.DataFrame]:
    """Every fifth probe of each run of the sample, for the sake of time without the samples of its clock."""
    found = {run.parent.name: cb.load(run).assign(samples=None) for run in store.runs_below(SAMPLE)}
    return {name: rows[rows["probe"].isin(rows["probe"].unique()[::5])] for name, rows in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(LEFT)), ids=list(LEFT))
def test_whatever_is_left(place: int, runs: dict[str, pd.DataFrame]) -> None:
    same_however_stored(list(LEFT.values())[place](runs[RUNS[place % len(RUNS)]]), "categories")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_filters_leave(seed: int, runs: dict[str, pd.DataFrame]) -> None:
    same_however_stored(kept(runs[RUNS[seed % len(RUNS)]], seed), "categories" if seed else "Python's")


@pytest.mark.parametrize("run", RUNS)
def test_a_problem_that_is_not_there(run: str, runs: dict[str, pd.DataFrame]) -> None:
    assert answers(STORED["categories"](runs[run]), lambda rows: of_problem(rows, "gone"))


@pytest.mark.slow
@pytest.mark.parametrize("left", ["one cell", "failed cells"])
def test_the_reports_of_what_is_left(left: str, runs: dict[str, pd.DataFrame]) -> None:
    rows = STORED["categories"](LEFT[left](runs["mlp"]))
    for form in report.FORMATS:
        assert report.write([Run("r", rows, {}, {})], form)


def same_however_stored(rows: pd.DataFrame, stored: str) -> None:
    every = (of_rows, of_first_problem, of_trainings, of_two)
    expected, found = answers(rows, *every), answers(STORED[stored](rows), *every)
    assert [name for name in expected if found[name] != expected[name]] == []

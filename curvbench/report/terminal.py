"""The tables at the end of a run, as a terminal shows them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from curvbench.analysis import exact, frames, held, scaling, summary, sweep
from curvbench.analysis.frames import labels
from curvbench.analysis.scaling import Growth
from curvbench.analysis.summary import digits
from curvbench.analysis.verdict import sentences
from curvbench.spec import Status

NARROWEST_LABEL = 10  # characters to which a long label is folded
GROWTH_WIDTH = 100  # characters


class Ending(NamedTuple):
    """What a suite shows at its end: titles and tables of the selected problems, and the meaning of their columns.

    ``has_verdict``: whether sentences on every problem come before the tables.
    """

    tables: Callable[[pd.DataFrame, Collection[str]], Iterator[tuple[str, Table]]]
    legend: Callable[[pd.DataFrame], str]
    has_verdict: bool = False


def show(console: Console, table: Table) -> None:
    """Print a table. The console is widened to the table's least width, because rich would cut the numbers."""
    console.width = max(console.width, table.min_width or 0)
    console.print(table)


def lines(table: Table, width: int) -> list[str]:
    """A table as text in lines of ``width`` characters, more if its numbers need them."""
    console = Console(file=io.StringIO(), width=width)
    show(console, table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def verdicts(frame: pd.DataFrame, selected: Collection[str], provisional: bool = False) -> Iterator[str]:
    """What was found, in lines: each selected problem, followed by its sentences."""
    for problem in frames.problems(frame):
        if problem in selected:
            yield f"{frames.shown_problem(frame, problem)}:"
            said = sentences(frames.of_problem(frame, problem), provisional=provisional)
            yield from (f"- {sentence}" for sentence in said)


def error_tables(frame: pd.DataFrame, selected: Collection[str]) -> Iterator[tuple[str, Table]]:
    """A table per problem, and for a sweep of updates also a table per metric against updates."""
    curves = [problem for problem in sweep.swept(frame) if problem in selected]
    for problem in frames.problems(frame):
        if problem in selected:
            note = ", every method after its most updates" if problem in curves else ""
            yield summary.title(frame, problem) + note, summary_table(sweep.last(frame), problem)
    for problem in curves:
        for metric in sweep.METRICS_SHOWN:
            yield sweep.title(problem, metric), sweep_table(frame, problem, metric)


def summary_table(frame: pd.DataFrame, problem: str) -> Table:
    """``summary.table`` of one problem, with spreads, statuses and marks of the best."""
    values, spreads = summary.table(frame, problem), summary.spread(frame, problem)
    statuses, marks = summary.statuses(frame, problem), summary.best(values)
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", overflow="fold", min_width=NARROWEST_LABEL)
    for column in summary.columns(frame, problem):
        table.add_column(column.heading, justify="right", no_wrap=True)
    for probe, *row in zip(values.index, values.to_numpy(), spreads.to_numpy(), marks.to_numpy(), strict=True):
        table.add_row(_probe(probe, statuses[probe]), *map(_entry, *row))
    table.min_width = NARROWEST_LABEL + 1 + sum(map(_width, table.columns[1:]))
    return table


def sweep_table(frame: pd.DataFrame, problem: str, metric: str) -> Table:
    """``sweep.table`` of one problem and metric."""
    return _curves(sweep.table(frame, problem, metric), "updates")


def _curves(values: pd.DataFrame, axis: str) -> Table:
    """A row per curve, a column per place on the axis."""
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(axis, overflow="fold", min_width=NARROWEST_LABEL)
    for step in values:
        table.add_column(str(step), justify="right", no_wrap=True)
    for curve, row in zip(values.index, values.to_numpy(), strict=True):
        table.add_row(Text(curve), *map(digits, row))
    table.min_width = NARROWEST_LABEL + 1 + sum(map(_width, table.columns[1:]))
    return table


def samples_tables(frame: pd.DataFrame, selected: Collection[str]) -> Iterator[tuple[str, Table]]:
    """A table per problem and quantity against the number of samples."""
    rows = frame[labels(frame, "problem").isin(list(selected))]
    for family in held.families(rows):
        for quantity in held.SAMPLES:
            if len(values := held.against_samples(rows, family, quantity)):
                yield held.title(family, quantity, rows), _curves(values, "samples")


def staleness_tables(frame: pd.DataFrame, selected: Collection[str]) -> Iterator[tuple[str, Table]]:
    """A table per problem and quantity against age."""
    for problem in (name for name in frames.problems(frame) if name in selected):
        rows = frames.of_problem(frame, problem)
        for quantity in held.AGES:
            if len(values := held.against_age(rows, problem, quantity)):
                yield held.title(problem, quantity, rows), _curves(values, "age")


def growth_tables(frame: pd.DataFrame, selected: Collection[str]) -> Iterator[tuple[str, Table]]:
    """A table per sweep of the selected problems."""
    rows = scaling.growth(frame[labels(frame, "problem").isin(list(selected))])
    for problem in dict.fromkeys(row.problem for row in rows):
        yield (
            ", ".join([problem, *summary.choices(frame)]),
            _growth_table([row for row in rows if row.problem == problem]),
        )


def _growth_table(rows: Sequence[Growth]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, min_width=GROWTH_WIDTH)
    for heading in ("method", "cost"):
        table.add_column(heading, no_wrap=True)
    for heading in ("counted", "published", "ratio", "drift", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for probe in sorted({row.probe for row in rows}):
        for place, row in enumerate(row for row in rows if row.probe == probe):
            drift = "" if math.isnan(row.drift) else f"{row.drift + 0:+.1%}"
            mark = "" if row.agrees or math.isnan(row.published.value) else "!"
            numbers = (str(row.counted), str(row.published), digits(row.ratio))
            table.add_row(Text("" if place else probe), row.quantity, *numbers, drift, mark)
    return table


def exact_tables(frame: pd.DataFrame, selected: Collection[str]) -> Iterator[tuple[str, Table]]:
    """One table of the selected problems, under the device and its peaks."""
    frame = frame[labels(frame, "problem").isin(selected)]
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("problem", vertical="bottom", no_wrap=True)
    for heading in exact.COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for problem, row in exact.table(frame).iterrows():
        table.add_row(Text(str(problem)), *map(digits, row))
    yield exact.title(frame), table


def _probe(probe: str, status: str) -> Text:
    return Text(probe) if status == Status.OK else Text.assemble(probe, "  ", (status, "red"))


def _entry(value: float, spread: float, is_best: bool) -> Text:
    number = Text(digits(value) + ("*" if is_best else " "), style="bold" if is_best else "")
    return number if math.isnan(spread) else Text.assemble(number, "\n", (f"±{digits(spread)} ", "dim"))


def _width(column: Column) -> int:
    """Characters of a column of numbers and of the space behind it."""
    texts = [column.header, *column.cells]
    return 1 + max(len(line) for text in texts for line in str(text).splitlines() or [""])


ENDINGS: Mapping[str, Ending] = {  # by ``Suite.summary``
    "errors": Ending(error_tables, summary.legend, has_verdict=True),
    "growth": Ending(growth_tables, lambda frame: scaling.LEGEND),
    "exact": Ending(exact_tables, lambda frame: exact.LEGEND, has_verdict=True),
    "samples": Ending(samples_tables, lambda frame: held.SAMPLES_LEGEND),
    "staleness": Ending(staleness_tables, lambda frame: held.AGES_LEGEND),
}

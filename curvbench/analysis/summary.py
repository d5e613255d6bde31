"""The table at the end of a run as data: one per problem, one row per probe, and the best of each column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from curvbench.analysis import noise
from curvbench.analysis.frames import is_cell_ending, is_surrogate, labels, of_problem, texts
from curvbench.analysis.roles import BASELINES, are_ranked, sets_lengths
from curvbench.spec import METRICS, PARAMETERS, SURROGATE, Status


@dataclass(frozen=True)
class Column:
    """A column of the table: a metric in one scope, under a heading of two lines."""

    metric: str
    scope: str
    heading: str

    @property
    def better(self) -> str:
        """``lower``, ``higher`` or empty, as in ``METRICS``."""
        return "lower" if self.metric == PACE else METRICS[self.metric].better


PACE = "seconds per epoch over those of SGD"  # of the same seed; derived here, because a cell knows no other cell


def _columns(*kinds: str) -> tuple[Column, ...]:
    """The columns that ``METRICS`` gives to the metrics of some kinds, in its order."""
    entries = [(name, metric) for name, metric in METRICS.items() if name.startswith(kinds)]
    return tuple(Column(name, scope, heading) for name, metric in entries for scope, heading in metric.columns.items())


SPREAD = "± half the range"  # what a terminal has room for
FIRST = "direction.gap_closed"  # what a step is worth, which the verdict begins with
COLUMNS = tuple(sorted(_columns("error.", "direction.", "flops.", "memory.", "time."), key=lambda c: c.metric != FIRST))
RATED = Column("direction.quality_rates", "network", "quality\nby rates")
"""Stands behind the step quality if a method of the table sets the length of every layer's step."""
RATED_LEGEND = "by rates: quality with the best rate for every layer, which is fair to steps of a set length; "
LEGEND = (
    "gap closed: quality of the step where the gradient is 0 and exact layer blocks are 1; error: |F^ - F| / |F| of "
    "the network and of its layer blocks, F as the title says; scaled: after the best scalar multiple; step: against "
    "(F + damping I)^-1 g, cosine, and as quality the share of its decrease at the step's own best length; x SGD: one "
    "step with everything refreshed over a plain gradient step; * best method of the column"
)
_TO_TARGET = _columns("train.epochs_to_target", "train.seconds_to_target")
_OF_TRAINING = tuple(column for column in _columns("test.", "train.") if column not in _TO_TARGET)
TRAINED = (*_OF_TRAINING, Column(PACE, "network", "epoch\nx SGD"), *_TO_TARGET)
PACED = _columns("pace.")
PACED_LEGEND = (
    "x SGD: seconds over those of torch's SGD in the same turn; step: plain steps, statistics and inversion at the "
    "intervals of the training; plain: a step without statistics; * best method of the column"
)
TRAINED_LEGEND = (
    "test: after the last epoch; train loss: mean of its batches, each before its step; seconds: of training alone; "
    f"x SGD: seconds of an epoch over those of {' or '.join(BASELINES)} in the same optimizer with the same seed, in "
    "one run but not in turn; * best method of the column"
)


def is_trained(frame: pd.DataFrame) -> bool:
    """Whether the cells are trainings rather than measurements."""
    return any(metric.startswith("test.") for metric in frame["metric"].dropna().unique())


def is_paced(frame: pd.DataFrame) -> bool:
    """Whether the cells clock the steps of a training."""
    return any(metric.startswith("pace.") for metric in frame["metric"].dropna().unique())


def legend(frame: pd.DataFrame) -> str:
    """The meaning of the columns of the tables."""
    if is_trained(frame):
        return TRAINED_LEGEND
    if is_paced(frame):
        return PACED_LEGEND
    return LEGEND.replace("x SGD:", f"{RATED_LEGEND}x SGD:") if _has_set_lengths(frame) else LEGEND


def _has_set_lengths(cells: pd.DataFrame) -> bool:
    return any(map(sets_lengths, labels(cells, "probe").unique()))


def columns(frame: pd.DataFrame, problem: str) -> list[Column]:
    """The columns of ``table``: ``COLUMNS`` and perhaps ``RATED``, or those of ``TRAINED`` that the trainings have."""
    cells = of_problem(frame, problem)
    if is_paced(cells):
        return list(PACED)
    if not is_trained(cells):
        place = 1 + next(i for i, column in enumerate(COLUMNS) if column.metric == "direction.quality")
        return [*COLUMNS[:place], *[RATED] * _has_set_lengths(cells), *COLUMNS[place:]]
    metrics = {*cells["metric"], *([PACE] if cells["probe"].isin(BASELINES).any() else [])}
    return [column for column in TRAINED if column.metric in metrics]


def table(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Medians over seeds: one row per probe, one column per entry of ``columns``, named ``metric (scope)``.

    A missing value is NaN.
    """
    return _aggregate(frame, problem, "median")


def spread(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Half the range over seeds, in the shape of ``table``; NaN for a single value."""
    low, high = ranges(frame, problem)
    return (high - low) / 2


def ranges(frame: pd.DataFrame, problem: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The least and the greatest value over seeds and samples, each in the shape of ``table``; NaN for a single value.

    Rows have the ends of their samples from ``noise.with_spread``.
    """
    low, high = _aggregate(frame, problem, "min"), _aggregate(frame, problem, "max")
    several = (_aggregate(frame, problem, "count") > 1) | (low < high)
    return low.where(several), high.where(several)


def noisy(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Whether a clock behind an entry of ``table`` was noisy, in its shape."""
    return _aggregate(frame, problem, "noisy") > 0


def statuses(frame: pd.DataFrame, problem: str) -> pd.Series:
    """The statuses of each probe's cells: ``ok``, or for example ``timeout`` or ``ok, error``."""
    cells = of_problem(frame, problem)
    endings = texts(cells, "status").where(is_cell_ending(cells))
    statuses = endings.groupby(texts(cells, "cell_id")).transform("first").fillna(str(Status.OK))
    ended = pd.DataFrame({"contender": contenders(cells), "status": statuses}).drop_duplicates()
    return ended.groupby("contender", sort=False)["status"].agg(", ".join)


def best(values: pd.DataFrame) -> pd.DataFrame:
    """Which entries of ``table`` are the best of their column, to the three digits that are shown.

    References and bounds are never the best: they are what methods are held against. A solver of the Fisher itself has
    no error to be ranked by.
    """
    marks = pd.DataFrame(False, index=values.index, columns=values.columns)
    for name in values.columns:
        better, rivals = _COLUMN_OF[name].better, values.loc[are_ranked(values.index, _COLUMN_OF[name].metric), name]
        if better and rivals.notna().any():
            goal = rivals.min() if better == "lower" else rivals.max()
            marks.loc[rivals.index, name] = rivals.map(digits) == digits(goal)
    return marks


def contenders(frame: pd.DataFrame) -> pd.Series:
    """The label of the contender of each row: the probe, and the settings in which its trainings of a problem differ.

    ``kfac {lr=0.1}`` and ``kfac {lr=0.3}`` are two settings of a training with the probe ``kfac``. Rows of all
    parameters and rows of the weights only are of two contenders.
    """
    probes = labels(frame, "probe")
    if frame["parameters"].nunique() > 1:
        probes += " {parameters=" + texts(frame, "parameters") + "}"
    if not is_trained(frame):
        return probes
    test = texts(frame, "metric").str.startswith("test.")
    cells = frame[test].drop_duplicates("cell_id")
    settings = _without_mark(texts(cells, "method")).str.split(",")
    groups = settings.groupby([labels(cells, "problem"), labels(cells, "probe")])
    shared = groups.transform(lambda several: [set.intersection(*map(set, several))] * len(several))
    differing = [",".join(s for s in parts if s not in common) for parts, common in zip(settings, shared, strict=True)]
    notes = pd.Series([f" {{{text}}}" if text else "" for text in differing], texts(cells, "cell_id"), dtype=object)
    return (probes + texts(frame, "cell_id").map(notes).fillna("")).astype(object)


def title(frame: pd.DataFrame, problem: str) -> str:
    """The problem, N, P, what is covered, epochs of the snapshot, F, damping, share outside layer blocks, seeds."""
    cells = of_problem(frame, problem)
    parts = [problem]
    parts += ["SURROGATE of a published experiment"] if is_surrogate(cells).any() else []
    parts += [f"N = {n:,.0f}" for n in _facts(cells, "problem.samples")]
    parts += [f"P = {p:,.0f}" for p in _facts(cells, "problem.parameters")]
    parts += choices(cells)
    parts += [f"covering {share:.1%}" for share in _facts(cells, "coverage.parameters") if share < 1]
    epochs = sorted(cells["epoch"].dropna().unique())
    if is_trained(cells):
        parts += [f"trained from epoch {epochs[0]} to {epochs[-1]}"]
    else:
        parts += [f"epochs = {epoch}" for epoch in epochs]
    parts += [f"F: {method}" for method in _methods(cells)]
    parts += [f"damping {damping}" for damping in _dampings(cells)]
    parts += [f"outside layer blocks = {share:.1%} of |F|^2" for share in _facts(cells, "error.off_block")]
    seeds = cells["seed"].nunique()
    parts += [f"median of {seeds} seeds {SPREAD}"] if seeds > 1 else []
    return ", ".join(parts)


def choices(frame: pd.DataFrame) -> list[str]:
    """``all parameters`` or ``weights only``: one, unless the cells come from several runs."""
    return [words for choice, words in PARAMETERS.items() if (frame["parameters"] == choice).any()]


def digits(value: float) -> str:
    """Three significant digits, in at most nine characters; empty for NaN."""
    if math.isnan(value):
        return ""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:#.3g}" if abs(value) < 999.5 else f"{value:.0f}"
        return text.rstrip(".")
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell without a value, and per reason of metrics that failed: cell_id, status, reason, label."""
    failed = frame[frame["status"] != Status.OK]
    label = labels(failed, "probe") + " on " + labels(failed, "problem") + ", seed " + failed["seed"].astype(str)
    facts = {column: texts(failed, column) for column in ("cell_id", "status", "reason")}
    metrics = texts(failed, "metric").groupby(list(facts.values())).transform(_named_metrics).astype(object)
    facts["reason"] = facts["reason"].where(metrics == "", metrics + ": " + facts["reason"])
    return pd.DataFrame({**facts, "label": label}).drop_duplicates().reset_index(drop=True)


def digest(frame: pd.DataFrame, commands: Mapping[str, str]) -> list[str]:
    """Lines on the cells that did not succeed, grouped by reason, and the commands that run them again.

    A command that runs all of them comes last; each other one follows the cells that it runs. Cells with one label,
    such as trainings that differ in their settings alone, are a line with their number.
    """
    together = commands if len(commands) > 1 and len(set(commands.values())) == 1 else {}
    lines: list[str] = []
    for (status, reason), cells in failures(frame).groupby(["status", "reason"], sort=False):
        lines.append(f"{status}: {reason}")
        for command, alike in groupby(cells.itertuples(), lambda cell: commands.get(str(cell.cell_id), "")):
            counts = Counter(str(cell.label) for cell in alike)
            lines += [f"    {label}{f', {count} cells' if count > 1 else ''}" for label, count in counts.items()]
            lines += [f"      {command}"] if command and not together else []
    return lines + [f"all of these again: {command}" for command in dict.fromkeys(together.values())]


def _named_metrics(names: pd.Series) -> str:
    """The metrics that failed for one reason; empty if the whole cell failed for it."""
    return "" if (names == "").any() else ", ".join(dict.fromkeys(names))


def _aggregate(frame: pd.DataFrame, problem: str, how: str) -> pd.DataFrame:
    cells = of_problem(frame, problem)
    cells = cells.assign(contender=contenders(cells))
    order = list(dict.fromkeys(cells["contender"]))
    chosen = columns(frame, problem)
    if is_trained(cells):
        cells = _outcomes(cells)
    aggregates = {}
    for column in chosen:
        rows = (cells["metric"] == column.metric) & (cells["scope"] == column.scope) & (cells["status"] == Status.OK)
        values = _values(cells[rows], how).groupby(cells.loc[rows, "contender"]).agg("max" if how == "noisy" else how)
        aggregates[_named(column)] = values.reindex(order).astype("float64")
    return pd.DataFrame(aggregates, index=order)


def _values(rows: pd.DataFrame, how: str) -> pd.Series:
    if how == "noisy":
        return noise.are_noisy(rows)
    least, greatest = noise.ends(rows)
    return {"min": least, "max": greatest}.get(how, rows["value"])


def _outcomes(cells: pd.DataFrame) -> pd.DataFrame:
    """The last row of each metric of every completed training, and the training's pace over SGD's."""
    is_complete = ~cells["cell_id"].isin(cells.loc[is_cell_ending(cells), "cell_id"])
    cells = cells[is_complete]
    last = cells.sort_values("epoch", kind="stable").groupby(["cell_id", "metric", "scope"], sort=False).tail(1)
    seconds = last[last["metric"] == "train.seconds"]
    baselines = [name for name in BASELINES if (seconds["probe"] == name).any()]
    if not baselines:
        return last
    first_epoch = seconds["cell_id"].map(cells.groupby("cell_id")["epoch"].min()).astype("float64")
    pace = seconds.assign(metric=PACE, value=seconds["value"] / (seconds["epoch"].astype("float64") - first_epoch))
    sgd = pace[pace["probe"] == baselines[0]].groupby("seed")["value"].median()
    return pd.concat([last, pace.assign(value=pace["value"] / pace["seed"].map(sgd))])


def _named(column: Column) -> str:
    return f"{column.metric} ({column.scope})"


_COLUMN_OF = {_named(column): column for column in (*COLUMNS, RATED, *TRAINED, *PACED)}


def _facts(cells: pd.DataFrame, metric: str) -> list[float]:
    """The median of a metric that belongs to the problem rather than to a probe; empty if no cell has it."""
    values = cells.loc[(cells["metric"] == metric) & (cells["scope"] == "network"), "value"].dropna()
    return [float(values.median())] if len(values) else []


def _methods(cells: pd.DataFrame) -> list[str]:
    """The Fishers against which errors were measured; several if the cells differ."""
    chosen = (cells["metric"] == "error.relative") & (cells["scope"] == "network")
    return [method for method in _without_mark(texts(cells[chosen], "method")).unique() if method]


def _dampings(cells: pd.DataFrame) -> list[str]:
    """The dampings of the exact steps: one, unless the cells come from several runs."""
    methods = texts(cells[cells["metric"] == "direction.quality"], "method")
    return list(methods.str.extract(r"\bdamping ([^,]+)")[0].dropna().unique())


def _without_mark(methods: pd.Series) -> pd.Series:
    """Methods without the mark of a surrogate, because the title has it."""
    return methods.str.removeprefix(SURROGATE).str.removeprefix(", ")

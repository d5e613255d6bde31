"""The table at the end of a run: one per problem, one row per probe, the best of each column marked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from curvbench.analysis.frames import is_cell_ending, is_surrogate, labels, of_problem, texts
from curvbench.spec import METRICS, SURROGATE, Status


@dataclass(frozen=True)
class Column:
    """A column of the table: a metric in one scope, under a heading of two lines."""

    metric: str
    scope: str
    heading: str

    @property
    def better(self) -> str:
        """Which way is better, as ``METRICS`` has it."""
        return "lower" if self.metric == PACE else METRICS[self.metric].better


PACE = "seconds per epoch over those of SGD"  # of the same seed; derived here, for no cell knows of another
BASELINES = ("sgdm", "identity")


COLUMNS = (
    Column("error.relative", "network", "error\nnetwork"),
    Column("error.relative", "layer blocks", "error\nblocks"),
    Column("error.scale_optimal", "layer blocks", "scaled\nblocks"),
    Column("direction.cosine", "network", "step\ncosine"),
    Column("direction.quality", "network", "step\nquality"),
    Column("direction.gap_closed", "network", "gap\nclosed"),
    Column("flops.ratio", "step", "FLOPs\nx SGD"),
    Column("memory.ratio", "step", "memory\nx SGD"),
    Column("time.ratio", "step", "time\nx SGD"),
)
LEGEND = (
    "error: |F^ - F| / |F| of the network and of its layer blocks, F as the title says; scaled: after the best scalar "
    "multiple; step: against (F + damping I)^-1 g, cosine, and as quality the share of its decrease at the step's own "
    "best length; gap closed: quality where the gradient is 0 and exact layer blocks are 1; x SGD: one step with "
    "everything refreshed over a plain gradient step; * best of the column"
)
TRAINED = (
    Column("test.accuracy", "network", "test\naccuracy"),
    Column("test.bleu", "network", "test\nBLEU"),
    Column("test.rouge1", "network", "test\nR-1"),
    Column("test.rouge2", "network", "test\nR-2"),
    Column("test.rougeL", "network", "test\nR-L"),
    Column("test.loss", "network", "test\nloss"),
    Column("train.loss", "network", "train\nloss"),
    Column("train.seconds", "network", "train\nseconds"),
    Column(PACE, "network", "epoch\nx SGD"),
    Column("train.epochs_to_target", "network", "epochs to\ntarget"),
    Column("train.seconds_to_target", "network", "seconds to\ntarget"),
)
TRAINED_LEGEND = (
    "test: after the last epoch; train loss: mean of its batches, each before its step; seconds: of training alone; "
    f"x SGD: seconds of an epoch over those of {' or '.join(BASELINES)} in the same optimizer with the same seed, in "
    "one run but not in turn; * best of the column"
)


def is_trained(frame: pd.DataFrame) -> bool:
    """Whether the cells trained rather than measured."""
    return any(metric.startswith("test.") for metric in frame["metric"].dropna().unique())


def legend(frame: pd.DataFrame) -> str:
    """What the columns of the tables mean."""
    return TRAINED_LEGEND if is_trained(frame) else LEGEND


def columns(frame: pd.DataFrame, problem: str) -> list[Column]:
    """What ``table`` shows of a problem: ``COLUMNS``, or those of ``TRAINED`` that its trainings have."""
    cells = of_problem(frame, problem)
    if not is_trained(cells):
        return list(COLUMNS)
    known = {*cells["metric"], *([PACE] if cells["probe"].isin(BASELINES).any() else [])}
    return [column for column in TRAINED if column.metric in known]


def table(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Medians over seeds: one row per probe, one column per entry of ``columns``, named ``metric (scope)``.

    Numbers, NaN where there is none.
    """
    return _aggregate(frame, problem, "median")


def spread(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Half the range over seeds, in the shape of ``table``; NaN where there is a single value."""
    high, low = _aggregate(frame, problem, "max"), _aggregate(frame, problem, "min")
    return ((high - low) / 2).where(_aggregate(frame, problem, "count") > 1)


def statuses(frame: pd.DataFrame, problem: str) -> pd.Series:
    """Per probe the statuses of its cells: ``ok``, or for example ``timeout`` or ``ok, error``."""
    cells = of_problem(frame, problem)
    whole = texts(cells, "status").where(is_cell_ending(cells))
    ends = whole.groupby(texts(cells, "cell_id")).transform("first").fillna(str(Status.OK))
    ended = pd.DataFrame({"contender": contenders(cells), "status": ends}).drop_duplicates()
    return ended.groupby("contender", sort=False)["status"].agg(", ".join)


def best(values: pd.DataFrame) -> pd.DataFrame:
    """Which entries of ``table`` are the best of their column, to the three digits that are shown."""
    marks = pd.DataFrame(False, index=values.index, columns=values.columns)
    for name in values.columns:
        better = _COLUMN_OF[name].better
        if better and values[name].notna().any():
            goal = values[name].min() if better == "lower" else values[name].max()
            marks[name] = values[name].map(digits) == digits(goal)
    return marks


def contenders(frame: pd.DataFrame) -> pd.Series:
    """What has a line of its own, for each row: the probe's label; trainings of one problem with what they differ in.

    ``kfac {lr=0.1}`` and ``kfac {lr=0.3}`` are two settings of a training with the probe ``kfac``.
    """
    probes = labels(frame, "probe")
    if not is_trained(frame):
        return probes
    test = texts(frame, "metric").str.startswith("test.")
    cells = frame[test].drop_duplicates("cell_id")
    ways = _own(texts(cells, "method")).str.split(",")
    alike = ways.groupby([labels(cells, "problem"), labels(cells, "probe")])
    shared = alike.transform(lambda several: [set.intersection(*map(set, several))] * len(several))
    own = [",".join(part for part in way if part not in known) for way, known in zip(ways, shared, strict=True)]
    ended = pd.Series([f" {{{way}}}" if way else "" for way in own], index=texts(cells, "cell_id"), dtype=object)
    return (probes + texts(frame, "cell_id").map(ended).fillna("")).astype(object)


def title(frame: pd.DataFrame, problem: str) -> str:
    """The problem, N, P, epochs of the snapshot, F itself, the damping, the share outside the layer blocks, seeds."""
    cells = of_problem(frame, problem)
    parts = [problem]
    parts += ["SURROGATE of a published experiment"] if is_surrogate(cells).any() else []
    parts += [f"N = {n:,.0f}" for n in _facts(cells, "problem.samples")]
    parts += [f"P = {p:,.0f}" for p in _facts(cells, "problem.parameters")]
    epochs = sorted(cells["epoch"].dropna().unique())
    if is_trained(cells):
        parts += [f"trained from epoch {epochs[0]} to {epochs[-1]}"]
    else:
        parts += [f"epochs = {epoch}" for epoch in epochs]
    parts += [f"F: {method}" for method in _methods(cells)]
    parts += [f"damping {damping}" for damping in _dampings(cells)]
    parts += [f"outside layer blocks = {share:.1%} of |F|^2" for share in _facts(cells, "error.off_block")]
    seeds = cells["seed"].nunique()
    parts += [f"median of {seeds} seeds ± half the range"] if seeds > 1 else []
    return ", ".join(parts)


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
    told = {column: texts(failed, column) for column in ("cell_id", "status", "reason")}
    metrics = texts(failed, "metric").groupby(list(told.values())).transform(_named_metrics).astype(object)
    told["reason"] = told["reason"].where(metrics == "", metrics + ": " + told["reason"])
    return pd.DataFrame({**told, "label": label}).drop_duplicates().reset_index(drop=True)


def digest(frame: pd.DataFrame, commands: Mapping[str, str]) -> list[str]:
    """Lines on the cells that did not succeed: equal reasons come once, and below cells the command to run them again.

    What one command runs again is named before it, trainings that differ in their settings alone by their number.
    """
    lines: list[str] = []
    for (status, reason), cells in failures(frame).groupby(["status", "reason"], sort=False):
        lines.append(f"{status}: {reason}")
        for command, alike in groupby(cells.itertuples(), lambda cell: commands.get(str(cell.cell_id), "")):
            counts = Counter(str(cell.label) for cell in alike)
            lines += [f"    {label}{f', {count} cells' if count > 1 else ''}" for label, count in counts.items()]
            lines += [f"      {command}"] if command else []
    return lines


def _named_metrics(names: pd.Series) -> str:
    """The metrics that failed for one reason; none where it is that of the whole cell."""
    return "" if (names == "").any() else ", ".join(dict.fromkeys(names))


def _aggregate(frame: pd.DataFrame, problem: str, how: str) -> pd.DataFrame:
    cells = of_problem(frame, problem)
    cells = cells.assign(contender=contenders(cells))
    order = list(dict.fromkeys(cells["contender"]))
    chosen = columns(frame, problem)
    if is_trained(cells):
        cells = _outcomes(cells)
    found = {}
    for column in chosen:
        rows = (cells["metric"] == column.metric) & (cells["scope"] == column.scope) & (cells["status"] == Status.OK)
        values = cells[rows].groupby("contender")["value"].agg(how)
        found[_named(column)] = values.reindex(order).astype("float64")
    return pd.DataFrame(found, index=order)


def _outcomes(cells: pd.DataFrame) -> pd.DataFrame:
    """Of every training that came to its end the last row of each metric, and its pace against SGD's."""
    ended = ~cells["cell_id"].isin(cells.loc[is_cell_ending(cells), "cell_id"])
    cells = cells[ended]
    last = cells.sort_values("epoch", kind="stable").groupby(["cell_id", "metric", "scope"], sort=False).tail(1)
    seconds = last[last["metric"] == "train.seconds"]
    baselines = [name for name in BASELINES if (seconds["probe"] == name).any()]
    if not baselines:
        return last
    begun = seconds["cell_id"].map(cells.groupby("cell_id")["epoch"].min()).astype("float64")
    pace = seconds.assign(metric=PACE, value=seconds["value"] / (seconds["epoch"].astype("float64") - begun))
    sgd = pace[pace["probe"] == baselines[0]].groupby("seed")["value"].median()
    return pd.concat([last, pace.assign(value=pace["value"] / pace["seed"].map(sgd))])


def _named(column: Column) -> str:
    return f"{column.metric} ({column.scope})"


_COLUMN_OF = {_named(column): column for column in (*COLUMNS, *TRAINED)}


def _facts(cells: pd.DataFrame, metric: str) -> list[float]:
    """The median of a metric that belongs to the problem rather than to a probe; none where no cell has it."""
    values = cells.loc[(cells["metric"] == metric) & (cells["scope"] == "network"), "value"].dropna()
    return [float(values.median())] if len(values) else []


def _methods(cells: pd.DataFrame) -> list[str]:
    """What the errors were measured against; more than one where the cells differ in it."""
    chosen = (cells["metric"] == "error.relative") & (cells["scope"] == "network")
    return [method for method in _own(texts(cells[chosen], "method")).unique() if method]


def _dampings(cells: pd.DataFrame) -> list[str]:
    """Those of the exact steps, of which there is one unless cells of several runs are shown."""
    methods = texts(cells[cells["metric"] == "direction.quality"], "method")
    return list(methods.str.extract(r"\bdamping ([^,]+)")[0].dropna().unique())


def _own(methods: pd.Series) -> pd.Series:
    """Methods without the mark of a surrogate, which stands in the title."""
    return methods.str.removeprefix(SURROGATE).str.removeprefix(", ")

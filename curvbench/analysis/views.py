"""The tables behind the figures: pure functions from the rows of a run to the table that a figure draws.

Every table has every probe of the rows: a probe without a value has NaN, and its status says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from curvbench.analysis import noise
from curvbench.analysis.frames import is_cell_ending, labels, of_problem, texts
from curvbench.analysis.roles import are_ranked
from curvbench.analysis.summary import Column, contenders, digits, statuses
from curvbench.spec import METRICS, PHASES, Metric, Status
from curvbench.spec.labels import arguments_of, split_arguments

WHOLES = ("network", "layer blocks")
CURVE = "damping="  # how the scopes of a curve over dampings begin
GRADIENT = "gradient"
FAMILIES = ("error", "direction", "damping", "health", "flops", "memory", "time")
Settings = Mapping[str, Mapping[str, Any]]
FLAT = 1e-3  # relative difference that no figure shows
PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}  # by the power of 1000
NOISY = ", noisy"  # marks the range of a clock
ROUNDING = 1e-14  # a cosine of equal vectors differs from 1 by less


class Quantity(NamedTuple):
    """A metric in one scope. An axis shows a metric that is best at 1 as its distance from 1: lower is better."""

    metric: str
    scope: str

    @property
    def is_gap(self) -> bool:
        """Whether the axis shows 1 - value."""
        return self.metric.startswith(("error.", "direction.")) and meaning(self.metric).better == "higher"

    @property
    def better(self) -> str:
        """Which way of the axis is better."""
        return "lower" if self.is_gap else meaning(self.metric).better

    @property
    def heading(self) -> str:
        """The heading of a column with the values that the axis shows."""
        return f"1 - {self}" if self.is_gap else str(self)

    @property
    def label(self) -> str:
        """The name for people: ``relative error, layer blocks``."""
        return f"{plain(self.metric)}, {self.scope}"

    def __str__(self) -> str:
        return f"{self.metric} ({self.scope})"

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """From ``metric (scope)``."""
        metric, _, scope = text.partition(" (")
        return cls(metric, scope.removesuffix(")"))


ERROR = Quantity("error.relative", "layer blocks")
FLOPS = Quantity("flops.ratio", "step")
GAP_CLOSED = Quantity("direction.gap_closed", "network")


def meaning(metric: str) -> Metric:
    """The entry of a metric; a metric of a later version has neither unit nor direction."""
    return METRICS.get(metric, Metric("", ""))


def plain(metric: str) -> str:
    """The name of a metric for people; that of a later version has none and keeps its own."""
    return meaning(metric).label or metric


def quantities(frame: pd.DataFrame, families: Sequence[str]) -> list[Quantity]:
    """The metrics of some families in the scopes that every problem has, in the order of ``METRICS``."""
    measured = frame.loc[frame["scope"].isin([*WHOLES, *PHASES]) & ~is_cell_ending(frame), ["metric", "scope"]]
    pairs = [Quantity(*pair) for pair in measured.drop_duplicates().itertuples(index=False)]
    order = {metric: place for place, metric in enumerate(METRICS)}
    chosen = [pair for pair in pairs if pair.metric.split(".")[0] in families]
    return sorted(chosen, key=lambda q: (order.get(q.metric, len(order)), [*WHOLES, *PHASES].index(q.scope)))


def values(frame: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """Median, least and greatest value over seeds and samples, one row per probe label, in the order of the rows."""
    probes, chosen = labels(frame, "probe"), _are_of(frame, quantity)
    return _spread(frame[chosen], quantity, probes[chosen]).reindex(probes.unique()).astype("float64")


def noisy(frame: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Whether a clock behind the values of each probe was noisy, in the order of ``values``."""
    probes, chosen = labels(frame, "probe"), _are_of(frame, quantity)
    marks = noise.are_noisy(frame[chosen]).groupby(probes[chosen], sort=False).max()
    return marks.reindex(probes.unique()) > 0


def _are_of(frame: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """The rows with values of a quantity, as a mask."""
    are_of_it = (frame["metric"] == quantity.metric) & (frame["scope"] == quantity.scope)
    return are_of_it & (frame["status"] == Status.OK)


def _spread(rows: pd.DataFrame, quantity: Quantity, by: Any) -> pd.DataFrame:
    """Median, least and greatest value over the seeds and samples of each group of rows."""
    least, greatest = noise.ends(rows)
    parts = {"median": rows["value"], "min": least, "max": greatest}
    if quantity.is_gap:
        parts = {"median": _distance(rows["value"]), "min": _distance(greatest), "max": _distance(least)}
    return pd.DataFrame({how: values.groupby(by, sort=False).agg(how) for how, values in parts.items()})


def status(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per probe and problem: probe, problem, status, cells, reason; the status ``not run`` without cells."""
    ends = cells(frame)
    table = ends.groupby(["probe", "problem"], sort=False).agg(
        status=("status", _distinct), cells=("cell_id", "nunique"), reason=("reason", _distinct)
    )
    pairs = pd.MultiIndex.from_product(
        [dict.fromkeys(ends["probe"]), dict.fromkeys(ends["problem"])], names=["probe", "problem"]
    )
    table = table.reindex(pairs).fillna({"status": "not run", "cells": 0, "reason": ""})
    return table.astype({"cells": "int64"}).reset_index()


def endings(frame: pd.DataFrame) -> pd.Series:
    """How the cells of each probe ended, by the probe's label; ``frame``: rows of one problem."""
    return status(frame).set_index("probe")["status"]


def ranking(medians: pd.DataFrame, chosen: Iterable[Column], places: int = 3) -> pd.DataFrame:
    """The best methods of each column of ``summary.table``: a row per column, with the methods in 1st, 2nd, ...

    References and bounds have no place, and solvers of the Fisher itself none by error. A column without values has no
    row.
    """
    rows = []
    for name, column in zip(medians.columns, chosen, strict=True):
        better, rivals = column.better, medians.loc[are_ranked(medians.index, column.metric), name]
        best = rivals.dropna().sort_values(ascending=better == "lower", kind="stable").head(places)
        ranked = {ordinal(k): f"{probe}  {digits(value)}" for k, (probe, value) in enumerate(best.items(), 1)}
        if ranked:
            rows.append({"metric": column.metric, "scope": column.scope, "better": better, **ranked})
    return pd.DataFrame(rows)


def ranked(medians: pd.DataFrame, chosen: Sequence[Column]) -> pd.DataFrame:
    """``summary.table`` by its first column, the best first; what is not ranked, such as references, comes last."""
    if not chosen or medians.empty:
        return medians
    first, better = medians.iloc[:, 0], chosen[0].better
    rivals = are_ranked(medians.index, chosen[0].metric)
    parts = [first[mask].sort_values(ascending=better == "lower", kind="stable") for mask in (rivals, ~rivals)]
    return medians.loc[[*parts[0].index, *parts[1].index]]


def best_first(table: pd.DataFrame, column: str, better: str, *metrics: str) -> pd.DataFrame:
    """A table with the column ``probe`` by another column, what is not ranked by ``metrics``, such as references, last.

    A column without a direction is ordered as if higher were better.
    """
    ordered = table.sort_values(column, ascending=better == "lower", kind="stable")
    are_rivals = are_ranked(ordered["probe"], *metrics)
    return pd.concat([ordered[are_rivals], ordered[~are_rivals]])


def with_ranges(
    medians: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame, noisy: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The columns of ``summary.table`` that have values, each with a range followed by it as text."""
    columns: dict[str, pd.Series] = {}
    for name in medians.dropna(axis=1, how="all"):
        columns[str(name)] = medians[name]
        if low[name].notna().any():
            ends = (low[name].reindex(medians.index), high[name].reindex(medians.index))
            columns[f"{name} range"] = range_texts(*ends, None if noisy is None else noisy[name].reindex(medians.index))
    return pd.DataFrame(columns, index=medians.index)


def range_texts(low: pd.Series, high: pd.Series, noisy: pd.Series | None = None) -> pd.Series:
    """``0.961 to 0.975`` of each pair, with the word ``noisy`` where a clock was; empty for NaN."""
    marks = [NOISY * bool(mark) for mark in (noisy if noisy is not None else [False] * len(low))]
    ends = zip(low, high, marks, strict=True)
    texts = [f"{digits(a)} to {digits(b)}{mark}" if a == a else "" for a, b, mark in ends]
    return pd.Series(texts, low.index)


def with_unit(table: pd.DataFrame, columns: Iterable[str], unit: str) -> pd.DataFrame:
    """Some columns of a table in a unit with the one prefix that fits most of their values, which their names tell."""
    names = [name for name in columns if name in table]
    values = table[names].to_numpy("float64")
    sizes = values[np.isfinite(values) & (values > 0)]
    place = math.floor(math.log10(np.median(sizes)) / 3) if sizes.size else 0
    place = min(max(place, min(PREFIXES)), max(PREFIXES))
    scaled = table.assign(**{name: table[name] / 1000.0**place for name in names})
    return scaled.rename(columns={name: f"{name} [{PREFIXES[place]}{unit}]" for name in names})


def ordinal(k: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``."""
    return f"{k}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(k, 'th') }"


def tradeoff(frame: pd.DataFrame, problem: str, x: Quantity, y: Quantity) -> pd.DataFrame:
    """One row per probe: x and y with their ranges, noise, status, and whether the probe is on the Pareto front.

    A method is on the front if no other method is at least as good in both and better in one; references and bounds
    are not, nor are solvers of the Fisher itself against an error. A metric without a direction has no front.
    """
    rows = of_problem(frame, problem)
    table = pd.concat([values(rows, x).add_prefix("x "), values(rows, y).add_prefix("y ")], axis=1)
    table = table.rename(columns={"x median": "x", "y median": "y"})
    table["noisy"] = noisy(rows, x) | noisy(rows, y)
    table["status"] = statuses(frame, problem).reindex(table.index)
    signs = [{"lower": 1, "higher": -1, "": math.nan}[quantity.better] for quantity in (x, y)]
    ranked = are_ranked(table.index, x.metric, y.metric)
    table["front"] = pareto((table["x"] * signs[0]).where(ranked), table["y"] * signs[1])
    return table.rename_axis("probe").reset_index()


def headed(table: pd.DataFrame, x: Quantity, y: Quantity) -> pd.DataFrame:
    """``tradeoff`` with the names of its quantities in place of x and y."""
    names = {axis: quantity.heading for axis, quantity in (("x", x), ("y", y))}
    ends = {f"{axis}{end}": f"{name}{end}" for axis, name in names.items() for end in ("", " min", " max")}
    return table.rename(columns=ends)


def pareto(x: pd.Series, y: pd.Series) -> pd.Series:
    """Which points no other point dominates, lower being better; points that are not finite never are."""
    a, b = x.to_numpy("float64"), y.to_numpy("float64")
    finite = np.isfinite(a) & np.isfinite(b)
    as_good = (a[None] <= a[:, None]) & (b[None] <= b[:, None]) & finite
    better = (a[None] < a[:, None]) | (b[None] < b[:, None])
    return pd.Series(finite & ~(as_good & better).any(axis=1), index=x.index)


def layers(frame: pd.DataFrame, problem: str, metric: str) -> pd.DataFrame:
    """Medians over seeds of one metric: one row per probe, one column per scope, ``WHOLES`` first.

    The values of a curve over dampings belong to no layer and are left out.
    """
    rows = of_problem(frame, problem)
    of_curves = texts(rows, "scope").str.startswith(CURVE)
    chosen = rows[(rows["metric"] == metric) & (rows["status"] == Status.OK) & ~of_curves]
    table = chosen.pivot_table("value", labels(chosen, "probe"), texts(chosen, "scope"), "median", sort=False)
    scopes = [scope for scope in WHOLES if scope in table] + [scope for scope in table if scope not in WHOLES]
    probes = labels(rows, "probe").unique()
    return table.reindex(index=probes, columns=scopes).astype("float64").rename_axis(index="probe", columns=None)


def arguments(text: str) -> dict[str, Any]:
    """``key=value,...`` with numbers as numbers."""
    return {key: _number(value) for key, value in arguments_of(text).items()}


def settings(frame: pd.DataFrame, record: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The hyperparameters of each cell as ``probe.key``, ``problem.key`` and ``epoch``.

    ``record``: the content of ``run.json``. None means that only values other than the defaults are known.
    """
    columns = ["cell_id", "problem_args", "probe_args", "epoch"]
    settings: dict[str, dict[str, Any]] = {}
    recorded = {cell["id"]: cell.get("hyperparameters", {}) for cell in (record or {}).get("cells", [])}
    cells = frame[columns].drop_duplicates("cell_id")
    for cell in cells.assign(**{name: texts(cells, name) for name in columns[:3]}).to_dict("records"):
        flat: dict[str, Any] = {}
        for kind in ("problem", "probe"):
            of_kind = recorded.get(cell["cell_id"], {}).get(kind, {}) | arguments(cell[f"{kind}_args"])
            flat |= {f"{kind}.{key}": value for key, value in of_kind.items()}
        flat["epoch"] = flat.pop("problem.epochs", None if pd.isna(cell["epoch"]) else int(cell["epoch"]))
        settings[cell["cell_id"]] = flat
    return settings


def parameters(frame: pd.DataFrame, settings: Settings) -> list[str]:
    """The numeric hyperparameters with two values or more among the cells of one probe on one problem, by name.

    Errors can be drawn against these hyperparameters.
    """
    cells = frame[["cell_id", "probe", "problem"]].drop_duplicates()
    seen: dict[tuple[str, str, str], set[float]] = {}
    for cell, probe, problem in cells.itertuples(index=False):
        for key, value in settings.get(cell, {}).items():
            if _is_size(value):
                seen.setdefault((key, probe, problem), set()).add(value)
    varied = dict.fromkeys(key for (key, *_), sizes in seen.items() if len(sizes) > 1)
    return sorted(varied, key=lambda key: key != "epoch")


def sweep(frame: pd.DataFrame, settings: Settings, parameter: str, quantity: Quantity) -> pd.DataFrame:
    """A quantity against a numeric hyperparameter: probe, problem, the parameter's value, median, min and max.

    The labels ``probe`` and ``problem`` leave the parameter out, so that cells that differ only in it are one line.
    """
    rows = frame[(frame["metric"] == quantity.metric) & (frame["scope"] == quantity.scope)]
    rows = rows[rows["status"] == Status.OK]
    sizes = {cell: size for cell, values in settings.items() if _is_size(size := values.get(parameter))}
    at = texts(rows, "cell_id").map(sizes).astype("float64")
    rows, at = rows[at.notna()], at[at.notna()]
    kind, _, key = parameter.rpartition(".")
    without = {"probe": key if kind == "probe" else "", "problem": "epochs" if parameter == "epoch" else key}
    by = {name: _without(rows, name, dropped) for name, dropped in without.items()}
    keys = [by["probe"].rename("probe"), by["problem"].rename("problem"), at.rename(parameter)]
    return _spread(rows, quantity, keys).sort_index().reset_index()


def moving(frame: pd.DataFrame, settings: Settings, parameter: str, candidates: Sequence[Quantity]) -> Quantity:
    """The first of some quantities that differs along a line of ``sweep``; the first of all if none does."""
    for quantity in candidates:
        table = sweep(frame, settings, parameter, quantity)
        lines = table.groupby(["probe", "problem"])["median"]
        if ((lines.max() - lines.min()) > FLAT * lines.max().abs()).any():
            return quantity
    return candidates[0]


def phases(frame: pd.DataFrame, problem: str, metric: str) -> pd.DataFrame:
    """The cost of a step: one row per probe, with columns ``gradient`` (plain SGD), the phases, ``step`` and ``x SGD``.

    FLOPs and seconds of ``step`` are the sum of the four columns before it; a memory peak is no sum. If seeds or
    samples differ, ``x SGD range`` is their range as text.
    """
    rows = of_problem(frame, problem)
    table = pd.DataFrame({phase: values(rows, Quantity(metric, phase))["median"] for phase in PHASES})
    of_step = Quantity(f"{metric.split('.')[0]}.ratio", "step")
    ratios, are_noisy = values(rows, of_step), noisy(rows, of_step)
    ratio = ratios["median"]
    of_sgd = values(rows, Quantity(metric, "sgd"))["median"]
    table.insert(0, GRADIENT, of_sgd.fillna(table["step"] / ratio))
    table["x SGD"] = ratio
    table["noisy"] = are_noisy
    if (differ := ratios["min"] < ratios["max"]).any():
        table["x SGD range"] = range_texts(ratios["min"].where(differ), ratios["max"], are_noisy)
    table["status"] = statuses(frame, problem).reindex(table.index)
    return table.rename_axis("probe").reset_index()


def published(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Counted FLOPs beside the published complexity, for probes that have one: probe, phase, both and their ratio.

    Published complexities leave out the backward passes; the counted FLOPs include them.
    """
    rows = of_problem(frame, problem)
    parts = []
    for phase in PHASES[:-1]:
        both = {name: values(rows, Quantity(f"flops.{key}", phase))["median"] for name, key in _FLOPS.items()}
        parts.append(pd.DataFrame(both).assign(phase=phase).rename_axis("probe"))
    table = pd.concat(parts).reset_index()
    table = table[table["published"] > 0]
    table["counted / published"] = table["counted"] / table["published"]
    return table[["probe", "phase", "counted", "published", "counted / published"]].reset_index(drop=True)


def curves(frame: pd.DataFrame, problem: str, metric: str) -> pd.DataFrame:
    """A metric that training writes per epoch: probe, epoch, median, min, max over seeds, and median seconds.

    ``probe`` is the label of ``summary.contenders``, which differs between settings of a training.
    """
    rows = of_problem(frame, problem)
    rows = rows.assign(probe=contenders(rows))[(rows["status"] == Status.OK) & rows["epoch"].notna()]
    groups = {name: _by_epoch(rows[rows["metric"] == name]) for name in (metric, "train.seconds")}
    table = groups[metric].agg(["median", "min", "max"])
    seconds = groups["train.seconds"].median().reindex(table.index)
    return table.assign(seconds=seconds).sort_index(level="epoch").reset_index()


def trained(frame: pd.DataFrame) -> list[str]:
    """The metrics that training writes per epoch."""
    rows = frame[frame["epoch"].notna() & texts(frame, "metric").str.startswith(("train.", "test."))]
    return [metric for metric in dict.fromkeys(rows["metric"]) if not metric.endswith("_to_target")]


def final(frame: pd.DataFrame, problem: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Medians over seeds per probe: the last value of each metric, epochs and seconds to the suite's target, status.

    With seeds each is followed by its range, as in ``with_ranges``. A training that reached its target has ended, so
    that its last value is the one of its own last epoch.
    """
    cells = of_problem(frame, problem)
    cells = cells.assign(probe=contenders(cells))
    columns = [*metrics, "train.epochs_to_target", "train.seconds_to_target"]
    rows = cells[cells["metric"].isin(columns) & (cells["status"] == Status.OK)]
    rows = rows.assign(metric=texts(rows, "metric"))
    last = rows.sort_values("epoch", kind="stable").drop_duplicates(["cell_id", "metric"], keep="last")
    parts = {how: last.pivot_table("value", "probe", "metric", how) for how in ("median", "min", "max", "count")}
    names = [name for name in columns if name in parts["median"]]
    median, low, high, count = (
        part.reindex(index=cells["probe"].unique(), columns=names).astype("float64") for part in parts.values()
    )
    table = with_ranges(median, low.where(count > 1), high.where(count > 1))
    table["status"] = statuses(frame, problem).reindex(table.index)
    return table.rename_axis(index="probe", columns=None).reset_index()


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell in the order of the rows: how the cell ended, why, and its settings."""
    columns = ["cell_id", "suite", "seed", "device", "dtype", "threads", "parameters", "started_at"]
    # The first row of a cell that tells how it ended: one without a metric, else a value, else a metric that failed.
    ids, ok = frame["cell_id"].reset_index(drop=True), (frame["status"] == Status.OK).to_numpy()
    first = frame.iloc[
        pd.concat([ids[is_cell_ending(frame).to_numpy()], ids[ok], ids]).drop_duplicates().index.sort_values()
    ]
    table = first[[column for column in columns if column in first]].assign(cell_id=texts(first, "cell_id"))
    table.insert(1, "probe", labels(first, "probe"))
    table.insert(2, "problem", labels(first, "problem"))
    table.insert(3, "status", texts(first, "status"))
    table["reason"] = texts(first, "reason").where(first["status"] != Status.OK, "")
    failed = frame[(frame["status"] != Status.OK) & ~is_cell_ending(frame)]
    table["failed metrics"] = table["cell_id"].map(texts(failed, "cell_id").value_counts()).fillna(0).astype("int64")
    return table.reset_index(drop=True)


def differing(table: pd.DataFrame, keep: Iterable[str] = ()) -> pd.DataFrame:
    """The columns that differ from row to row, and the columns in ``keep``; a table of one row keeps all columns."""
    if len(table) < 2:
        return table
    names = {*keep, *(name for name in table if table[name].astype(str).nunique() > 1)}
    return table[[name for name in table if name in names]]


def _by_epoch(rows: pd.DataFrame) -> Any:
    """The values of some rows, grouped by probe and epoch."""
    return rows["value"].groupby([rows["probe"], rows["epoch"].astype("int64")], sort=False)


def _distinct(texts: pd.Series) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _without(rows: pd.DataFrame, kind: str, key: str) -> pd.Series:
    """The labels of the probes or problems with one argument left out."""
    arguments = texts(rows, f"{kind}_args").map(lambda text: _drop(text, key))
    return labels(rows.assign(**{f"{kind}_args": arguments}), kind)


def _drop(text: str, key: str) -> str:
    return ",".join(part for part in split_arguments(text) if part.partition("=")[0] != key)


def _is_size(value: Any) -> bool:
    """Whether a hyperparameter's value is a number, so that a curve can be drawn against it."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


_FLOPS = {"counted": "counted", "published": "model"}


def _distance(values: pd.Series) -> pd.Series:
    """Distances from 1; one that is float64's rounding is 0, because a negative one would take the log from an axis."""
    distances = 1 - values
    return distances.mask(distances.abs() < ROUNDING, 0.0)

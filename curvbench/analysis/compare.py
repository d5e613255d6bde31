"""Two sets of runs compared: verdicts on their measurements, and the reasons why some cannot be judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from curvbench.analysis import limits as rules
from curvbench.analysis.frames import is_cell_ending, labels, texts
from curvbench.analysis.limits import LIMITS, Limit
from curvbench.analysis.pairs import KEY, measurements, pairs
from curvbench.analysis.significance import FEWEST, SIGNIFICANT, Samples, compare_samples
from curvbench.analysis.summary import COLUMNS as SHOWN
from curvbench.analysis.summary import digits
from curvbench.analysis.views import meaning
from curvbench.spec import Status

CELL = ["probe", "problem", "seed"]
COLUMNS = ["suite", *KEY, "a", "b", "unit", "better", "change", "low", "high", "p", "verdict", "reason"]
NOT_JUDGED = "not judged"
SAME = ("equal", "within")
# Columns that decide numbers, and the families of metrics that cannot be compared if the column differs.
DECISIVE: Mapping[str, tuple[str, ...]] = {
    "dtype": ("",),
    "parameters": ("",),
    "device": ("flops", "memory", "time", "train.seconds", "machine"),
    "device_name": ("time", "train.seconds", "machine"),
    "threads": ("time", "train.seconds", "machine"),
    "torch_version": ("flops", "memory"),
    "flop_model": ("flops",),
}


def differences(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The columns of ``DECISIVE`` in which two sets of rows differ, with the values of each side.

    A side with both choices of parameters differs from every other, because no median over both means anything.
    """
    sides = {name: (_facts(a, name), _facts(b, name)) for name in DECISIVE}
    mixed = {"parameters"} if len(sides["parameters"][0]) > 1 else set()
    return {n: (", ".join(x), ", ".join(y)) for n, (x, y) in sides.items() if x and y and (x != y or n in mixed)}


def by_suite(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each suite, in their order."""
    return {str(suite): rows for suite, rows in frame.groupby("suite", sort=False)}


def described_differences(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """``differences`` as lines of text."""
    return [f"{name}: {x} in A, {y} in B" for name, (x, y) in differences(a, b).items()]


def compare(a: pd.DataFrame, b: pd.DataFrame, limits: Mapping[str, Limit] = LIMITS) -> pd.DataFrame:
    """One row per measurement of cells that both sides have, and one per cell that only one has, in ``COLUMNS``.

    ``change`` is b / a - 1. For sampled metrics it is the change of the medians of all samples, ``low`` and ``high``
    are the interval of the ratio, and ``p`` is the p-value. Verdicts are those of ``pairs``, ``within`` the limit, and
    ``not judged`` with a reason. A cell that only one side has is a row without a metric; the reason of ``only in A``
    says why B has no value.

    Raises:
        ValueError: a side is empty, or they share no cell.
    """
    for name, side in (("A", a), ("B", b)):
        if side.empty:
            raise ValueError(f"{name} has no rows: nothing was measured there, or the filters leave none")
    if not shares_cells(a, b):
        examples = [", ".join(list(dict.fromkeys(_cells(side)))[:3]) for side in (a, b)]
        raise ValueError(f"the two share no cell: A has {examples[0]}, ...; B has {examples[1]}, ...")
    parts = [by_suite(side) for side in (a, b)]
    suites = list(dict.fromkeys([*parts[0], *parts[1]]))
    if len(parts[0]) == len(parts[1]) == 1:
        tables = [_judged(a, b, limits).assign(suite=", ".join(suites))]
    else:
        none = a.head(0)
        x, y = parts
        tables = [_judged(x.get(s, none), y.get(s, none), limits).assign(suite=s) for s in suites]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def shares_cells(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether any probe on any problem with any seed is in both."""
    return bool(set(_cells(a)) & set(_cells(b)))


def pivot(table: pd.DataFrame, quantities: Sequence[tuple[str, str]] = ()) -> pd.DataFrame:
    """Changes as text: one row per cell in which something differs, one column ``metric (scope)`` for each quantity.

    Without ``quantities`` these are the columns of a run's summary. ``=`` means equal, ``~`` within the limit.
    """
    wanted = list(quantities) or [(column.metric, column.scope) for column in SHOWN]
    rows = table[table["metric"] != ""]
    changes = list(map(_change_text, rows.to_dict("records")))
    texts = rows[CELL].assign(column=rows["metric"] + " (" + rows["scope"] + ")", text=changes)
    wide = texts.pivot_table("text", CELL, "column", "last", sort=False)
    columns = [name for name in (f"{metric} ({scope})" for metric, scope in wanted) if name in wide]
    wide = wide.reindex(columns=columns).fillna("")
    return wide[~wide.isin(["", "=", "~"]).all(axis=1)].reset_index().rename_axis(columns=None)


def described(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``compare`` as people read them: verdict, cell, metric, both values, change and reason, as text."""
    texts = pd.DataFrame({"verdict": table["verdict"], "probe": table["probe"], "problem": table["problem"]})
    texts["seed"] = table["seed"].astype(str)
    scoped = table["metric"] + " (" + table["scope"] + ")"
    texts["metric"] = scoped.where(table["metric"] != "", "whole cell")
    for side in ("a", "b"):
        texts[side.upper()] = [_value(*pair) for pair in zip(table[side], table["unit"], strict=True)]
    texts["change"] = [_size(row) + _chance(row) for row in table.to_dict("records")]
    texts["reason"] = table["reason"]
    suites = table["suite"].nunique() > 1
    return pd.concat([table[["suite"]], texts], axis=1) if suites else texts


def _change_text(row: Mapping[Any, Any]) -> str:
    if row["verdict"] in SAME:
        return "=" if row["verdict"] == "equal" else "~"
    return f"{_size(row)} {row['verdict']}{_chance(row)}"


def _size(row: Mapping[Any, Any]) -> str:
    """``+1.00%``, ``x 12.3``, and from zero both values."""
    change = row["change"]
    if np.isnan(change):
        return "" if np.isnan(row["a"] + row["b"]) else f"{digits(row['a'])} to {digits(row['b'])}"
    if 0 < abs(change) < 1e-4:
        return f"{change:+.1e}"
    return f"{change:+.2%}" if abs(change) < 10 else f"x {digits(1 + change)}"


def _chance(row: Mapping[Any, Any]) -> str:
    """The interval of the ratio and the p-value of a sampled change; empty for other changes."""
    return "" if np.isnan(row["p"]) else f" (x {row['low']:.3g} to {row['high']:.3g}, p = {row['p']:.2g})"


def _value(value: float, unit: str) -> str:
    """Counts in full, so that a change of a thousandth is visible; other values with six digits."""
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if unit in ("FLOP", "B") else f"{value:.6g}"


def _judged(a: pd.DataFrame, b: pd.DataFrame, limits: Mapping[str, Limit]) -> pd.DataFrame:
    table, whole_cells = pairs(a, b), _one_sided(a, b)
    alone = pd.MultiIndex.from_frame(whole_cells[CELL])
    table = table[~pd.MultiIndex.from_frame(table[CELL]).isin(alone)].reset_index(drop=True)
    sides = [measurements(side) for side in (a, b)]
    methods = pd.concat([texts(side, "method") for side in sides]).groupby(level=KEY).first()
    table["method"] = methods.reindex(pd.MultiIndex.from_frame(table[KEY])).fillna("").to_numpy()
    table = table.join(rules.of_rows(table, limits)).assign(low=np.nan, high=np.nan, p=np.nan, reason="")
    table["unit"] = [meaning(metric).unit for metric in table["metric"]]
    table["better"] = [meaning(metric).better for metric in table["metric"]]
    _judge_values(table)
    _judge_samples(table, *sides)
    _set_aside(table, a, b)
    return pd.concat([table, whole_cells], ignore_index=True) if len(whole_cells) else table


def _judge_values(table: pd.DataFrame) -> None:
    distance = (table["b"] - table["a"]).abs()
    is_small = distance <= np.maximum(table["relative"] * table["a"].abs(), table["absolute"])
    table.loc[is_small & (table["verdict"] != "equal"), "verdict"] = "within"


def _judge_samples(table: pd.DataFrame, a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Judge sampled metrics, by their samples alone."""
    both = table.index[table["sampled"].astype(bool) & ~table["verdict"].str.startswith("only in")]
    if not len(both):
        return
    samples = [_by_key(side, set(table.loc[both, "metric"])) for side in (a, b)]
    for place in both:
        row = table.loc[place]
        runs = [side.get(tuple(row[KEY]), {}) for side in samples]
        verdict, reason = NOT_JUDGED, _unfit(*runs)
        if not reason:
            ratio = compare_samples(*(list(side.values()) for side in runs))
            table.loc[place, ["change", "low", "high", "p"]] = [ratio.ratio - 1, ratio.low, ratio.high, ratio.p]
            verdict = _of_ratio(ratio.low, ratio.high, ratio.p, row["relative"], row["better"])
        table.loc[place, ["verdict", "reason"]] = [verdict, reason]


def _by_key(rows: pd.DataFrame, metrics: set[str]) -> dict[tuple[object, ...], dict[pd.Timestamp, Samples]]:
    """Samples by measurement and by the start of its cell."""
    by_key: dict[tuple[object, ...], dict[pd.Timestamp, Samples]] = {}
    rows = rows[rows["metric"].isin(metrics)]
    for key, start, samples in zip(rows.index, rows["started_at"], rows["samples"], strict=True):
        if samples is not None and len(samples):
            by_key.setdefault(key, {})[start] = samples
    return by_key


def _unfit(a: Mapping[pd.Timestamp, Samples], b: Mapping[pd.Timestamp, Samples]) -> str:
    """The reason why samples cannot be judged; empty if they can."""
    counts = [sum(map(len, side.values())) for side in (a, b)]
    if min(counts) < FEWEST:
        return f"{counts[0]} and {counts[1]} samples: at least {FEWEST} per side are needed"
    if min(a) > max(b) or min(b) > max(a):
        return "not taken in turn: one side was measured wholly before the other"
    return ""


def _of_ratio(low: float, high: float, p: float, limit: float, better: str) -> str:
    if not p < SIGNIFICANT or (low <= 1 + limit and high >= 1 - limit):
        return "within"
    grew = low > 1 + limit
    return {"lower": "worse" if grew else "better", "higher": "better" if grew else "worse"}.get(better, "changed")


def _set_aside(table: pd.DataFrame, a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Mark metrics that one side lacks, and metrics that different machines or versions make incomparable."""
    for name, missing in (("only in A", b), ("only in B", a)):
        is_lacking = (table["verdict"] == name) & ~table["metric"].isin(missing["metric"])
        side = "B" if name == "only in A" else "A"
        table.loc[is_lacking, ["verdict", "reason"]] = [NOT_JUDGED, f"{side} has no such metric in any cell"]
    one_sided = table["verdict"].isin(["only in A", "only in B"])
    table.loc[one_sided, "reason"] = "no value " + table["verdict"].map({"only in A": "in B", "only in B": "in A"})
    for column, (x, y) in differences(a, b).items():
        incomparable = table["metric"].str.startswith(DECISIVE[column]) & (table["verdict"] != "equal")
        table.loc[incomparable, ["verdict", "reason"]] = [NOT_JUDGED, f"{column}: {x} against {y}"]


def _one_sided(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The cells with values on one side only, and the cells that failed on both sides in different ways."""
    ends = pd.DataFrame({"a": _ends(a), "b": _ends(b)}).fillna("not run")
    has_value = ends.map(lambda end: end == str(Status.OK))
    verdicts = {
        "only in A": has_value["a"] & ~has_value["b"],
        "only in B": has_value["b"] & ~has_value["a"],
    }
    both_failed = ~has_value["a"] & ~has_value["b"] & (ends["a"].map(_status) != ends["b"].map(_status))
    ends["verdict"] = np.select([*verdicts.values(), both_failed], [*verdicts, "changed"], default="")
    ends["reason"] = ends["b"].where(ends["verdict"] == "only in A", ends["a"])
    ends["reason"] = ends["reason"].where(ends["verdict"] != "changed", ends["a"] + "; then " + ends["b"])
    rows = ends[ends["verdict"] != ""][["verdict", "reason"]].reset_index()
    rows[["metric", "scope", "unit", "better"]] = ""
    rows[["a", "b", "change", "low", "high", "p"]] = np.nan
    return rows.assign(epoch=-1)


def _status(end: str) -> str:
    return end.partition(":")[0]


def _ends(frame: pd.DataFrame) -> pd.Series:
    """How each cell ended, by ``CELL``: ``ok``, or status and reason. A cell is ok if any run has a value."""
    rows = frame.assign(probe=labels(frame, "probe"), problem=labels(frame, "problem"))
    endings = rows[is_cell_ending(rows)]
    failed = (texts(endings, "status") + ": " + texts(endings, "reason")).str.removesuffix(": ")
    succeeded = rows[(rows["status"] == Status.OK) & ~rows["cell_id"].isin(endings["cell_id"])]
    index = pd.MultiIndex.from_frame(pd.concat([succeeded[CELL], endings[CELL]]))
    ends = pd.Series([str(Status.OK)] * len(succeeded) + failed.tolist(), index=index, dtype=object)
    return ends[~ends.index.duplicated()]


def _facts(frame: pd.DataFrame, column: str) -> list[str]:
    """The values of a column without empty ones; a local build of torch has its public version."""
    values = set(frame[column].dropna().astype(str)) if column in frame else set()
    return sorted({value.partition("+")[0] if column == "torch_version" else value for value in values} - {""})


def _cells(frame: pd.DataFrame) -> Iterable[str]:
    return labels(frame, "probe") + " on " + labels(frame, "problem") + ", seed " + frame["seed"].astype(str)

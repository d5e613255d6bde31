"""Two measurements of one cell: values that ought to be the same, and are not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pyarrow as pa

_KEY = ("metric", "scope", "epoch", "step")
_TIMED = ("time.", "train.seconds", "machine.")  # metrics with these prefixes differ from one measurement to the next


def differences(first: pa.Table, second: pa.Table) -> list[str]:
    """The values that differ between two measurements of a cell, in words; times may differ."""
    values, others = _values(first), _values(second)
    names = [name for name in values if name in others and not _same(values[name], others[name])]
    return [f"{' '.join(filter(None, name[:2]))} {values[name]:.9g} and {others[name]:.9g}" for name in names]


def _values(table: pa.Table) -> Mapping[tuple[str, ...], float]:
    return dict(_rows(table))


def _rows(table: pa.Table) -> Iterator[tuple[tuple[str, ...], float]]:
    for row in table.select([*_KEY, "value"]).to_pylist():
        if row["metric"] and row["value"] is not None and not row["metric"].startswith(_TIMED):
            yield tuple(row[name] for name in _KEY), row["value"]


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))

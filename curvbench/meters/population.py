"""Statistics of a batch A, held against the exact Fisher of a disjoint, larger batch B at the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from curvbench.meters.held import Frozen, Held, error_rows, floor_rows, quality_rows
from curvbench.spec import Row


def population_rows(frozen: Frozen, held: Held, damping: float) -> Iterator[Row]:
    """Error, the sampling error of the exact Fisher of A, and quality for B's gradient."""
    where = f"of {held.instance.samples} other samples"
    rows = [
        *error_rows("error.population", frozen, held, unbiased="error.unbiased"),
        *floor_rows("error.floor", held),
        *quality_rows("direction.population", frozen, held, damping),
    ]
    for row in rows:
        yield replace(row, method=", ".join(filter(None, [where, row.method])))

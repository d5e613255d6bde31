"""Stored runs with planted changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pandas as pd
from fake_measure import Fake, Toy
from frames import fisher_cell, raw, write_run

from curvbench import store
from curvbench.spec import Row

PROBES = (Fake(), Fake(damping=0.5), Fake("other"))
TIMES = (0.9e-3, 1.0e-3, 1.1e-3, 1.05e-3, 0.95e-3)
Change = Callable[[float], float]
# A regression of each kind: metric, scope, what happens to the value.
PLANTED: dict[str, tuple[str, str, Change]] = {
    "flops": ("flops.counted", "step", lambda v: v * 1.01),
    "memory": ("memory.peak", "statistics", lambda v: v + 4096),
    "error": ("error.relative", "network", lambda v: v * 1.001),
    "time": ("time.wall", "invert", lambda v: v * 1.3),
}
IMPROVED: dict[str, tuple[str, str, Change]] = {
    "flops": ("flops.counted", "step", lambda v: v * 0.99),
    "memory": ("memory.peak", "statistics", lambda v: v - 128),
    "error": ("error.relative", "network", lambda v: v * 0.999),
    "time": ("time.wall", "invert", lambda v: v * 0.7),
}


def cell(change: tuple[str, str, Change] | None = None, noise: float = 0.0) -> list[Row]:
    """The rows of a cell with five timings each, one of them changed."""
    rows = []
    for row in fisher_cell():
        samples = [row.value * t * 1e3 * (1 + noise) for t in TIMES] if row.metric.startswith("time.") else ()
        row = Row(row.metric, row.value, row.scope, samples, row.method)
        if change is not None and (row.metric, row.scope) == change[:2]:
            row = raw(row.metric, change[2](row.value), row.scope, samples=[change[2](s) for s in row.samples])
        rows.append(row)
    return rows


def run(
    results: Path, name: str, change: tuple[str, str, Change] | None = None, probes: Sequence[Fake] = PROBES
) -> pd.DataFrame:
    """A stored run of some probes, the first of them changed, as ``load`` gives it."""
    cells = [(probe, Toy(), cell(change if k == 0 else None)) for k, probe in enumerate(probes)]
    return store.load(write_run(results, name, cells))


def rounds(first: pd.DataFrame, count: int, offset: int) -> pd.DataFrame:
    """A run as if measured ``count`` times, two minutes from one to the next."""
    parts = [
        first.assign(started_at=first["started_at"] + timedelta(hours=k, minutes=offset), run_id=f"r{offset}-{k}")
        for k in range(count)
    ]
    return pd.concat(parts, ignore_index=True)

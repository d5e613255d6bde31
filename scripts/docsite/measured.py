"""What the shipped runs say of each method: the tables of the pages of results, and the rows of the baseline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from curvbench import store
from curvbench.analysis.frames import labels, of_problem
from curvbench.analysis.summary import digits
from docsite.markdown import code, table

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "data" / "baselines" / "regression"
NETWORK = "mlp[hidden=8,depth=2,samples=32]"  # of the baseline, which has every method
HEAD = ("network", "gap closed", "scaled error", "FLOPs", "memory", "from")
LEGEND = """\
`gap closed`: quality of the step, where the plain gradient has 0 and the exact Fisher of every layer has 1. `scaled
error`: distance of the layer blocks from the exact ones after the best scalar multiple, relative; 0 is exact. `FLOPs`
and `memory`: a step that refreshes everything, over a plain gradient step. `baseline`: `data/baselines`, a small MLP in
float64 that has every method, weights alone.
"""


class Measured(NamedTuple):
    """One row of a shipped table, with its texts as the table has them."""

    network: str
    label: str
    gap: str
    error: str
    flops: str
    memory: str
    source: str


def rows() -> dict[str, list[Measured]]:
    """The rows by the name of the method; of a network and a label that two pages show, the first page's."""
    results, today = (ROOT / "docs" / page for page in ("results.md", "today.md"))
    found = {
        (row.network, row.label): row
        for row in (*_baseline(), *_of_today(today.read_text()), *_of_results(results.read_text()))
    }
    by_method: dict[str, list[Measured]] = {}
    for row in found.values():
        by_method.setdefault(row.label.partition("[")[0], []).append(row)
    return by_method


def section(found: Sequence[Measured]) -> str:
    """The tables of one method: one for its defaults, and one for each variant."""
    parts = [LEGEND] if found else []
    for label, group in groupby(sorted(found, key=_place), key=lambda row: row.label):
        lines = [[code(row.network), *row[2:]] for row in group]
        parts += [f"{code(label)}:\n", table(HEAD, lines, numbers=5)]
    return "\n".join(parts)


def _place(row: Measured) -> tuple[str, str]:
    return row.label, row.network


def _of_results(page: str) -> Iterator[Measured]:
    """The rows of the tables that ``curvbench run`` printed: a label and ten numbers."""
    network = ""
    for line in page.splitlines():
        if title := re.match(r"(\S+\]), N = \d", line):
            network = title[1]
        label, *numbers = [word.removesuffix("*") for word in line.split()] or [""]
        if network and len(numbers) == 10 and all(re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", number) for number in numbers):
            gap, _, _, error, _, _, _, flops, memory, _ = numbers
            yield Measured(network, label, gap, error, flops, memory, "[results](../results.md)")


def _of_today(page: str) -> Iterator[Measured]:
    """The rows of the tables that ``make_docs.py today`` prints."""
    network = ""
    for line in page.splitlines():
        if title := re.fullmatch(r"## `(\S+)`", line):
            network = title[1]
        if network and (row := re.fullmatch(r"\| `(\S+)` \|(.*)\|", line)):
            gap, _, error, _, flops, memory = (cell.strip() for cell in row[2].split("|"))
            yield Measured(network, row[1], gap, error, flops, memory, "[today](../today.md)")


def _baseline() -> Iterator[Measured]:
    """The rows of the regression suite's small network, in float64 and of weights alone."""
    (file,) = BASELINE.glob("*.parquet")
    frame = of_problem(store.load(file), NETWORK)
    frame = frame.assign(label=labels(frame, "probe"))
    names = {
        "direction.gap_closed": "network",
        "error.scale_optimal": "layer blocks",
        "flops.ratio": "step",
        "memory.ratio": "step",
    }
    chosen = [frame[(frame["metric"] == metric) & (frame["scope"] == scope)] for metric, scope in names.items()]
    wide = pd.concat(chosen).pivot_table(index="label", columns="metric", values="value")[[*names]]
    for label, *values in wide.itertuples():
        gap, error, flops, memory = map(digits, values)
        yield Measured(NETWORK, str(label), gap, error, flops, memory, "baseline")

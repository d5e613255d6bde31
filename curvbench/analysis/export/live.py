"""A suite as benchmarks that asv runs: a file of benchmarks binds what these functions return.

``CURVBENCH_RESULTS`` names the results of a run of the suite; without it the suite is run by the curvbench at hand. A
cell that was not run is skipped, and a cell that has failed fails. Names, parameters and versions are those of exported
runs, so that both make one line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from curvbench import store
from curvbench.analysis.export import TRACKED, asv
from curvbench.analysis.views import Quantity
from curvbench.registry import load_suite

Values = dict[str, dict[tuple[str, str], float | None]]  # by quantity, then by problem and probe
Benchmark = Callable[[Values, str, str], float]


def axes(suite: Path) -> list[list[str]]:
    """The problems and the probes of a suite's default preset, as asv's ``params``."""
    preset = load_suite(suite)[1].presets["default"]
    paired = [[pair[k].label for pair in preset.pairs] for k in (0, 1)]
    return [
        list(dict.fromkeys([*(part.label for part in parts), *more]))
        for parts, more in zip((preset.problems, preset.probes), paired, strict=True)
    ]


def values(suite: Path) -> Values:
    """Every followed value of a run of the suite, for asv's ``setup_cache``."""
    given = os.environ.get("CURVBENCH_RESULTS")
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            command = [sys.executable, "-m", "curvbench", "run", str(suite), "--results", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = store.load(store.resolve(given or folder))
    rows = rows[rows["suite"] == suite.stem]
    if rows.empty:
        raise ValueError(f"{given} has no run of {suite.stem}")
    return {str(quantity): asv.values(rows, quantity) for quantity in TRACKED}


def setup(values: Values, problem: str, probe: str) -> None:
    """Skip a cell that was not run or is not supported."""
    if not any((problem, probe) in known for known in values.values()):
        raise NotImplementedError


def benchmarks(suite: Path, params: Sequence[Sequence[str]]) -> dict[str, Benchmark]:
    """The benchmarks by name: one for each followed quantity that repeats exactly."""
    followed = [quantity for quantity in TRACKED if not quantity.metric.startswith("time.")]
    return {asv.function_name(quantity): _benchmark(suite.stem, quantity, params) for quantity in followed}


def _benchmark(suite: str, quantity: Quantity, params: Sequence[Sequence[str]]) -> Benchmark:
    def follow(values: Values, problem: str, probe: str) -> float:
        value = values[str(quantity)].get((problem, probe))
        if value is None:
            raise ValueError(f"{probe} on {problem} has no {quantity}")
        return value

    follow.__name__ = follow.__qualname__ = asv.function_name(quantity)
    for name, content in asv.benchmark(suite, quantity, params).items():
        if name in ("pretty_name", "unit", "version"):
            setattr(follow, name, content)
    return follow

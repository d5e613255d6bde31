"""What ``suites/regression`` measures, as benchmarks: FLOPs, bytes and errors over revisions.

``CURVBENCH_RESULTS`` names the results of a run of it; without it the suite is run by the curvbench at hand. A cell
that is not there is skipped, one that has failed fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from curvbench import store
from curvbench.analysis.export import TRACKED, asv
from curvbench.analysis.views import Quantity
from curvbench.registry import load_suite

SUITE_FILE = Path(__file__).parents[1] / "regression.py"
PRESET = load_suite(SUITE_FILE)[1].presets["default"]
Values = dict[str, dict[tuple[str, str], float | None]]  # by quantity, then by problem and probe

param_names = asv.AXES
params = [[problem.label for problem in PRESET.problems], [probe.label for probe in PRESET.probes]]


def setup_cache() -> Values:
    """Every followed value of the run."""
    given = os.environ.get("CURVBENCH_RESULTS")
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            command = [sys.executable, "-m", "curvbench", "run", str(SUITE_FILE), "--results", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = store.load(store.resolve(given or folder))
    rows = rows[rows["suite"] == SUITE_FILE.stem]
    if rows.empty:
        raise ValueError(f"{given} has no run of {SUITE_FILE.stem}")
    return {str(quantity): asv.values(rows, quantity) for quantity in TRACKED}


setup_cache.timeout = 1200  # type: ignore[attr-defined]


def setup(values: Values, problem: str, probe: str) -> None:
    """A cell that was not run, or is not supported, is skipped."""
    if not any((problem, probe) in known for known in values.values()):
        raise NotImplementedError


def _benchmark(quantity: Quantity) -> Callable[[Values, str, str], float]:
    def follow(values: Values, problem: str, probe: str) -> float:
        value = values[str(quantity)].get((problem, probe))
        if value is None:
            raise ValueError(f"{probe} on {problem} has no {quantity}")
        return value

    follow.__name__ = follow.__qualname__ = asv.function_name(quantity)
    for name, content in asv.benchmark("regression", quantity, params).items():
        if name in ("pretty_name", "unit", "version"):
            setattr(follow, name, content)
    return follow


for _quantity in TRACKED:
    if not _quantity.metric.startswith("time."):
        globals()[asv.function_name(_quantity)] = _benchmark(_quantity)

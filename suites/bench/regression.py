"""What ``suites/regression`` measures, as benchmarks: FLOPs, bytes and errors over revisions."""

from __future__ import annotations

from pathlib import Path

from curvbench.analysis.export import asv, live

SUITE_FILE = Path(__file__).parents[1] / "regression.py"

param_names = asv.AXES
params = live.axes(SUITE_FILE)
setup = live.setup
globals().update(live.benchmarks(SUITE_FILE, params))


def setup_cache() -> live.Values:
    """Every followed value of a run: asv tells the caches of modules apart by where this function stands."""
    return live.values(SUITE_FILE)


setup_cache.timeout = 1200  # type: ignore[attr-defined]

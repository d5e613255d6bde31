"""What a suite measures, as benchmarks of asv: FLOPs, bytes and errors over revisions."""

from __future__ import annotations

from pathlib import Path

from curvbench.analysis.export import asv, live

SUITE_FILE = Path(__file__).parents[1] / "<suite>"

param_names = asv.AXES
params = live.axes(SUITE_FILE)
setup = live.setup
globals().update(live.benchmarks(SUITE_FILE, params))


def setup_cache() -> live.Values:
    """Every followed value of a run: asv tells the caches of modules apart by where this function stands."""
    return live.values(SUITE_FILE)


setup_cache.timeout = 3600  # type: ignore[attr-defined]

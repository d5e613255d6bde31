"""The benchmarks for asv, as asv would find them, on a run made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
from fake_measure import Fake, Toy
from frames import failed_cell, write_run
from regressions import PROBES, cell

from curvbench import store
from curvbench.analysis.export import asv
from curvbench.registry import load_file
from curvbench.spec import Status

BENCH = Path(__file__).parent.parent / "suites" / "bench"
RECORD = {"run_id": "r1", "environment": {"git_sha": "a" * 40}}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_file(BENCH / "regression.py")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cells = [(probe, Toy(), cell()) for probe in PROBES]
    cells += [(Fake("bad"), Toy(), failed_cell()), (Fake("not"), Toy(), failed_cell(Status.UNSUPPORTED, "no"))]
    run = write_run(tmp_path, "r1", cells, suite="regression")
    monkeypatch.setenv("CURVBENCH_RESULTS", str(tmp_path))
    return run


def tracked(bench: ModuleType) -> dict[str, object]:
    return {name: part for name, part in vars(bench).items() if name.startswith("track_")}


def test_axes_are_those_of_the_suite(bench: ModuleType) -> None:
    problems, probes = bench.params
    assert len(problems) >= 3 and {"kfac", "kfac[fisher_type=mc]", "unit"} <= set(probes)
    assert bench.param_names == ["problem", "probe"]


def test_live_and_exported_benchmarks_are_the_same(bench: ModuleType, results: Path) -> None:
    rows = store.load(results)
    stored = asv.results(rows, RECORD, asv.machine(RECORD, {}))["results"]
    known = asv.benchmarks(rows, {})
    values = bench.setup_cache()
    assert tracked(bench).keys() >= {"track_flops_counted_step", "track_error_relative_network"}
    for name, follow in tracked(bench).items():
        entry = known.get(f"regression.{name}")
        if entry is None:
            continue  # no such rows in this run
        assert (follow.version, follow.unit) == (entry["version"], entry["unit"])  # type: ignore[attr-defined]
        assert stored[f"regression.{name}"][0][0] == follow(values, "Toy", "Fake")  # type: ignore[operator]


def test_an_absent_cell_is_skipped_and_a_failed_one_fails(bench: ModuleType, results: Path) -> None:
    values = bench.setup_cache()
    bench.setup(values, "Toy", "Fake")
    for probe in ("Fake[does=not]", "Fake[does=strange]"):
        with pytest.raises(NotImplementedError):
            bench.setup(values, "Toy", probe)
    bench.setup(values, "Toy", "Fake[does=bad]")
    with pytest.raises(ValueError, match=r"Fake\[does=bad\] on Toy has no flops.counted"):
        bench.track_flops_counted_step(values, "Toy", "Fake[does=bad]")


def test_a_run_of_another_suite_is_refused(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "r1", [(Fake(), Toy(), cell())], suite="other")
    monkeypatch.setenv("CURVBENCH_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match="has no run of regression"):
        bench.setup_cache()


def test_the_hot_paths_run() -> None:
    hot = load_file(BENCH / "hot_paths.py")
    fisher, step = hot.Fisher(), hot.Step()
    fisher.setup()
    fisher.time_gram()
    step.setup(hot.PROBES[0])
    for name in ("time_statistics", "time_refresh", "time_precondition"):
        getattr(step, name)(hot.PROBES[0])
    assert math.isfinite(float(step.gradient.norm()))
    hot.Load().time_load()

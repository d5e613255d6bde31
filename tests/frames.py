"""Rows as ``curvbench.load`` gives them, and runs on disk, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from fake_measure import Fake, Toy

from curvbench import store
from curvbench.spec import Cell, Row, Status

START = datetime(2025, 1, 1, tzinfo=UTC)
LAYERS = ("fc1", "fc2")


def row(probe: str, metric: str, value: float | None, scope: str = "network", **other: Any) -> dict[str, Any]:
    common = {"suite": "s", "run_id": "r1", "problem": "toy", "problem_args": "", "probe_args": "", "seed": 0}
    common |= {"status": "ok", "reason": "", "epoch": 0, "method": "", "started_at": START}
    common |= {
        "device": "cpu",
        "dtype": "float64",
        "threads": 1,
        "parameters": "all",
        "probe": probe,
        "metric": metric,
        "value": value,
    }
    full = common | {"scope": scope} | other
    return {"cell_id": "/".join(str(full[k]) for k in ("probe", "probe_args", "problem_args", "seed"))} | full


def frame(*rows: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows)).astype({"epoch": "Int64", "value": "float64"})


def raw(metric: str, value: float, scope: str = "network", **other: Any) -> Row:
    """A row with a value that may be no number, as earlier versions stored them."""
    made = Row(metric, 0.0, scope, **other)
    object.__setattr__(made, "value", value)
    return made


def fisher_cell(error: float = 0.5, cost: float = 2.0) -> list[Row]:
    """The rows of a cell as ``measure`` writes them, in little."""
    rows = [raw("problem.samples", 8.0), raw("problem.parameters", 12.0), raw("error.off_block", 0.25)]
    for scope in ("network", "layer blocks", *LAYERS):
        rows += [raw("error.relative", error, scope), raw("error.scale_optimal", error / 2, scope)]
    rows += [raw("direction.cosine", 1 - error / 10), raw("direction.quality", 1 - error)]
    for phase, share in {"statistics": 0.5, "invert": 0.25, "precondition": 0.25, "step": 1.0}.items():
        work = cost if phase == "step" else (cost - 1) * share
        for family, unit in (("flops.counted", 1e6), ("time.wall", 1e-3), ("memory.peak", 1e3)):
            rows.append(raw(family, work * unit, phase, samples=[work * unit] if family == "time.wall" else ()))
        rows += [raw(f"{family}.ratio", work, phase) for family in ("flops", "time", "memory")]
    rows += [raw("time.wall", 1e-3, "sgd"), raw("flops.model", 1e5, "statistics")]
    return rows


def failed_cell(status: Status = Status.TIMEOUT, reason: str = "not finished in 4 s") -> list[Row]:
    return [Row(status=status, reason=reason, scope="")]


def write_run(
    results: Path, run_id: str, cells: Sequence[tuple[Fake, Toy, Sequence[Row]]], suite: str = "s", planned: int = 0
) -> Path:
    """A run's folder with fragments and ``run.json``; ``planned`` cells more are named in it and have no rows."""
    folder = results / suite / run_id
    (folder / "cells").mkdir(parents=True)
    (folder / "logs").mkdir()
    environment = {"git_sha": "abc", "git_dirty": False, "torch_version": "2.13", "device_name": "a cpu"}
    known = []
    for k, (probe, problem, rows) in enumerate(cells):
        cell = Cell(suite, problem, probe, 0, dtype="float64")
        context = store.Context(run_id, f"c{k}", START.replace(minute=k), environment)
        store.write_cell(folder / "cells", store.rows_to_table(cell, rows, context))
        hyperparameters = {"problem": problem.hyperparameters, "probe": probe.hyperparameters}
        known.append({"id": f"c{k}", "hyperparameters": hyperparameters})
    known += [{"id": f"planned {k}"} for k in range(planned)]
    record = {"run_id": run_id, "suite": suite, "suite_file": f"suites/{suite}.py", "cells": known}
    command = {"command": f"curvbench run suites/{suite}"}
    store.write_run(folder, record | {"commands": [command], "environment": environment})
    return folder

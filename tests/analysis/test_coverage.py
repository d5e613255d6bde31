from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from curvbench.analysis import coverage


def row(probe: str, problem: str, value: float | None = 0.5, **other: Any) -> dict[str, Any]:
    common = {
        "problem": "layers",
        "problem_args": problem,
        "probe": probe,
        "probe_args": "",
        "seed": 0,
        "scope": "network",
    }
    common |= {"metric": "error.relative", "status": "ok", "reason": "", "cell_id": f"{probe}-{problem}"}
    return common | {"value": value} | other


def fact(metric: str, problem: str, value: float) -> dict[str, Any]:
    return row("kfac", problem, value, metric=metric)


def refused(probe: str, problem: str, status: str, reason: str) -> dict[str, Any]:
    return row(probe, problem, None, metric="", scope="", status=status, reason=reason)


FRAME = pd.DataFrame(
    [
        row("kfac", "network=conv1d"),
        row("kfac", "network=conv1d", math.nan, metric="health.condition"),
        row("kfac", "network=conv1d", None, metric="error.spectral", status="unsupported", reason="no blocks"),
        row("kfac", ""),
        row("kfac", "", math.nan, metric="health.condition"),
        fact("coverage.trace", "", 0.75),
        fact("coverage.parameters", "", 0.9),
        fact("problem.parameters", "", 100.0),
        refused("eva", "", "unsupported", "too many classes"),
        refused("eva", "network=conv1d", "timeout", "too slow"),
        row("diag", "", math.nan),
        row("diag", "network=conv1d", math.inf),
        row("full", "", 0.0),
        row("full", "", 0.0, seed=1, cell_id="second"),
        row("unit", "", 0.0),
        row("unit", "", 1.0, seed=1, cell_id="third", metric="error.cosine"),
        refused("mbf", "", "skipped", "no data"),
        {**refused("mbf", "", "error", "broken"), "seed": 1, "cell_id": "fourth"},
    ]
)


@pytest.mark.parametrize(
    ("probe", "problem", "outcome"),
    [
        ("kfac", "layers", "exact"),
        ("kfac", "layers[network=conv1d]", "unsupported"),  # an ok row beside it hides nothing
        ("eva", "layers", "unsupported"),
        ("eva", "layers[network=conv1d]", "failed"),
        ("diag", "layers", "failed"),  # measured, but no number
        ("diag", "layers[network=conv1d]", "failed"),
        ("full", "layers", "exact"),
        ("unit", "layers", "failed"),  # one of two seeds has no error
        ("mbf", "layers", "failed"),
        ("full", "layers[network=conv1d]", None),
    ],
)
def test_outcomes(probe: str, problem: str, outcome: str | None) -> None:
    assert coverage.matrix(FRAME).loc[probe, problem] == outcome


def test_order_is_that_of_the_rows() -> None:
    table = coverage.matrix(FRAME)
    assert list(table.index) == ["kfac", "eva", "diag", "full", "unit", "mbf"]
    assert list(table.columns) == ["layers[network=conv1d]", "layers"]


def test_every_cell_that_did_not_succeed_has_its_reason() -> None:
    assert coverage.reasons(FRAME) == [
        "kfac on layers[network=conv1d], seed 0: unsupported: error.spectral: no blocks",
        "eva on layers, seed 0: unsupported: too many classes",
        "eva on layers[network=conv1d], seed 0: timeout: too slow",
        "mbf on layers, seed 0: skipped: no data",
        "mbf on layers, seed 1: error: broken",
    ]


def test_shares_are_those_of_the_problem() -> None:
    table = coverage.shares(FRAME)
    assert list(table.loc["layers"]) == [100.0, 0.9, 0.75]
    assert table.loc["layers[network=conv1d]"].isna().all()

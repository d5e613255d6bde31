from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_measure import Fake
from regressions import IMPROVED, PLANTED, PROBES, rounds, run

from curvbench.analysis.check import Gate, counts, refuse_incomparable
from curvbench.analysis.compare import compare


@pytest.fixture
def base(tmp_path: Path) -> pd.DataFrame:
    return run(tmp_path / "base", "r1")


def gate(base: pd.DataFrame, other: pd.DataFrame, any_change: bool = False) -> Gate:
    return Gate(compare(base, other), any_change)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_regression_fails(kind: str, base: pd.DataFrame, tmp_path: Path) -> None:
    other = run(tmp_path, "r2", PLANTED[kind])
    found = gate(rounds(base, 2, 0), rounds(other, 2, 5))
    assert not found.passed
    assert found.failing[["metric", "scope"]].to_numpy().tolist() == [list(PLANTED[kind][:2])]


@pytest.mark.parametrize("kind", IMPROVED)
def test_an_improvement_passes_and_is_named(kind: str, base: pd.DataFrame, tmp_path: Path) -> None:
    sides = rounds(base, 2, 0), rounds(run(tmp_path, "r2", IMPROVED[kind]), 2, 5)
    found = gate(*sides)
    assert found.passed
    assert found.improved[["metric", "scope"]].to_numpy().tolist() == [list(IMPROVED[kind][:2])]
    assert not gate(*sides, any_change=True).passed


def test_what_is_new_or_has_no_direction_passes_unless_any_change_fails(base: pd.DataFrame, tmp_path: Path) -> None:
    change = ("error.off_block", "network", lambda v: v * 2)
    other = run(tmp_path, "r2", change, [*PROBES, Fake("new")])
    found = gate(base, other)
    assert found.passed
    assert sorted(found.changed["verdict"]) == ["changed", "only in B"]
    assert len(gate(base, other, any_change=True).failing) == 2


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_corrected_formula_is_neither_better_nor_worse(factor: float, base: pd.DataFrame, tmp_path: Path) -> None:
    other = run(tmp_path, "r2", ("flops.model", "statistics", lambda v: v * factor))
    found = gate(base, other)
    assert found.passed
    assert found.changed["metric"].tolist() == ["flops.model"]
    assert not gate(base, other, any_change=True).passed


def test_a_lost_cell_fails_and_comes_first(base: pd.DataFrame, tmp_path: Path) -> None:
    found = gate(base, run(tmp_path, "r2", ("error.relative", "network", lambda v: v * 100), PROBES[:2])).failing
    assert found["metric"].tolist() == ["", "error.relative"]


def test_a_baseline_of_another_version_is_refused(base: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"the baseline has torch_version 2\.12\.1, the run has 2\.13"):
        refuse_incomparable(base.assign(torch_version="2.12.1"), base)
    refuse_incomparable(base.assign(device_name="another", threads=4), base)


def test_the_counts_say_what_was_not_judged(base: pd.DataFrame, tmp_path: Path) -> None:
    text = counts(compare(base, rounds(run(tmp_path, "r2"), 1, 30)))
    times = int(base["metric"].str.startswith("time.").sum())
    assert f"{times} not judged" in text
    assert f"not judged: {times} (not taken in turn" in text


def test_json_of_a_gate_is_json(base: pd.DataFrame, tmp_path: Path) -> None:
    found = gate(base, run(tmp_path, "r2", ("error.relative", "network", lambda v: float("inf")), PROBES[:2]))
    content = json.loads(found.as_json())
    assert content["passed"] is False
    assert [row["b"] for row in content["failing"]] == [None, "inf"]

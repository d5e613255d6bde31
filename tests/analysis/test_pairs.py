from __future__ import annotations

import math

import pytest
from frames import frame, row

from curvbench.analysis.history import history_table
from curvbench.analysis.pairs import is_change, largest_first, of_quantity, pairs
from curvbench.analysis.views import Quantity

ERROR = Quantity("error.relative", "network")
A = frame(
    row("same", "error.relative", 0.5),
    row("worse", "error.relative", 0.5),
    row("better", "direction.cosine", 0.5),
    row("neither", "error.trace_ratio", 0.5),
    row("gone", "error.relative", 0.5),
    row("zero", "error.relative", 0.0),
)
B = frame(
    row("same", "error.relative", 0.5),
    row("worse", "error.relative", 0.75),
    row("better", "direction.cosine", 0.75),
    row("neither", "error.trace_ratio", 0.75),
    row("new", "error.relative", 0.5),
    row("zero", "error.relative", 1.0),
    row("gone", "", None, "", status="timeout", reason="slow"),
)


def test_every_measurement_of_either_run_has_a_verdict() -> None:
    table = pairs(A, B).set_index("probe")
    assert table["verdict"].to_dict() == {
        "same": "equal",
        "worse": "worse",
        "better": "better",
        "neither": "changed",
        "gone": "only in A",
        "new": "only in B",
        "zero": "worse",
    }
    assert table.loc["worse", "change"] == pytest.approx(0.5)
    assert math.isnan(table.loc["zero", "change"])
    assert len(of_quantity(pairs(A, B), ERROR)) == 5


def test_the_largest_change_comes_first_and_what_is_in_one_run_only_last() -> None:
    order = largest_first(pairs(A, B))["probe"].tolist()
    assert order[0] == "zero", "from 0 to anything is no small change"
    assert set(order[1:4]) == {"worse", "better", "neither"}
    assert (order[4], set(order[5:])) == ("same", {"gone", "new"})


def test_the_same_probe_on_another_problem_is_no_pair() -> None:
    other = frame(row("same", "error.relative", 0.5, problem_args="samples=3"))
    assert set(pairs(A.head(1), other)["verdict"]) == {"only in A", "only in B"}


def test_a_step_in_a_history() -> None:
    values = {"r1": 1.0, "r2": 1.005, "r3": 1.5, "r4": 1.5}
    rows = frame(*(row("a", "error.relative", value, run_id=run) for run, value in values.items()))
    table = history_table(rows, "toy", ERROR)
    assert table["run"].tolist() == list(values)
    assert table["step"].tolist() == [False, False, True, False]
    assert table["change"].iloc[2] == pytest.approx(1.5 / 1.005 - 1)
    assert history_table(rows, "toy", ERROR, step=0.001)["step"].tolist() == [False, True, True, False]


def test_an_empty_history() -> None:
    assert history_table(frame(row("a", "error.relative", 1.0)).head(0), "toy", ERROR).empty


def test_what_rounding_moves_and_a_clock_does_not_count() -> None:
    values = {"health.asymmetry": (1e-17, 9e-17), "error.relative": (0.5, 0.51), "time.wall": (1.0, 1.09)}
    values |= {"flops.counted": (100.0, 101.0), "time.cpu": (1.0, 1.2), "error.cosine": (0.5, 0.5)}
    a, b = (frame(*(row("kfac", name, pair[side]) for name, pair in values.items())) for side in (0, 1))
    table = pairs(a, frame(*b.to_dict("records"), row("new", "error.relative", 1.0)))
    counted = table[is_change(table)]
    assert set(counted["metric"]) == {"error.relative", "flops.counted", "time.cpu"}
    assert "new" in set(counted["probe"])
    assert not is_change(table.assign(b=table["a"], verdict="equal")).any()

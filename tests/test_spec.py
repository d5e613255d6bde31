"""Contracts that hold because a value that breaks them cannot be made."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from fake_measure import Fake, Toy

from curvbench.spec import Cell, Preset, Row, Status

NO_NUMBERS = [(math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "infinite")]


@pytest.mark.parametrize(("value", "words"), NO_NUMBERS)
@pytest.mark.parametrize("metric", ["error.relative", "time.wall", "a.metric.of.ones.own"])
def test_a_row_that_is_no_number_is_an_error(value: float, words: str, metric: str) -> None:
    for row in (
        Row(metric, value),
        replace(Row(metric, 1.0), value=value),
        Row(metric, 1.0, samples=[1.0, value]),
        Row(metric, value, reason="x"),
    ):
        assert (row.status, row.value, list(row.samples)) == (Status.ERROR, None, [])
        assert row.reason == f"what was measured is {words}"


def test_other_rows_stay_as_they_are() -> None:
    assert Row("error.relative", 0.0).status is Status.OK
    assert Row("error.relative", None, status=Status.SKIPPED, reason="none").reason == "none"
    assert Row(status=Status.DIVERGED, reason="the loss is nan").status is Status.DIVERGED


@pytest.mark.parametrize("damping", [0.0, -1.0, math.nan, math.inf])
def test_a_damping_without_an_exact_step_is_refused(damping: float) -> None:
    for make in (
        lambda: Preset([Toy()], [Fake()], damping=damping),
        lambda: Cell("s", Toy(), Fake(), 0, damping=damping),
    ):
        with pytest.raises(ValueError, match="must be finite and above zero"):
            make()

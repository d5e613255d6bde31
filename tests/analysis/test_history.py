"""Since which run a measurement is worse."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest
from frames import frame, row

from curvbench.analysis.compare import compare
from curvbench.analysis.history import steps

METRIC = "flops.counted"


def measured(value: float) -> pd.DataFrame:
    return frame(row("kfac", METRIC, value, "step"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([100, 100, 101, 101], ("r2", "r1")),
        ([100, 101, 100, 101], ("r3", "r2")),
        ([100, 99, 101], ("r2", "r1")),
        ([101, 101], ("r0", "")),
    ],
    ids=["a step", "mended and broken again", "better before it became worse", "in every run"],
)
def test_the_first_run_since_which_it_is_worse(values: Sequence[float], expected: tuple[str, str]) -> None:
    runs = {f"r{k}": measured(value) for k, value in enumerate(values)}
    (found,) = steps(runs, compare(measured(100), measured(values[-1]))).to_dict("records")
    assert (found["metric"], found["run"], found["before"]) == (METRIC, *expected)


def test_runs_that_do_not_hold_it_name_none() -> None:
    worse = compare(measured(100), measured(101))
    assert steps({"r0": measured(100)}, worse).empty
    assert steps({}, worse).empty

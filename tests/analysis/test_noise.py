"""Ranges over the samples of a clock, and when a clock was noisy."""

from __future__ import annotations

import math

import numpy as np
from frames import frame, row

from curvbench.analysis import noise, summary, views
from curvbench.analysis.verdict.clocks import noisy_clocks
from curvbench.analysis.views import Quantity

STEP = Quantity("time.ratio", "step")


def timed(probe: str, *samples: float, seed: int = 0) -> dict[str, object]:
    return row(probe, "time.ratio", float(np.median(samples)), "step", samples=list(samples), seed=seed)


ROWS = noise.with_spread(frame(timed("a", 2.0, 2.1, 2.05, 2.0, 9.0), timed("b", 2, 3, 4, 5, 6), timed("c", 7.0)))


def test_a_clock_is_noisy_by_the_middle_half_of_its_samples() -> None:
    """One outlier does not make it noisy, and one sample says nothing."""
    assert not noise.is_noisy([2.0, 2.1, 2.05, 2.0, 9.0])
    assert noise.is_noisy([2, 3, 4, 5, 6])
    assert not noise.is_noisy([1.0, 1.0, 1.0 + noise.NOISY, 1.0 + noise.NOISY])
    assert noise.is_noisy([1.0, 1.0, 1.2, 1.2])
    assert views.noisy(ROWS, STEP).to_dict() == {"a": False, "b": True, "c": False}


def test_ranges_over_samples_and_seeds() -> None:
    assert views.values(ROWS, STEP).loc["a"].tolist() == [2.05, 2.0, 9.0]
    assert views.values(ROWS, STEP).loc["c"].tolist() == [7.0, 7.0, 7.0]
    more = noise.with_spread(frame(timed("a", 2, 3, 4), timed("a", 1, 5, 9, seed=1)))
    assert views.values(more, STEP).loc["a"].tolist() == [4.0, 1.0, 9.0]
    low, high = summary.ranges(ROWS, "toy")
    assert (low.loc["b", str(STEP)], high.loc["b", str(STEP)]) == (2.0, 6.0)
    assert math.isnan(low.loc["c", str(STEP)])
    assert list(summary.noisy(ROWS, "toy")[str(STEP)]) == [False, True, False]
    shown = views.with_ranges(summary.table(ROWS, "toy"), low, high, summary.noisy(ROWS, "toy"))
    assert list(shown[f"{STEP} range"]) == ["2.00 to 9.00", "2.00 to 6.00, noisy", ""]


def test_whose_clock_was_noisy_is_a_sentence() -> None:
    assert noisy_clocks(ROWS) == (
        "The clock was noisy for 1 of 3 methods, so that their seconds may differ by 10% and more by chance: b."
    )
    assert noisy_clocks(frame(timed("b", 2, 3, 4, 5, 6))) is None, "nothing is known of its samples"

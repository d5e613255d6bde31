"""The best length of a step, on losses whose best length is known and by a fine scan of others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from curvbench.meters.descent import CLOSE, best_length

SHAPES: dict[str, Callable[[float], float]] = {
    "parabola": lambda t: 2 * t - t**2,
    "quartic": lambda t: t - t**4,
    "flat": lambda t: 1 - math.exp(-t) - 1e-3 * t,
    "wall": lambda t: t if t < 1.3 else -math.inf,
    "cliff": lambda t: t - 1e6 * max(t - 1.1, 0) ** 2,
    "not a number": lambda t: math.sqrt(t) if t < 0.7 else math.nan,
    "narrow": lambda t: t * math.exp(-5 * t),
}


@pytest.mark.parametrize("first", [1e-2, 0.3, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_length_is_that_of_a_scan(shape: str, first: float) -> None:
    decrease = SHAPES[shape]
    best = max(decrease(k * 1e-3) for k in range(1, 20_000) if not math.isnan(decrease(k * 1e-3)))
    found = best_length(decrease, first)
    slack = 0.1 if shape in ("wall", "cliff", "not a number") else 0.01  # no parabola follows a wall
    assert (1 - slack) * best <= found.decrease == decrease(found.length)


@pytest.mark.parametrize("first", [0.7, 1.0, 1.3])
def test_near_the_maximum_of_a_parabola_four_evaluations_are_enough(first: float) -> None:
    calls: list[float] = []

    def decrease(length: float) -> float:
        calls.append(length)
        return 2 * length - length**2

    found = best_length(decrease, first)
    assert found.decrease >= 1 - CLOSE and len(calls) <= 4


def test_a_loss_that_does_not_fall_has_no_best_length() -> None:
    assert best_length(lambda t: -t, 1.0) == (0.0, 0.0)
    assert best_length(lambda t: math.nan, 1.0) == (0.0, 0.0)


def test_a_loss_that_falls_for_ever_has_the_last_length_that_is_tried() -> None:
    found = best_length(lambda t: t, 1.0)
    assert found.length == found.decrease == 1024.0

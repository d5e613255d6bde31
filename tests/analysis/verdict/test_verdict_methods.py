"""What a step costs at an interval, and which methods cannot be told apart, against counts made the long way."""

from __future__ import annotations

import itertools
import math

import pytest
from frames import frame, row
from planted import failed, planted

from curvbench.analysis.verdict import budget
from curvbench.analysis.verdict.methods import Budget, Cost, Method, are_tied, compared, lacking, methods, winners


def paid(steps: int, every: int, statistics: float, invert: float, precondition: float, moments: bool) -> float:
    """The mean gradients of a training's steps, step by step."""
    total = 0.0
    for step in range(steps):
        total += 1 + precondition
        total += statistics if moments or step % every == 0 else 0.0
        total += invert if step % every == 0 else 0.0
    return total / steps


PHASES = list(itertools.product((0.0, 0.03, 2.5), (0.0, 7.0), (0.0, 0.0625, 0.099, 0.1, 1.5), (False, True)))


@pytest.mark.parametrize(("statistics", "invert", "precondition", "moments"), PHASES)
def test_the_cost_of_a_step_is_that_of_a_training(
    statistics: float, invert: float, precondition: float, moments: bool
) -> None:
    cost = Cost(statistics, invert, precondition, moments)
    for every in (1, 4, 25):
        expected = paid(100, every, statistics, invert, precondition, moments)
        assert math.isclose(cost.at(every), expected, rel_tol=1e-12)
    interval = cost.negligible_from()
    first = next((k for k in range(1, 20_000) if (cost.at(k) - 1) < 0.1 - 1e-12), None)
    assert interval == first


def test_no_interval_is_too_long_to_be_found() -> None:
    almost = Cost(1.0, 0.0, math.nextafter(0.1, 0))
    assert (almost.negligible_from() or 0) > 1e15
    assert Cost(0.0, 0.0, 0.1).negligible_from() is None


def test_moments_are_paid_at_every_step() -> None:
    rows = frame(*planted("adam", [0.5], (0.25, 0.0, 0.125)), *planted("kfac", [0.5], (0.25, 0.0, 0.125)))
    adam, kfac = methods(rows)
    assert adam.gradients(100) == 1.375
    assert math.isclose(kfac.gradients(100), 1.1275)


BOUNDS = ("full", "layer", "kpsvd", "klkron", "kronsum", "diagpair", "eigen")


def test_references_and_bounds_are_no_methods() -> None:
    rows = frame(*(r for name in (*BOUNDS, "kfac", "mine") for r in planted(name, [2.0])))
    assert [method.label for method in methods(rows)] == ["kfac", "mine"]


def test_the_gap_at_the_best_damping_replaces_that_at_the_tables() -> None:
    rows = frame(*planted("kfac", [0.25, 0.5], damping=(1e-2, 2.0, 0.75)), *planted("eva", [0.5, 0.625]))
    kfac, eva = compared(rows)
    assert kfac.gaps == {0: 0.75, 1: 0.75} and kfac.damping == pytest.approx(1e-2) and kfac.plateau == 2.0
    assert eva.gaps == {0: 0.5, 1: 0.625} and math.isnan(eva.damping)


def test_dampings_have_a_median_of_powers() -> None:
    rows = [row("kfac", "damping.best", value, seed=seed) for seed, value in enumerate((1e-4, 1e-2))]
    (kfac,) = methods(frame(*rows))
    assert kfac.damping == pytest.approx(1e-3)


def test_what_is_no_number_is_no_gap() -> None:
    rows = frame(*planted("a", [math.nan, math.inf, 0.25]), *planted("b", [None]))
    assert [method.label for method in compared(rows)] == ["a"]
    assert compared(rows)[0].gaps == {2: 0.25}


def test_the_budget_is_kept_up_to_equality() -> None:
    at_the_limit = Method("a", {0: 0.5}, Cost(0.0, 50.0, 0.5), 3.0)
    assert at_the_limit.fits(Budget(2.0, 3.0, 100))
    assert not at_the_limit.fits(Budget(1.999, 3.0, 100)) and not at_the_limit.fits(Budget(2.0, 2.999, 100))
    assert not at_the_limit.fits(Budget(2.0, 3.0, 99))
    assert Method("free", {0: 0.5}, None, 1.0).fits(Budget(math.inf, 3.0)), "only what is limited has to be known"
    assert not Method("free", {0: 0.5}, None, 1.0).fits(Budget())


def test_winners_within_the_budget_and_of_all() -> None:
    rows = frame(
        *planted("cheap", [0.25]),
        *planted("dear", [0.75], (0, 0, 5.0)),
        *planted("best", [0.5]),
        *planted("layer", [1.0]),
    )
    within, best = winners(compared(rows), Budget())
    assert within is not None and best is not None
    assert (within.label, best.label) == ("best", "dear")


@pytest.mark.parametrize(
    ("a", "b", "tied"),
    [
        ({0: 0.5}, {0: 0.51}, True),
        ({0: 0.5}, {0: 0.53}, False),
        ({0: 0.5}, {0: 0.4799}, False),
        ({0: 0.5, 1: 0.6}, {0: 0.6, 1: 0.7}, True),
        ({0: 0.5, 1: 0.6}, {0: 0.601, 1: 0.602}, False),
        ({0: 0.5, 1: 0.6, 2: 0.1}, {0: 0.2, 1: 0.3}, False),
        ({0: 0.5}, {1: 0.9}, True),
        ({0: 0.5, 1: 0.9}, {1: 0.89}, True),
    ],
)
def test_what_cannot_be_told_apart(a: dict[int, float], b: dict[int, float], tied: bool) -> None:
    assert are_tied(Method("a", a), Method("b", b)) is tied is are_tied(Method("b", b), Method("a", a))


def test_why_there_is_no_gap() -> None:
    none = {"status": "skipped", "reason": "there is no gap"}
    rows = frame(
        *planted("kfac", [0.5, 0.5]),
        *planted("eva", [0.5]),
        failed("eva", "timeout", "too slow", seed=1),
        failed("full", "oom_host", "needs 9 GB"),
        row("diag", "direction.gap_closed", None, **none),
    )
    assert lacking(rows) == {
        "eva": "timeout: too slow with seed 1",
        "full": "oom_host: needs 9 GB",
        "diag": "skipped: there is no gap",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 3, 100), "flops must be above 0"),
        ((math.nan, 3, 100), "flops must be above 0"),
        ((2, -1, 100), "memory must be above 0"),
        ((2, 3, 0), "refresh must be a whole number"),
        ((2, 3, 1.5), "refresh must be a whole number"),
        ((2, 3, math.inf), "refresh must be a whole number"),
    ],
)
def test_a_budget_that_is_none(arguments: tuple[float, float, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        budget(*arguments)

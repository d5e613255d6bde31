from __future__ import annotations

import numpy as np
import pytest

from curvbench.analysis.significance import compare_samples


def rounds(generator: np.random.Generator, scale: float, count: int = 3, drift: float = 0.0) -> list[list[float]]:
    """``count`` runs of five samples, each run with a drift of its own."""
    return [
        list(scale * generator.normal(1 + drift * generator.normal(), 0.01, size=5).clip(0.1)) for _ in range(count)
    ]


def exact_p(a: list[float], b: list[float]) -> float:
    """Two-sided p of the rank sum by going through every way to deal the ranks."""
    from itertools import combinations

    ranks = {value: rank for rank, value in enumerate(sorted([*a, *b]))}
    sums = [sum(chosen) for chosen in combinations(range(len(ranks)), len(a))]
    mine, middle = sum(ranks[v] for v in a), np.mean(sums)
    return float(np.mean([abs(s - middle) >= abs(mine - middle) for s in sums]))


def test_p_is_the_share_of_deals_that_are_as_extreme() -> None:
    a, b = [1.0, 1.1, 1.2, 1.3, 1.45], [1.4, 1.5, 1.6, 1.7, 1.8]
    assert compare_samples([a], [b]).p == pytest.approx(exact_p(a, b), rel=1e-12)


def test_a_step_lies_within_its_interval_and_far_from_one() -> None:
    generator = np.random.default_rng(1)
    found = compare_samples(rounds(generator, 2.0), rounds(generator, 2.6))
    assert found.ratio == pytest.approx(1.3, rel=0.02)
    assert 1.25 < found.low <= found.ratio <= found.high < 1.35
    assert found.p < 1e-3


def test_the_interval_covers_what_drifts_from_run_to_run() -> None:
    """Samples of one process resemble each other: an interval of pooled samples would be far too narrow."""
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(60):
        found = compare_samples(rounds(generator, 1.0, 6, 0.1), rounds(generator, 1.0, 6, 0.1))
        covered.append(found.low <= 1 <= found.high)
    assert np.mean(covered) >= 0.8


def test_the_same_samples_give_the_same_interval() -> None:
    a, b = rounds(np.random.default_rng(3), 1.0), rounds(np.random.default_rng(4), 1.0)
    assert compare_samples(a, b) == compare_samples(a, b)


def test_runs_of_different_lengths_count_alike() -> None:
    found = compare_samples([[1.0], [1.0] * 9], [[2.0] * 4, [2.0]])
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)

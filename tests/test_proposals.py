"""What a search tries next follows from what it was told, and learns from it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from curvbench.planning.proposals import ROUND, Grid, proposed
from curvbench.spec import Search

GRID: Grid = {"lr": (1e-4, 0.1, 10.0), "damping": (0.3, 0.03)}


def test_a_grid_is_tried_whole_and_at_once() -> None:
    search = Search(GRID)
    found = proposed(GRID, search)
    assert found == [{"lr": lr, "damping": damping} for lr in GRID["lr"] for damping in GRID["damping"]]
    assert proposed(GRID, search, [(setting, 0.5) for setting in found]) == []


def test_a_random_search_tries_some_of_the_grid_the_same_ones_again() -> None:
    grid: Grid = {"lr": tuple(range(100))}
    search = Search(grid, trials=5, seed=3)
    found = proposed(grid, search)
    assert len({s["lr"] for s in found}) == 5 and found == proposed(grid, search)
    assert found != proposed(grid, Search(grid, trials=5, seed=4))


def searched(seed: int, trials: int) -> list[tuple[dict[str, Any], float | None]]:
    """A search in which rates above 1 fail."""
    search = Search(GRID, trials=trials, sampler="tpe", seed=seed)
    tried: list[tuple[dict[str, Any], float | None]] = []
    while new := proposed(GRID, search, tried):
        assert len(new) <= ROUND
        tried += [(s, None if s["lr"] > 1 else -abs(math.log10(s["lr"]) + 2)) for s in new]
    return tried


def test_rounds_keep_to_budget_and_grid_and_repeat() -> None:
    pytest.importorskip("optuna", reason="the extra `tune`")
    tried = searched(0, 10)
    assert len(tried) == 10 and tried == searched(0, 10) and tried != searched(1, 10)
    assert all(1e-4 <= s["lr"] <= 10 and 0.03 <= s["damping"] <= 0.3 and list(s) == list(GRID) for s, _ in tried)
    assert all(float(f"{value:.3g}") == value for s, _ in tried for value in s.values())
    assert len({s["damping"] for s, _ in tried}) > 2, "between the values of the grid too"


@pytest.mark.parametrize(("metric", "sign"), [("valid.accuracy", -1), ("valid.loss", 1)])
def test_rounds_are_near_to_the_best_and_turn_from_what_failed(metric: Any, sign: int) -> None:
    """The best rate is 0.01 and those above 1 fail; of blind draws two in five are within a factor of 10 of it."""
    pytest.importorskip("optuna", reason="the extra `tune`")
    grid: Grid = {"lr": (1e-4, 10.0)}

    def distance(setting: dict[str, Any]) -> float:
        return abs(math.log10(setting["lr"]) + 2)

    told = [{"lr": 10 ** (-4 + 5 * k / 19)} for k in range(20)]
    tried = [(setting, None if setting["lr"] > 1 else sign * distance(setting)) for setting in told]
    shares = []
    for before in ([], tried):
        searches = [Search(grid, trials=99, sampler="tpe", seed=seed, metric=metric) for seed in range(10)]
        drawn = [distance(setting) for search in searches for setting in proposed(grid, search, before)]
        shares.append(sum(d <= 1 for d in drawn) / len(drawn))
    assert shares[0] <= 0.6 and shares[1] >= 0.8


def test_what_was_tried_is_not_tried_again_and_a_small_grid_comes_to_an_end() -> None:
    pytest.importorskip("optuna", reason="the extra `tune`")
    grid: Grid = {"fisher_type": ("type-2", "mc"), "mc_samples": (1, 2)}
    search, tried = Search(grid, trials=40, sampler="tpe"), []
    while new := proposed(grid, search, tried):
        tried += [(setting, 0.5) for setting in new]
    settings = [tuple(setting.items()) for setting, _ in tried]
    assert len(set(settings)) == len(settings) <= 4
    assert all(type(setting["mc_samples"]) is int for setting, _ in tried)

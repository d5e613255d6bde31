"""Trials of a search as tables: the best setting, and a share that says which hyperparameter matters."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest
from frames import frame, row

from curvbench.analysis import trials


def trial(lr: float, decay: float, seed: int, accuracy: float, probe: str = "kfac") -> list[dict[str, object]]:
    facts = {"epoch": 1, "method": f"epochs=1,lr={lr},weight_decay={decay}", "suite": "s.tuning", "seed": seed}
    facts |= {"cell_id": f"{probe}{lr}{decay}{seed}"}
    return [row(probe, "test.accuracy", 0.1, **facts), row(probe, "valid.accuracy", accuracy, **facts)]


def searched() -> pd.DataFrame:
    """Of kfac the rate decides alone; of adam both trials are alike but for the decay."""
    grid = itertools.product((0.01, 0.1, 1.0), (0.0, 1e-4, 1e-3), (0, 1))
    rows = [trial(lr, decay, seed, 1 - abs(math.log10(lr) + 1) / 2 + seed / 100) for lr, decay, seed in grid]
    return frame(*itertools.chain(*rows, trial(0.1, 0.0, 0, 0.4, "adam"), trial(0.1, 1e-4, 0, 0.3, "adam")))


def test_the_best_trial_of_each_method() -> None:
    table = trials.table(searched(), "valid.accuracy")
    assert len(table) == 11 and table["value"].is_monotonic_decreasing
    best = trials.best(table).set_index("probe")
    assert list(best.index) == ["kfac", "adam"] and list(best["trials"]) == [9, 2]
    assert best.loc["kfac", "lr"] == 0.1 and best.loc["kfac", "value"] == pytest.approx(1.005)
    assert best.loc["kfac", "value range"] == "1.00 to 1.01"
    assert trials.table(searched(), "valid.loss").empty


def test_the_importance_of_hyperparameters() -> None:
    """By the formula of Kelley, on ranks 3.5 of both ends and 8 of the middle."""
    shares = trials.importance(trials.table(searched(), "valid.accuracy")).set_index("probe")
    assert list(shares.index) == ["kfac"], "two trials say nothing"
    ranks = [3.5] * 3 + [8.0] * 3 + [3.5] * 3
    total = sum((rank - 5) ** 2 for rank in ranks)
    by_decay = 3 * sum((rank - 5) ** 2 for rank in (3.5, 8.0, 3.5))  # of each decay the same ranks: all lies within
    assert by_decay == pytest.approx(total)
    assert shares.loc["kfac", "lr"] == pytest.approx(1.0)
    assert shares.loc["kfac", "weight_decay"] == pytest.approx(max(1 - 8 / 6 * by_decay / total, 0.0))

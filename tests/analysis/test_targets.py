from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from frames import frame, row

from curvbench.analysis import targets

# accuracy after epochs 0, 1, 2, 3 and seconds at their ends, by probe and seed
RUNS = {
    ("a", 0): ((0.1, 0.5, 0.8, 0.9), (10.0, 20.0, 30.0)),
    ("a", 1): ((0.1, 0.6, 0.9, 0.9), (12.0, 24.0, 36.0)),
    ("b", 0): ((0.1, 0.9, 0.7, 0.9), (40.0, 80.0, 120.0)),
    ("b", 1): ((0.1, 0.2, 0.2, 0.2), (40.0, 80.0, 120.0)),
    ("c", 0): ((0.1, 0.2, 0.2, 0.3), (1.0, 2.0, 3.0)),
    ("c", 1): ((0.1, 0.2, 0.2, 0.3), (1.0, 2.0, 3.0)),
}


def rows(snapshot: int = 0) -> pd.DataFrame:
    """Epochs count on from the snapshot's."""
    found = []
    for (probe, seed), (values, seconds) in RUNS.items():
        for epoch, value in enumerate(values):
            found.append(row(probe, "test.accuracy", value, seed=seed, epoch=snapshot + epoch))
            found.append(row(probe, "test.loss", 1 - value, seed=seed, epoch=snapshot + epoch))
        for epoch, value in enumerate(seconds, 1):
            found.append(row(probe, "train.seconds", value, seed=seed, epoch=snapshot + epoch))
    found.append(row("d", "", None, "", status="timeout", reason="slow"))
    return frame(*found)


@pytest.mark.parametrize("snapshot", [0, 10])
@pytest.mark.parametrize(("metric", "target"), [("test.accuracy", 0.8), ("test.loss", 1 - 0.8)])
def test_trials_against_a_loop(snapshot: int, metric: str, target: float) -> None:
    found = targets.trials(rows(snapshot), metric, target).set_index(["probe", "seed"])
    assert set(found.index) == set(RUNS)
    for key, (values, seconds) in RUNS.items():
        first = next((k for k, value in enumerate(values) if value >= 0.8), None)
        if first is None:
            assert found.loc[key, ["epochs", "seconds"]].isna().all()
        else:
            assert found.loc[key, "epochs"] == first
            assert found.loc[key, "seconds"] == seconds[first - 1]


def test_a_target_that_the_start_meets_took_nothing() -> None:
    found = targets.trials(rows(), "test.accuracy", 0.05)
    assert (found["epochs"] == 0).all()
    assert (found["seconds"] == 0).all()
    assert (targets.profile(found, "seconds")["ratio"] == 1).all()


def test_medians_count_misses_as_late_and_ranges_are_of_hits() -> None:
    table = targets.to_target(targets.trials(rows(), "test.accuracy", 0.8)).set_index("probe")
    assert table.loc["a", ["reached", "of", "epochs", "seconds"]].tolist() == [2, 2, 2.0, 22.0]
    assert table.loc["a", ["seconds min", "seconds max"]].tolist() == [20.0, 24.0]
    assert table.loc["b", ["reached", "of"]].tolist() == [1, 2]
    assert math.isnan(table.loc["b", "seconds"]), "half missed: the median lies between a hit and a miss"
    assert table.loc["b", "seconds max"] == 40.0
    assert table.loc["c", "reached"] == 0
    assert table.index[0] == "a"


def test_the_usual_target_is_reached_by_half() -> None:
    for metric in ("test.accuracy", "test.loss"):
        target = targets.usual_target(rows(), metric)
        reached = targets.trials(rows(), metric, target)["epochs"].notna().sum()
        assert reached == 3
    assert math.isnan(targets.usual_target(rows(), "test.bleu"))


def test_profiles_against_their_definition() -> None:
    trials = targets.trials(rows(), "test.accuracy", 0.8)
    steps = targets.profile(trials, "seconds")
    times = {(r.probe, r.seed): r.seconds for r in trials.itertuples()}
    best = {seed: np.nanmin([times[p, seed] for p in "abc"]) for seed in (0, 1)}
    for probe, tau in itertools.product("abc", (1.0, 1.5, 2.0, 5.0)):
        share = np.mean([times[probe, seed] <= tau * best[seed] for seed in (0, 1)])
        mine = steps[(steps["probe"] == probe) & (steps["ratio"] <= tau)]
        assert (mine["share"].max() if len(mine) else 0.0) == share
    assert "c" not in set(steps["probe"])


def test_what_nobody_reaches_and_no_training() -> None:
    trials = targets.trials(rows(), "test.accuracy", 2.0)
    assert targets.profile(trials, "epochs").empty
    assert (targets.to_target(trials)["reached"] == 0).all()
    nothing = targets.trials(frame(row("a", "error.relative", 0.5)), "test.accuracy", 0.5)
    assert nothing.empty
    assert targets.to_target(nothing).empty
    assert targets.profile(nothing, "epochs").empty


def test_settings_of_a_training_are_trials_of_their_own() -> None:
    at = [row("kfac", "test.accuracy", lr, cell_id=f"{lr}", epoch=1, method=f"lr={lr}") for lr in (0.25, 0.5)]
    assert targets.trials(frame(*at), "test.accuracy", 0.4)["probe"].tolist() == ["kfac {lr=0.25}", "kfac {lr=0.5}"]

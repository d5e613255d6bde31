"""Sentences on trainings, searches, sweeps of updates and gates, on planted rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from frames import frame, row
from planted import failed

from curvbench.analysis.check import Gate
from curvbench.analysis.compare import compare
from curvbench.analysis.verdict import gates, searches, sentences, sweeps, trainings


def training(
    probe: str, accuracies: Sequence[float], seed: int = 0, pace: float = 1.0, **other: Any
) -> list[dict[str, Any]]:
    """The rows of a training, an accuracy per epoch; ``pace``: seconds of an epoch."""
    made = []
    for epoch, value in enumerate(accuracies):
        facts = {"seed": seed, "epoch": epoch, "method": "lr=0.1", **other}
        made.append(row(probe, "test.accuracy", value, **facts))
        if epoch:
            made.append(row(probe, "train.seconds", pace * epoch, **facts))
    return made


TRAINED = frame(
    *training("kfac", [0.1, 0.5, 0.8], 0, 3.0),
    *training("kfac", [0.1, 0.6, 0.9], 1, 3.0),
    *training("sgdm", [0.1, 0.2, 0.4], 0, 1.0),
    *training("sgdm", [0.1, 0.3, 0.5], 1, 1.0),
    *training("adam", [0.1, 0.6, 0.7], 0, 1.5),
    *training("adam", [0.1, 0.7, 0.85], 1, 1.5),
)


def test_the_training_that_ends_best() -> None:
    assert trainings.best_training(TRAINED) == (
        "kfac ends with the best test accuracy: 0.850 (0.800 to 0.900) over 2 seeds; adam follows with 0.775 (0.700 to "
        "0.850), and sgdm is last with 0.450 (0.400 to 0.500)."
    )
    assert trainings.not_told_apart(TRAINED) == (
        "Over 2 seeds, kfac cannot be told apart from adam: their ranges overlap."
    )
    assert trainings.cost_of_an_epoch(TRAINED) == (
        "An epoch takes, in times the seconds of SGD's, 1.50 with adam and 3.00 with kfac."
    )
    one = TRAINED[TRAINED["seed"] == 0]
    assert "0.800 with one seed" in (trainings.best_training(one) or "")
    assert "chance alone" in (trainings.not_told_apart(one) or "")
    alone = trainings.best_training(one[one["probe"] == "kfac"])
    assert alone == "kfac ends with the best test accuracy: 0.800 with one seed; no other training has ended."


def test_a_lower_loss_is_better() -> None:
    rows = TRAINED.assign(metric=TRAINED["metric"].replace("test.accuracy", "test.loss"))
    assert (trainings.best_training(rows) or "").startswith("sgdm ends with the best test loss: 0.450")


def test_the_target_of_half_of_the_trainings() -> None:
    """The best values are 0.4, 0.5, 0.7, 0.8, 0.85 and 0.9: half of them reach 0.8."""
    assert trainings.first_at_the_target(TRAINED) == (
        "kfac reaches a test accuracy of 0.800, which half of the trainings reach, first: after 2 epochs and 6.00 s of "
        "training; sgdm and adam did not with most of the seeds."
    )


def test_the_target_of_the_suite() -> None:
    late = {"status": "unsupported", "reason": "not reached"}
    hits = [
        row("kfac", "train.epochs_to_target", 1.0, epoch=1),
        row("kfac", "train.seconds_to_target", 9.0, epoch=1),
        row("sgdm", "train.epochs_to_target", None, epoch=2, **late),
        row("sgdm", "train.seconds_to_target", None, epoch=2, **late),
    ]
    rows = pd.concat([TRAINED[TRAINED["seed"] == 0], frame(*hits)], ignore_index=True)
    assert trainings.first_at_the_target(rows) == (
        "kfac reaches the target first: after 1 epoch and 9.00 s of training; sgdm did not with most of the seeds."
    )
    rows.loc[rows["metric"].str.endswith("to_target"), ["status", "value"]] = ["unsupported", float("nan")]
    assert trainings.first_at_the_target(rows) == "No method reaches the target with most of its seeds."


def test_a_training_that_diverges_is_named_and_never_best() -> None:
    ended = failed("lngd", "diverged", "the loss is NaN in epoch 2")
    rows = pd.concat([TRAINED, frame(*training("lngd", [0.1, 0.99]), ended)], ignore_index=True)
    said = sentences(rows)
    assert said[0].startswith("kfac ends with the best")
    assert said[-1] == "1 training did not end well: lngd (diverged: the loss is NaN in epoch 2)."


def trial(probe: str, lr: float, accuracy: float) -> list[dict[str, Any]]:
    facts = {"epoch": 1, "method": f"epochs=1,lr={lr}", "suite": "s.tuning", "cell_id": f"{probe}{lr}"}
    return [row(probe, "test.accuracy", 0.1, **facts), row(probe, "valid.accuracy", accuracy, **facts)]


def test_a_search_names_the_best_settings_and_the_edges() -> None:
    grid = {"kfac": [0.2, 0.5, 0.4], "sgdm": [0.1, 0.2, 0.3]}
    rows = frame(
        *(
            r
            for probe, found in grid.items()
            for lr, a in zip((0.01, 0.1, 1.0), found, strict=True)
            for r in trial(probe, lr, a)
        )
    )
    assert sentences(rows) == [
        "Of 6 trials, the settings with the best validation accuracy are kfac with lr=0.1 (0.500) and sgdm with lr=1.0 "
        "(0.300).",
        "At the edge of what was tried, so that a better value may lie beyond: lr=1 of sgdm (0.01 to 1).",
    ]
    assert searches.at_the_edge(rows[rows["probe"] == "kfac"]) is None
    assert searches.best_settings(rows.assign(status="error")) == (
        "Not enough measured: no trial has ended with a validation accuracy."
    )


def test_a_sweep_of_updates() -> None:
    rows = frame(
        row("ginger", "error.relative", 0.9, probe_args="updates=2"),
        row("ginger", "error.relative", 0.5, probe_args="updates=8"),
        row("kfac", "error.relative", 0.25),
    )
    expected = "The relative error of the network goes from 0.900 after 2 updates to 0.500 after 8 updates with ginger."
    assert sweeps.learning(rows) == expected
    assert expected in sentences(rows)
    assert sweeps.learning(rows[rows["probe"] == "kfac"]) is None


def test_a_gate() -> None:
    a = frame(
        row("kfac", "error.relative", 0.5), row("kfac", "flops.counted", 100.0, "step"), row("eva", "error.cosine", 0.5)
    )
    worse = a.assign(value=[0.6, 100.0, 0.5])
    said = gates.sentences(Gate(compare(a, worse)))
    assert said == [
        "The run fails: 1 of 3 measurements are worse or missing, first error.relative (network) of kfac on toy from "
        "0.5 to 0.6 (+20.00%)."
    ]
    better = a.assign(value=[0.4, 100.0, 0.5])
    assert gates.sentences(Gate(compare(a, better))) == [
        "The run passes: nothing is worse than the baseline, and 2 of 3 measurements are as they were.",
        "1 measurement became better, most of all error.relative (network) of kfac on toy from 0.5 to 0.4 (-20.00%).",
    ]
    assert gates.outcome(Gate(compare(a, better), any_change=True)).startswith(
        "The run fails: 1 of 3 measurements differ"
    )
    assert "differs from the baseline" in gates.outcome(Gate(compare(a, a), any_change=True))
    gone = pd.concat([a.head(2), frame(failed("eva", "timeout", "too slow"))])
    assert gates.outcome(Gate(compare(a, gone))).endswith("first whole cell of eva on toy, timeout: too slow.")
    more = pd.concat([a, frame(row("kfac", "error.share", 1.0, "fc"))])
    assert gates.not_judged(Gate(compare(a, more))) == (
        "1 measurement could not be judged, most often because A has no such metric in any cell."
    )


@pytest.mark.parametrize("rows", [TRAINED, TRAINED.astype({"probe": "category", "metric": "category"})])
def test_sentences_on_trainings_end(rows: pd.DataFrame) -> None:
    assert all(sentence.endswith(".") for sentence in sentences(rows)) and len(sentences(rows)) == 4


def test_what_the_exact_fisher_costs() -> None:
    values = {
        ("problem.samples", "network"): 16.0,
        ("time.wall", "contraction"): 0.5,
        ("time.wall", "total"): 0.75,
        ("flops.counted", "total"): 2e9,
        ("memory.peak", "total"): 18.4e6,
        ("flops.hutchinson", "total"): 169.0,
    }
    rows = frame(*(row("full", metric, value, scope) for (metric, scope), value in values.items()))
    assert sentences(rows) == [
        "The exact Fisher of 16 samples takes 0.750 s, 2.00 GFLOP and 18.4 MB; an estimate of its norm to 1% would "
        "take 169 times the work."
    ]

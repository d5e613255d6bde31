from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from frames import fisher_cell, frame, row

from curvbench.analysis import frames, summary, views
from curvbench.analysis.views import Quantity

ERROR = Quantity("error.relative", "network")
FLOPS = Quantity("flops.ratio", "step")


def two(probe: str, error: float | None, flops: float | None, **other: object) -> list[dict[str, object]]:
    return [row(probe, "error.relative", error, **other), row(probe, "flops.ratio", flops, "step", **other)]


ROWS = frame(
    *two("a", 0.5, 1.0),
    *two("b", 0.25, 2.0),
    *two("c", 0.5, 2.0),
    *two("d", math.inf, 0.5),
    *two("e", 0.125, math.nan),
    row("f", "", None, "", status="timeout", reason="too slow"),
)


def test_the_front_is_what_no_other_dominates() -> None:
    table = views.tradeoff(ROWS, "toy", FLOPS, ERROR).set_index("probe")
    assert list(table.index) == ["a", "b", "c", "d", "e", "f"]
    assert table.index[table["front"]].tolist() == ["a", "b"]
    assert table.loc["f", "status"] == "timeout"
    assert math.isnan(table.loc["f", "x"])


def test_the_front_against_every_pair() -> None:
    generator = np.random.default_rng(0)
    x, y = (pd.Series(generator.integers(0, 6, 40).astype(float)) for _ in "xy")
    x[3], y[5] = math.nan, math.inf
    front = views.pareto(x, y)
    for i in range(40):
        finite = math.isfinite(x[i]) and math.isfinite(y[i])
        others = [j for j in range(40) if math.isfinite(x[j]) and math.isfinite(y[j])]
        beaten = any(x[j] <= x[i] and y[j] <= y[i] and (x[j], y[j]) != (x[i], y[i]) for j in others)
        assert front[i] == (finite and not beaten)


def test_no_front_where_a_metric_has_no_direction() -> None:
    rows = frame(row("a", "error.trace_ratio", 1.0), row("a", "flops.ratio", 1.0, "step"))
    assert not views.tradeoff(rows, "toy", FLOPS, Quantity("error.trace_ratio", "network"))["front"].any()


def test_what_is_best_at_one_is_shown_as_its_distance_from_one() -> None:
    cosine = Quantity("direction.cosine", "network")
    assert cosine.better == "lower"
    assert cosine.heading == "1 - direction.cosine (network)"
    shown = views.values(frame(row("a", "direction.cosine", 0.75), row("b", "direction.cosine", -0.5)), cosine)
    assert shown["median"].tolist() == [0.25, 1.5]
    assert not ERROR.is_gap
    assert not Quantity("coverage.parameters", "network").is_gap


def test_quantities_round_trip_as_text() -> None:
    assert Quantity.parse(str(Quantity("error.relative", "layer blocks"))) == ("error.relative", "layer blocks")


def test_medians_and_ranges_over_seeds() -> None:
    rows = frame(*(row("a", "error.relative", value, seed=seed) for seed, value in enumerate((1.0, 5.0, 2.0))))
    assert views.values(rows, ERROR).loc["a"].tolist() == [2.0, 1.0, 5.0]


def test_statuses_by_probe_and_problem() -> None:
    rows = frame(
        row("a", "error.relative", 0.5),
        row("a", "error.relative", None, status="unsupported", reason="no blocks", scope="layer blocks"),
        row("b", "", None, "", status="timeout", reason="slow"),
        row("b", "error.relative", 0.5, seed=1),
        row("a", "error.relative", 0.5, problem_args="epochs=2"),
    )
    found = views.status(rows).set_index(["probe", "problem"])
    assert found.loc[("a", "toy")].tolist() == ["ok", 1, ""]
    assert found.loc[("b", "toy")].tolist() == ["timeout, ok", 2, "slow"] or found.loc[("b", "toy"), "cells"] == 2
    assert set(found.loc[("b", "toy"), "status"].split(", ")) == {"timeout", "ok"}
    assert found.loc[("b", "toy[epochs=2]")].tolist() == ["not run", 0, ""]


def test_layers_with_the_wholes_first() -> None:
    rows = frame(*(row("a", "error.relative", k, scope) for k, scope in enumerate(("fc1", "layer blocks", "network"))))
    rows = pd.concat([rows, frame(row("b", "", None, "", status="error", reason="x"))])
    table = views.layers(rows, "toy", "error.relative")
    assert table.columns.tolist() == ["network", "layer blocks", "fc1"]
    assert table.loc["a"].tolist() == [2.0, 1.0, 0.0]
    assert table.loc["b"].isna().all()


def test_a_step_is_the_sum_of_its_parts() -> None:
    rows = frame(*(row("a", r.metric, r.value, r.scope) for r in fisher_cell(cost=5.0)))
    for metric, unit in (("flops.counted", 1e6), ("time.wall", 1e-3)):
        table = views.phases(rows, "toy", metric).set_index("probe").loc["a"]
        parts = [table[part] for part in (views.GRADIENT, "statistics", "invert", "precondition")]
        assert sum(parts) == pytest.approx(table["step"])
        assert table[views.GRADIENT] == pytest.approx(unit)
        assert table["x SGD"] == 5.0
    slower = frame(*(row("a", r.metric, r.value, r.scope, seed=1) for r in fisher_cell(cost=6.0)))
    assert views.phases(pd.concat([rows, slower]), "toy", "time.wall")["x SGD range"].tolist() == ["5.00 to 6.00"]


def test_one_unit_fits_the_values_of_a_table() -> None:
    table = pd.DataFrame({"probe": ["a", "b"], "step": [2e6, 5e9], "invert": [0.0, 4e6], "x SGD": [1.0, 2.0]})
    shown = views.with_unit(table, ["invert", "step", "absent"], "FLOP")
    assert list(shown) == ["probe", "step [MFLOP]", "invert [MFLOP]", "x SGD"]
    assert shown["step [MFLOP]"].tolist() == [2.0, 5000.0] and shown["x SGD"].tolist() == [1.0, 2.0]
    assert list(views.with_unit(table.head(0), ["step"], "B")) == ["probe", "step [B]", "invert", "x SGD"]


def test_published_beside_counted() -> None:
    rows = frame(*(row("a", r.metric, r.value, r.scope) for r in fisher_cell(cost=3.0)))
    rows = pd.concat([rows, frame(row("b", "flops.counted", 5.0, "invert"), row("b", "flops.model", 0.0, "invert"))])
    table = views.published(rows, "toy")
    assert table.to_dict("records") == [
        {"probe": "a", "phase": "statistics", "counted": 1e6, "published": 1e5, "counted / published": 10.0}
    ]


def test_hyperparameters_from_labels_and_from_the_record() -> None:
    rows = frame(
        row("a", "error.relative", 1.0, probe_args="damping=0.1,rule=pi"),
        row("a", "error.relative", 2.0, epoch=3, problem_args="epochs=3"),
    )
    known = views.settings(rows)
    assert known["a/damping=0.1,rule=pi//0"] == {"probe.damping": 0.1, "probe.rule": "pi", "epoch": 0}
    record = {"cells": [{"id": "a//epochs=3/0", "hyperparameters": {"probe": {"damping": 1e-3, "on": True}}}]}
    known = views.settings(rows, record)
    assert known["a//epochs=3/0"] == {"probe.damping": 1e-3, "probe.on": True, "epoch": 3.0}
    assert views.parameters(rows, known) == ["epoch", "probe.damping"]


def test_a_parameter_varies_within_a_method() -> None:
    rows = frame(
        row("a", "error.relative", 1.0, probe_args="rank=1"), row("b", "error.relative", 1.0, probe_args="rank=2")
    )
    assert views.parameters(rows, views.settings(rows)) == []


def test_a_sweep_is_one_line_per_probe_and_problem() -> None:
    cells = itertools.product((1, 2), (0, 1), (0, 3))
    rows = frame(
        *(
            row(
                "a",
                "error.relative",
                rank + 10 * seed + 100 * epoch,
                probe_args=f"rank={rank},x=y",
                seed=seed,
                epoch=epoch,
                problem_args=f"epochs={epoch}" if epoch else "",
            )
            for rank, seed, epoch in cells
        )
    )
    known = views.settings(rows)
    table = views.sweep(rows, known, "probe.rank", ERROR)
    assert set(zip(table["probe"], table["problem"], strict=True)) == {("a[x=y]", "toy"), ("a[x=y]", "toy[epochs=3]")}
    mine = table[table["problem"] == "toy"].set_index("probe.rank")
    assert mine.loc[2.0, ["median", "min", "max"]].tolist() == [7.0, 2.0, 12.0]
    over = views.sweep(rows, known, "epoch", ERROR)
    assert set(over["problem"]) == {"toy"}
    assert set(over["probe"]) == {"a[rank=1,x=y]", "a[rank=2,x=y]"}


def test_curves_have_seconds() -> None:
    rows = frame(
        *(row("a", "train.loss", 1.0 / (epoch + 1), epoch=epoch) for epoch in (2, 0, 1)),
        *(row("a", "train.seconds", 4.0 * epoch, epoch=epoch) for epoch in (0, 1, 2)),
        row("a", "train.epochs_to_target", 2.0),
    )
    table = views.curves(rows, "toy", "train.loss")
    assert table["epoch"].tolist() == [0, 1, 2]
    assert table["seconds"].tolist() == [0.0, 4.0, 8.0]
    assert views.trained(rows) == ["train.loss", "train.seconds"]
    final = views.final(rows, "toy", ["train.loss"]).iloc[0]
    assert final.to_dict() == {"probe": "a", "train.loss": 1 / 3, "train.epochs_to_target": 2.0, "status": "ok"}


def test_what_a_training_ended_with_is_of_its_own_last_epoch() -> None:
    ended = {0: (0.5, 0.9), 1: (0.5, 0.7, 0.8), 2: (0.4, 0.6, 0.7)}  # one reached its target an epoch sooner
    rows = [
        row("a", "test.accuracy", value, seed=seed, epoch=epoch)
        for seed, values in ended.items()
        for epoch, value in enumerate(values)
    ]
    failed = row("b", "", None, "", status="timeout", reason="late")
    final = views.final(frame(*rows, failed), "toy", ["test.accuracy"]).set_index("probe")
    assert final.loc["a", "test.accuracy"] == 0.8
    assert final.loc["a", "test.accuracy range"] == "0.700 to 0.900"
    assert np.isnan(final.loc["b", "test.accuracy"])
    assert final.loc["b", "status"] == "timeout"


def test_a_column_without_a_value_ranks_no_probe() -> None:
    rows = frame(row("a", "error.relative", 0.5), row("b", "error.relative", 0.25))
    ranked = views.ranking(summary.table(rows, "toy"), summary.columns(rows, "toy"))
    assert ranked[["metric", "scope", "1st", "2nd"]].to_numpy().tolist() == [
        ["error.relative", "network", "b  0.250", "a  0.500"]
    ]


def test_surrogates_are_known_by_their_rows() -> None:
    rows = frame(
        row("a", "error.relative", 1.0), row("a", "error.relative", 1.0, problem_args="a=1", method="surrogate")
    )
    assert frames.surrogates(rows) == ["toy[a=1]"]


def test_cells_come_once_with_their_reason() -> None:
    table = views.cells(ROWS)
    assert table["probe"].tolist() == ["a", "b", "c", "d", "e", "f"]
    assert table["reason"].tolist() == [""] * 5 + ["too slow"]


def test_only_the_columns_that_differ() -> None:
    table = pd.DataFrame({"a": [1, 1], "b": [1, 2], "c": [3, 3]})
    assert list(views.differing(table, ["c"])) == ["b", "c"]
    assert list(views.differing(table.head(1))) == ["a", "b", "c"]


def test_ranks_by_direction() -> None:
    table = ranked(ROWS).set_index(["metric", "scope"])
    assert table.loc[("error.relative", "network"), ["1st", "2nd"]].tolist() == ["e  0.125", "b  0.250"]
    higher = frame(row("a", "direction.cosine", 0.5), row("b", "direction.cosine", 0.75))
    assert ranked(higher).set_index("metric").loc["direction.cosine", "1st"] == "b  0.750"


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    return views.ranking(summary.table(rows, "toy"), summary.columns(rows, "toy"))


def test_two_problems_of_different_sizes_are_no_sweep() -> None:
    rows = frame(row("a", "error.relative", 1.0, problem="x"), row("a", "error.relative", 1.0, problem="y", seed=1))
    known = {cell: {"problem.samples": size} for cell, size in zip(rows["cell_id"], (8, 16), strict=True)}
    assert views.parameters(rows, known) == []
    assert views.parameters(rows.assign(problem="x"), known) == ["problem.samples"]


def test_a_row_without_a_metric_says_how_its_cell_ended() -> None:
    ended = row("a", "", None, "", status="error", reason="the step is NaN")
    (shown,) = views.cells(frame(row("a", "error.relative", 0.5), ended)).to_dict("records")
    assert (shown["status"], shown["reason"]) == ("error", "the step is NaN")


def test_a_distance_from_one_that_is_rounding_is_zero() -> None:
    """The cosine of a step with itself may be 1 + 2e-16: a negative distance would turn an axis linear."""
    rows = pd.DataFrame(
        {
            "metric": "direction.cosine",
            "scope": "network",
            "status": "ok",
            "value": [1 + 2.3e-16, 0.25],
            "probe": ["full", "kfac"],
            "probe_args": "",
        }
    )
    medians = views.values(rows, views.Quantity("direction.cosine", "network"))["median"]
    assert list(medians) == [0.0, 0.75]

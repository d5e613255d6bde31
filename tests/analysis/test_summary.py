from __future__ import annotations

import io
import math
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from curvbench.analysis import frames, summary
from curvbench.report import terminal


def row(probe: str, metric: str, value: float | None, scope: str = "network", **other: Any) -> dict[str, Any]:
    common = {"problem": "toy", "problem_args": "epochs=2", "probe_args": "", "seed": 0, "status": "ok", "reason": ""}
    common |= {"cell_id": probe, "epoch": 2, "started_at": datetime.now(UTC), "method": "", "parameters": "all"}
    return common | {"probe": probe, "metric": metric, "value": value, "scope": scope} | other


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows)).astype({"epoch": "Int64"})


ROWS = frame(
    row("a", "error.relative", 0.5, method="exact Fisher"),
    row("a", "error.relative", 0.25, "layer blocks"),
    row("a", "direction.cosine", 0.9),
    row("a", "flops.ratio", 12.34, "step"),
    row("b", "error.relative", 0.125, probe_args="rank=3"),
    row("b", "direction.cosine", 0.95, probe_args="rank=3"),
    row("c", "", None, "", status="timeout", reason="too slow"),
    row("a", "problem.samples", 64.0),
    row("a", "problem.parameters", 11173962.0),
    row("a", "error.off_block", 0.275),
    row("z", "error.relative", 1e-9, problem="other"),
)
TOY = "toy[epochs=2]"


def text(shown: Table, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(console, shown)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_one_row_per_probe_and_one_column_per_number() -> None:
    table = summary.table(ROWS, TOY)
    assert list(table.index) == ["a", "b[rank=3]", "c"]
    assert table.loc["a", "error.relative (network)"] == 0.5
    assert table.loc["a", "error.relative (layer blocks)"] == 0.25
    assert table.loc["a", "flops.ratio (step)"] == 12.34
    assert table.loc["c"].isna().all()
    assert len(table.columns) == len(summary.COLUMNS)


def test_problems_in_the_order_of_the_rows() -> None:
    assert frames.problems(ROWS) == [TOY, "other[epochs=2]"]


def test_the_best_of_each_column_by_its_own_direction() -> None:
    best = summary.best(summary.table(ROWS, TOY))
    assert best["error.relative (network)"].to_dict() == {"a": False, "b[rank=3]": True, "c": False}
    assert best["direction.cosine (network)"].to_dict() == {"a": False, "b[rank=3]": True, "c": False}
    assert not best["time.ratio (step)"].any()


def test_what_looks_the_same_is_equally_good() -> None:
    rows = frame(row("a", "error.relative", 0.50001), row("b", "error.relative", 0.5), row("c", "error.relative", 0.51))
    assert summary.best(summary.table(rows, TOY))["error.relative (network)"].tolist() == [True, True, False]


def test_medians_and_half_the_range_over_seeds() -> None:
    rows = frame(*(row("a", "error.relative", v, seed=s) for s, v in enumerate([1.0, 2.0, 4.0])))
    assert summary.table(rows, TOY).loc["a", "error.relative (network)"] == 2.0
    assert summary.spread(rows, TOY).loc["a", "error.relative (network)"] == 1.5
    assert math.isnan(summary.spread(ROWS, TOY).loc["a", "error.relative (network)"])
    assert "median of 3 seeds ± half the range" in summary.title(rows, TOY)
    assert "±1.50" in text(terminal.summary_table(rows, TOY))


def test_the_title_says_how_large() -> None:
    expected = (
        "toy[epochs=2], N = 64, P = 11,173,962, all parameters, epochs = 2, F: exact Fisher, "
        "outside layer blocks = 27.5% of |F|^2"
    )
    assert summary.title(ROWS, TOY) == expected


def test_the_title_says_what_is_covered() -> None:
    rows = [row("a", "coverage.parameters", 0.972, parameters="weights", reason="left out: 'bn.weight'")]
    assert summary.title(frame(*rows), TOY) == "toy[epochs=2], weights only, covering 97.2%, epochs = 2"


def test_rows_of_all_parameters_and_of_weights_are_of_two_contenders() -> None:
    rows = [row("a", "error.relative", value, parameters=kind) for kind, value in (("all", 0.5), ("weights", 0.25))]
    table = summary.table(frame(*rows), TOY)["error.relative (network)"]
    assert table.to_dict() == {"a {parameters=all}": 0.5, "a {parameters=weights}": 0.25}
    assert "all parameters, weights only" in summary.title(frame(*rows), TOY)


@pytest.mark.parametrize("width", [60, 80, 100, 1000])
def test_numbers_are_never_cut(width: int) -> None:
    args = {"probe_args": "fisher_type=empirical,x=1e-3"}
    rows = [row("kfac", column.metric, -1.234e-12, column.scope, **args) for column in summary.COLUMNS]
    shown = text(terminal.summary_table(frame(*rows), TOY), width)
    assert shown.count("-1.2e-12") == len(summary.COLUMNS)
    assert "…" not in shown


def test_a_usual_table_fits_80_columns() -> None:
    values = {"error": 1.2e-16, "direction": 0.9876, "flops": 12345.6, "memory": 123.4, "time": 12.34}
    args = {"probe_args": "fisher_type=empirical,kfac_approx=reduce"}
    rows = [row("kfac", c.metric, values[c.metric.split(".")[0]], c.scope, **args) for c in summary.COLUMNS]
    assert max(map(len, text(terminal.summary_table(frame(*rows), TOY), 80).splitlines())) <= 80


def test_statuses_are_shown_in_place_of_numbers() -> None:
    assert "c  timeout" in text(terminal.summary_table(ROWS, TOY), 200)


def test_names_are_no_markup() -> None:
    rows = frame(row("a", "error.relative", 1.0, probe_args="name=[/red]"))
    assert "a[name=[/red]]" in text(terminal.summary_table(rows, TOY), 200)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (0.80449, "0.804"),
        (0.0039, "0.00390"),
        (12.345, "12.3"),
        (123.4, "123"),
        (999.6, "1000"),
        (12345.6, "12346"),
        (1.234e7, "1.2e7"),
        (1.1e-16, "1.1e-16"),
        (-24.93, "-24.9"),
        (math.nan, ""),
        (math.inf, "inf"),
    ],
)
def test_three_digits(value: float, shown: str) -> None:
    assert summary.digits(value) == shown


def test_the_digest_gives_reason_and_command() -> None:
    rows = frame(
        row("a", "error.relative", 1.0),
        row("b", "", None, "", status="error", reason="boom"),
        row("c", "", None, "", status="error", reason="boom"),
        row("d", "error.spectral", None, status="unsupported", reason="no eigenvalues"),
    )
    assert summary.digest(rows, {"b": "curvbench run s -p b", "c": "curvbench run s -p c"}) == [
        "error: boom",
        "    b on toy[epochs=2], seed 0",
        "      curvbench run s -p b",
        "    c on toy[epochs=2], seed 0",
        "      curvbench run s -p c",
        "unsupported: error.spectral: no eigenvalues",
        "    d on toy[epochs=2], seed 0",
    ]
    assert summary.digest(rows[:1], {}) == []


def test_a_command_that_all_cells_share_comes_once() -> None:
    rows = frame(
        *(row(name, "", None, "", status="error", reason="boom") for name in "ab"),
        row("c", "", None, "", status="timeout", reason="late"),
    )
    assert summary.digest(rows, dict.fromkeys("abc", "all")) == [
        "error: boom",
        "    a on toy[epochs=2], seed 0",
        "    b on toy[epochs=2], seed 0",
        "timeout: late",
        "    c on toy[epochs=2], seed 0",
        "all of these again: all",
    ]


def trained(probe: str, seed: int = 0, pace: float = 1.0, status: str = "ok", **other: Any) -> list[dict[str, Any]]:
    """Three epochs, the third without a value where the training has diverged."""
    common = {"seed": seed, "cell_id": f"{probe}{seed}{other}", "method": "lr=0.1"} | other
    rows = [row(probe, "test.accuracy", 0.1, epoch=0, **common)]
    for epoch in (1, 2, 3) if status == "ok" else (1, 2):
        rows.append(row(probe, "test.accuracy", 0.2 * epoch, epoch=epoch, **common))
        rows.append(row(probe, "train.seconds", pace * epoch, epoch=epoch, **common))
    if status != "ok":
        rows.append(row(probe, "", None, "", status=status, reason="the loss is nan", epoch=3, **common))
    return rows


def test_trainings_show_their_last_epoch_and_their_pace() -> None:
    rows = frame(*trained("sgdm", pace=2.0), *trained("kfac", pace=6.0), *trained("adam", status="diverged"))
    table = summary.table(rows, TOY)
    assert table["test.accuracy (network)"].tolist() == pytest.approx([0.6, 0.6, math.nan], nan_ok=True)
    assert table["train.seconds (network)"].tolist()[:2] == [6.0, 18.0]
    assert table[f"{summary.PACE} (network)"].tolist()[:2] == [1.0, 3.0]
    assert table.loc["adam"].isna().all(), "what came before the end is in the rows, and no result"
    assert summary.statuses(rows, TOY).to_dict() == {"sgdm": "ok", "kfac": "ok", "adam": "diverged"}
    assert summary.title(rows, TOY) == "toy[epochs=2], all parameters, trained from epoch 0 to 3"
    assert summary.legend(rows) == summary.TRAINED_LEGEND != summary.legend(ROWS)
    assert "adam  diverged" in text(terminal.summary_table(rows, TOY), 200)


def test_the_pace_is_against_the_same_seed() -> None:
    rows = [*trained("sgdm", 0, 1.0), *trained("sgdm", 1, 10.0), *trained("kfac", 0, 3.0), *trained("kfac", 1, 50.0)]
    assert summary.table(frame(*rows), TOY).loc["kfac", f"{summary.PACE} (network)"] == 4.0


def test_without_sgd_there_is_no_pace() -> None:
    assert f"{summary.PACE} (network)" not in summary.table(frame(*trained("kfac")), TOY)


def test_where_one_of_two_ways_diverged_the_other_keeps_its_numbers() -> None:
    rows = frame(*trained("kfac", method="lr=0.1"), *trained("kfac", status="diverged", method="lr=9"))
    table = summary.table(rows, TOY)
    assert table["test.accuracy (network)"].to_dict() == pytest.approx(
        {"kfac {lr=0.1}": 0.6, "kfac {lr=9}": math.nan}, nan_ok=True
    )


def test_where_all_diverged_there_is_a_row_without_numbers() -> None:
    rows = frame(*trained("kfac", status="diverged"))
    assert list(summary.table(rows, TOY).index) == ["kfac"]
    assert "kfac  diverged" in text(terminal.summary_table(rows, TOY), 200)


def test_a_probe_that_trained_in_two_ways_has_two_rows() -> None:
    rows = frame(*trained("kfac", method="lr=0.1"), *trained("kfac", method="lr=0.3"), *trained("sgdm"))
    assert list(summary.table(rows, TOY).index) == ["kfac {lr=0.1}", "kfac {lr=0.3}", "sgdm"]


def test_a_missed_target_is_no_failure_and_comes_once() -> None:
    missed = {"status": "unsupported", "reason": "not reached", "epoch": 3, "cell_id": "kfac0{}", "method": "lr=0.1"}
    rows = frame(
        *trained("kfac"),
        row("kfac", "train.epochs_to_target", None, **missed),
        row("kfac", "train.seconds_to_target", None, **missed),
    )
    assert summary.statuses(rows, TOY).to_dict() == {"kfac": "ok"}
    assert summary.digest(rows, {}) == [
        "unsupported: train.epochs_to_target, train.seconds_to_target: not reached",
        "    kfac on toy[epochs=2], seed 0",
    ]


def test_a_table_of_trainings_fits_100_columns() -> None:
    rows = [row("kfac", c.metric, 12345.6, c.scope, probe_args="damping=0.03", method="") for c in summary.TRAINED]
    shown = text(terminal.summary_table(frame(*rows), TOY), 100)
    assert max(map(len, shown.splitlines())) <= 100


def test_a_surrogate_is_called_so_in_the_title_and_nowhere_else() -> None:
    trained = [
        row(
            "kfac",
            "test.accuracy",
            0.9,
            epoch=k,
            problem_args="epochs=2",
            method=f"surrogate, lr={lr}",
            cell_id=str(lr),
        )
        for lr in (0.1, 0.2)
        for k in (0, 1)
    ]
    measured = [row("kfac", "error.relative", 0.5, problem_args="epochs=2", method="surrogate, exact Fisher")]
    for rows in (frame(*trained), frame(*measured)):
        assert summary.title(rows, TOY).startswith("toy[epochs=2], SURROGATE of a published experiment, ")
    assert summary.title(frame(*measured), TOY).endswith("F: exact Fisher")
    assert list(summary.table(frame(*trained), TOY).index) == ["kfac {lr=0.1}", "kfac {lr=0.2}"]


def test_trainings_are_told_apart_by_what_differs_within_problem_and_probe() -> None:
    ways = {"a": "epochs=3,lr=0.1,batch=8", "b": "epochs=3,lr=0.3,batch=8", "c": "surrogate, epochs=3,lr=0.3,batch=8"}
    rows = [row("kfac", "test.loss", 1.0, cell_id=cell, method=way) for cell, way in ways.items()]
    rows += [row("kfac", "test.loss", 1.0, cell_id="d", method="epochs=3,batch=8", problem="other")]
    rows += [row("kfac", "", None, cell_id="e", status="diverged"), row("sgdm", "test.loss", 1.0, method="lr=9")]
    assert list(summary.contenders(frame(*rows))) == ["kfac {lr=0.1}", *["kfac {lr=0.3}"] * 2, "kfac", "kfac", "sgdm"]
    missing = frame(*rows[:2], row("kfac", "test.loss", 1.0, cell_id="f", method="epochs=3,batch=8"))
    assert list(summary.contenders(missing)) == ["kfac {lr=0.1}", "kfac {lr=0.3}", "kfac"]


def test_the_title_names_the_damping_of_the_directions() -> None:
    methods = ("exact Fisher, damping 0.001", "exact Fisher, damping 0.001, own damping (none, or 2)")
    rows = [row(probe, "direction.quality", 0.5, method=text) for probe, text in zip("ab", methods, strict=True)]
    shown = summary.title(frame(row("a", "error.relative", 0.5, method="exact Fisher"), *rows), TOY)
    assert shown == "toy[epochs=2], all parameters, epochs = 2, F: exact Fisher, damping 0.001"


def test_qualities_stand_in_the_table_in_place_of_a_decrease_that_ranks_lengths() -> None:
    shown = {(column.metric, column.scope) for column in summary.COLUMNS}
    assert {("direction.quality", "network"), ("direction.gap_closed", "network")} <= shown
    assert "direction.decrease" not in {metric for metric, _ in shown}


def test_a_cell_that_ends_in_an_error_has_one_line_for_it() -> None:
    said = {"status": "error", "reason": "the step is NaN"}
    rows = frame(
        row("a", "error.relative", 0.5),
        row("a", "direction.quality", None, **said),
        row("a", "direction.length", None, **said),
        row("a", "health.condition", None, status="skipped", reason="singular"),
        row("a", "", None, "", **said),
    )
    assert summary.failures(rows)[["status", "reason"]].to_numpy().tolist() == [
        ["error", "the step is NaN"],
        ["skipped", "health.condition: singular"],
    ]
    assert summary.statuses(rows, TOY)["a"] == "error"
    assert summary.table(rows, TOY).loc["a", "error.relative (network)"] == 0.5


def test_quality_with_rates_is_shown_beside_a_method_that_sets_lengths() -> None:
    rows = [row("kfac", "direction.quality", 0.5), row("kfac", "direction.quality_rates", 0.625)]
    muon = row("muon", "direction.quality_rates", 0.75, probe_args="momentum=0.5")
    alone, beside = frame(*rows), frame(*rows, muon)
    assert "by rates" not in text(terminal.summary_table(alone, TOY)) and "by rates" not in summary.legend(alone)
    shown = text(terminal.summary_table(beside, TOY), 200)
    assert "by rates" in shown and "0.625" in shown and "0.750*" in shown.replace(" ", "")
    assert "by rates: quality with the best rate for every layer" in summary.legend(beside)
    headings = [column.heading for column in summary.columns(beside, TOY)]
    assert headings.index("quality\nby rates") == headings.index("step\nquality") + 1
    strange = frame(*rows, muon | {"probe_args": "no_such_field=1"}, muon | {"probe": "not_installed"})
    assert len(summary.columns(strange, TOY)) == len(summary.COLUMNS)

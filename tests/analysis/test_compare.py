from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fake_measure import Fake, Toy
from frames import failed_cell, write_run
from regressions import IMPROVED, PLANTED, PROBES, Change, cell, rounds, run

from curvbench import store
from curvbench.analysis.compare import compare, described, differences, pivot
from curvbench.analysis.limits import with_thresholds
from curvbench.spec import Row, Status

Changes = dict[str, tuple[str, str, Change]]


@pytest.fixture
def base(tmp_path: Path) -> pd.DataFrame:
    return run(tmp_path / "base", "r1")


def verdicts(table: pd.DataFrame) -> set[str]:
    return set(table["verdict"])


def test_a_run_against_itself(base: pd.DataFrame) -> None:
    table = compare(base, base)
    judged = table[~table["metric"].str.startswith("time.")]
    assert verdicts(judged) == {"equal"}
    assert len(pivot(table)) == 0


@pytest.mark.parametrize("kind", ["flops", "memory", "error"])
@pytest.mark.parametrize(("changes", "verdict"), [(PLANTED, "worse"), (IMPROVED, "better")])
def test_a_planted_change_is_found_alone(
    kind: str, changes: Changes, verdict: str, base: pd.DataFrame, tmp_path: Path
) -> None:
    table = compare(base, run(tmp_path, "r2", changes[kind]))
    metric, scope, change = changes[kind]
    (found,) = table[table["verdict"] == verdict].to_dict("records")
    assert (found["metric"], found["scope"], found["probe"]) == (metric, scope, "Fake")
    assert found["b"] == change(found["a"])
    assert verdicts(table) <= {"equal", verdict, "within", "not judged"}


@pytest.mark.parametrize(("changes", "verdict"), [(PLANTED, "worse"), (IMPROVED, "better"), ({"time": None}, "within")])
def test_times_taken_in_turn_are_judged(changes: Changes, verdict: str, base: pd.DataFrame, tmp_path: Path) -> None:
    other = run(tmp_path, "r2", changes["time"])
    table = compare(rounds(base, 3, 0), rounds(other, 3, 5))
    times = table[(table["metric"] == "time.wall") & (table["scope"] == "invert") & (table["probe"] == "Fake")]
    assert times["verdict"].tolist() == [verdict, *["within"] * (len(times) - 1)]
    assert (times["p"].notna() & (times["low"] <= 1 + times["change"])).all()


def test_times_that_were_not_taken_in_turn_are_not_judged(base: pd.DataFrame, tmp_path: Path) -> None:
    other = run(tmp_path, "r2", PLANTED["time"])
    table = compare(base, rounds(other, 1, 30))
    times = table[table["metric"].str.startswith("time.")]
    assert verdicts(times) == {"not judged"}
    assert set(times["reason"]) == {"not taken in turn: one side was measured wholly before the other"}


def test_four_samples_are_too_few(base: pd.DataFrame) -> None:
    short = base.assign(samples=[s[:4] for s in base["samples"]])
    times = compare(base, short).query("metric == 'time.wall'")
    assert set(times["reason"]) == {"5 and 4 samples: at least 5 per side are needed"}


def test_rounding_is_no_change_and_a_threshold_moves_the_limit(base: pd.DataFrame, tmp_path: Path) -> None:
    change = ("error.relative", "network", lambda v: v * (1 + 5e-5))
    other = run(tmp_path, "r2", change)
    table = compare(base, other)
    assert verdicts(table[table["metric"] == "error.relative"]) == {"equal", "within"}
    assert "worse" not in verdicts(table)
    tight = compare(base, other, with_thresholds(["error=1e-6"]))
    assert tight["verdict"].value_counts()["worse"] == 1
    loose = compare(base, run(tmp_path, "r3", PLANTED["flops"]), with_thresholds(["flops=0.02"]))
    assert "worse" not in verdicts(loose)


def test_a_value_that_is_no_number_is_lost(base: pd.DataFrame, tmp_path: Path) -> None:
    table = compare(base, run(tmp_path, "r2", ("error.relative", "network", lambda v: float("nan"))))
    (lost,) = table[table["verdict"] == "only in A"].to_dict("records")
    assert lost["reason"] == "no value in B"


def test_cells_on_one_side_say_why(tmp_path: Path) -> None:
    gone, new, failed, sick = (Fake(name) for name in ("gone", "new", "failed", "sick"))
    a = [(p, Toy(), cell()) for p in (Fake(), gone, failed)] + [(sick, Toy(), failed_cell(Status.ERROR, "no"))]
    b = [(p, Toy(), cell()) for p in (Fake(), new)] + [(p, Toy(), failed_cell()) for p in (failed, sick)]
    table = compare(store.load(write_run(tmp_path, "a", a)), store.load(write_run(tmp_path, "b", b)))
    whole = table[table["metric"] == ""].set_index("probe")[["verdict", "reason"]]
    assert whole.T.to_dict("list") == {
        "Fake[does=gone]": ["only in A", "not run"],
        "Fake[does=failed]": ["only in A", "timeout: not finished in 4 s"],
        "Fake[does=new]": ["only in B", "not run"],
        "Fake[does=sick]": ["changed", "error: no; then timeout: not finished in 4 s"],
    }
    assert set(table.loc[table["metric"] != "", "probe"]) == {"Fake"}
    assert described(table)["metric"].str.startswith(("whole cell", "error", "flops", "problem")).any()


def test_metrics_that_one_side_does_not_know_are_not_judged(base: pd.DataFrame) -> None:
    table = compare(base, base[base["metric"] != "direction.cosine"])
    (reason,) = set(table.loc[table["metric"] == "direction.cosine", "reason"])
    assert reason == "B has no such metric in any cell"
    assert "only in A" not in verdicts(table)


def test_a_metric_that_one_cell_has_lost_is_lost(base: pd.DataFrame) -> None:
    table = compare(base, base[(base["metric"] != "direction.cosine") | (base["probe_args"] != "")])
    assert table.loc[table["metric"] == "direction.cosine", "verdict"].value_counts().to_dict() == {
        "equal": len(PROBES) - 1,
        "only in A": 1,
    }


@pytest.mark.parametrize(
    ("column", "value", "families"),
    [
        ("torch_version", "2.14.0", {"memory", "flops"}),
        ("flop_model", "0", {"flops"}),
        ("dtype", "float32", {"memory", "flops", "error", "direction", "time", "problem"}),
        ("parameters", "weights", {"memory", "flops", "error", "direction", "time", "problem"}),
        ("device_name", "another", {"time"}),
    ],
)
def test_what_differs_is_said_and_not_judged(column: str, value: str, families: set[str], base: pd.DataFrame) -> None:
    other = base.assign(value=base["value"] * 1.5, **{column: value})
    assert set(differences(base, other)) == {column}
    table = compare(base, other)
    unjudged = table[table["reason"].str.startswith(f"{column}: ")]
    assert {metric.split(".")[0] for metric in unjudged["metric"]} == families
    assert verdicts(unjudged) == {"not judged"}


def test_a_side_with_both_choices_of_parameters_is_not_judged(base: pd.DataFrame) -> None:
    both = pd.concat([base, base.assign(parameters="weights", value=base["value"] * 1.5)])
    assert differences(both, both) == {"parameters": ("all, weights", "all, weights")}


def test_local_builds_of_torch_are_alike(base: pd.DataFrame) -> None:
    assert differences(base.assign(torch_version="2.13.0+cpu"), base.assign(torch_version="2.13.0")) == {}


def test_suites_are_compared_apart(base: pd.DataFrame) -> None:
    both = pd.concat([base, base.assign(suite="other", value=base["value"] * 2)])
    table = compare(both, base)
    assert table.groupby("suite", sort=False)["verdict"].agg(lambda v: "only in A" in set(v)).to_dict() == {
        "s": False,
        "other": True,
    }


def test_the_pivot_shows_what_changed(base: pd.DataFrame, tmp_path: Path) -> None:
    table = compare(base, run(tmp_path, "r2", PLANTED["error"]))
    (row,) = pivot(table).to_dict("records")
    assert row["error.relative (network)"] == "+0.10% worse"
    assert row["error.relative (layer blocks)"] == "="
    assert list(pivot(table, [("error.relative", "network")]).columns)[3:] == ["error.relative (network)"]


def test_nothing_to_compare(base: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="B has no rows"):
        compare(base, base.head(0))
    other = run(tmp_path, "r2", probes=[Fake("strange")])
    with pytest.raises(ValueError, match=r"share no cell: A has Fake on Toy, seed 0, .*; B has Fake\[does=strange\]"):
        compare(base, other)


def test_from_zero_there_is_no_percentage(tmp_path: Path) -> None:
    sides = [
        store.load(write_run(tmp_path, name, [(Fake(), Toy(), [Row("error.relative", value)])]))
        for name, value in (("a", 0.0), ("b", 0.5))
    ]
    assert described(compare(*sides))["change"].tolist() == ["0 to 0.500"]

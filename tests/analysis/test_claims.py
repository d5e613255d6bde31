"""Verdicts on claims, from made-up rows of which the answer is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from frames import START, frame, row

from curvbench.analysis import claims
from curvbench.analysis.claims import Ruling, Verdict
from curvbench.analysis.papers import Claim, Column, Entry, Experiment

HOLDS, DIRECTION, REFUTED, UNDECIDED, NOT_MEASURED = Verdict
ACC = Column("%", "test.accuracy", take="best", scale=100)
TIME = Column("s", "train.seconds_to_target")
ROWS = {
    "K": Entry("kfac", values={"acc": 90.0, "time": 10.0}),
    "A": Entry("adam", values={"acc": 80.0, "time": 20.0}),
    "S": Entry("sgdm", values={"acc": 70.0, "time": 40.0}),
    "X": Entry(absent="there is none", values={"acc": 85.0, "time": 15.0}),
    "best": Entry(of=("K", "A"), take="best"),
    "mean": Entry(of=("K", "A"), take="mean"),
    "range": Entry(of=("K", "A"), take="range"),
}


def experiment(
    claim: Claim, columns: Mapping[str, Column] | None = None, rows: Mapping[str, Entry] = ROWS
) -> Experiment:
    known = columns or {"acc": ACC, "time": TIME}
    return Experiment("x", "P", "Table 1", "caption", "setting", known, rows, [claim])


def accuracies(surrogate: bool = False, **values: Sequence[float]) -> pd.DataFrame:
    """A cell per probe and seed whose test accuracy reaches the value in its first epoch and falls in its second."""
    method = "surrogate, lr=0.1" if surrogate else "lr=0.1"
    return frame(
        *(
            row(probe, "test.accuracy", value - fall, suite="x", seed=seed, epoch=epoch, method=method)
            for probe, several in values.items()
            for seed, value in enumerate(several)
            for epoch, fall in ((0, 0.5), (1, 0.0), (2, 0.01))
        )
    )


def rule(claim: Claim, cells: pd.DataFrame, **other: Any) -> Ruling:
    (found,) = claims.judge(cells, [experiment(claim, **other)])
    return found.original


@pytest.mark.parametrize(
    ("kfac", "adam", "verdict"),
    [
        ((0.9, 0.92, 0.91), (0.8, 0.82, 0.81), HOLDS),
        ((0.9, 0.92, 0.91), (0.88, 0.89, 0.89), DIRECTION),  # two points, where the paper has ten
        ((0.9, 0.92, 0.80), (0.8, 0.82, 0.81), DIRECTION),  # the ranges over seeds meet
        ((0.8, 0.82, 0.81), (0.9, 0.92, 0.91), REFUTED),
        ((0.8, 0.91, 0.81), (0.9, 0.92, 0.91), UNDECIDED),  # the other way round, but the ranges meet
        ((0.8, 0.8, 0.8), (0.8, 0.8, 0.8), UNDECIDED),
    ],
)
def test_verdict_on_medians_ranges_and_size(kfac: Sequence[float], adam: Sequence[float], verdict: Verdict) -> None:
    found = rule(Claim("t", ["K.acc", "A.acc"], ">"), accuracies(kfac=kfac, adam=adam))
    assert found.verdict is verdict, found


def test_measured_are_median_and_range_over_seeds() -> None:
    found = rule(Claim("t", ["K.acc", "A.acc"], ">"), accuracies(kfac=(0.9, 0.92, 0.91), adam=(0.8,)))
    assert found.measured == "K 91.0 [90.0, 92.0], A 80.0" and found.seeds == 1


def test_factors_count_where_no_score_is_compared() -> None:
    """The paper's factor is 2: half of its effect is a factor of the root of 2."""
    claim = Claim("t", ["K.time", "A.time"], "<")
    for slower, verdict in ((1.5, HOLDS), (1.3, DIRECTION)):
        times = {"kfac": 1.0, "adam": slower}
        cells = frame(
            *(row(p, "train.seconds_to_target", v, suite="x", seed=s) for p, v in times.items() for s in range(3))
        )
        assert rule(claim, cells).verdict is verdict


def test_first_is_before_all_others_whatever_their_order() -> None:
    cells = accuracies(kfac=(0.9,) * 3, adam=(0.6,) * 3, sgdm=(0.7,) * 3)
    assert rule(Claim("t", ["K.acc", "A.acc", "S.acc"], ">", "first"), cells).verdict is HOLDS
    refuted = rule(Claim("t", ["K.acc", "A.acc", "S.acc"], ">"), cells)
    assert refuted.verdict is REFUTED
    assert refuted.reason == "A 60.0 < S 70.0; 10 apart, 5 asked; 3 common seeds"


def test_a_method_that_there_is_not_is_left_out_and_named() -> None:
    found = rule(Claim("t", ["K.acc", "X.acc", "A.acc"], ">"), accuracies(kfac=(0.9,) * 3, adam=(0.8,) * 3))
    assert found.verdict is HOLDS and found.reason.endswith("; without X") and len(found.readings) == 2
    alone = rule(Claim("t", ["K.acc", "X.acc"], ">"), accuracies(kfac=(0.9,) * 3))
    assert (alone.verdict, alone.reason) == (NOT_MEASURED, "without X")
    headless = rule(Claim("t", ["X.acc", "K.acc", "A.acc"], ">", "first"), accuracies(kfac=(0.9,) * 3, adam=(0.8,) * 3))
    assert (headless.verdict, headless.reason) == (NOT_MEASURED, "without X")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(None, "A: not run"), (("", "diverged"), "A: diverged"), (("", "oom_host"), "A: oom_host")],
)
def test_what_is_not_there_says_why_and_what_failed_is_undecided(broken: tuple[str, str] | None, reason: str) -> None:
    cells = accuracies(kfac=(0.9,))
    if broken:
        cells = pd.concat([cells, frame(row("adam", broken[0], None, suite="x", status=broken[1]))])
    found = rule(Claim("t", ["K.acc", "A.acc"], ">"), cells)
    assert (found.verdict, found.reason) == (UNDECIDED if broken else NOT_MEASURED, reason)


def test_what_is_there_refutes_even_if_another_is_missing() -> None:
    found = rule(Claim("t", ["K.acc", "A.acc", "S.acc"], ">", "first"), accuracies(kfac=(0.7,) * 3, adam=(0.9,) * 3))
    assert found.verdict is REFUTED


def test_nothing_of_the_suite_is_not_run_and_other_suites_do_not_count() -> None:
    cells = accuracies(kfac=(0.9,), adam=(0.8,)).assign(suite="y")
    assert rule(Claim("t", ["K.acc", "A.acc"], ">"), cells)[:3] == (NOT_MEASURED, "not run", ())


def test_a_surrogate_never_counts_as_the_original() -> None:
    claim = Claim("t", ["K.acc", "A.acc"], ">")
    cells = pd.concat([accuracies(True, kfac=(0.9,) * 3, adam=(0.8,) * 3), accuracies(kfac=(0.7,))])
    (found,) = claims.judge(cells, [experiment(claim)])
    assert found.surrogate.verdict is HOLDS
    assert (found.original.verdict, found.original.reason) == (NOT_MEASURED, "A: not run")
    assert found.original.measured == "K 70.0"


def test_a_number_of_the_original_is_none_of_its_surrogate() -> None:
    claim = Claim("t", ["K.acc", 50.0], "<", original_only=True)
    cells = pd.concat([accuracies(True, kfac=(0.4,) * 3), accuracies(kfac=(0.9,) * 3)])
    (found,) = claims.judge(cells, [experiment(claim)])
    assert found.surrogate.verdict is NOT_MEASURED and found.original.verdict is REFUTED


def test_the_latest_cell_of_a_probe_problem_and_seed_counts() -> None:
    old, new = accuracies(kfac=(0.5,), adam=(0.8,)), accuracies(kfac=(0.9,))
    new = new.assign(cell_id="new", started_at=START + timedelta(hours=1))
    claim = Claim("t", ["K.acc", "A.acc"], ">")
    assert rule(claim, pd.concat([new, old])).measured == "K 90.0, A 80.0"


def test_two_settings_of_a_row_are_not_chosen_between() -> None:
    cells = pd.concat([accuracies(kfac=(0.9,), adam=(0.8,)), accuracies(kfac=(0.5,)).assign(problem_args="n=2")])
    cells.loc[cells["problem_args"] != "", "cell_id"] = "other"
    found = rule(Claim("t", ["K.acc", "A.acc"], ">"), cells)
    assert found.verdict is NOT_MEASURED and "2 settings match" in found.reason


@pytest.mark.parametrize(("name", "value"), [("best", 90.0), ("mean", 85.0), ("range", 10.0)])
def test_groups_are_blended_seed_by_seed(name: str, value: float) -> None:
    claim = Claim("t", [f"{name}.acc", value], "~", slack=1e-9)
    cells = accuracies(kfac=(0.9, 0.7, 0.9), adam=(0.8, 0.8, 0.8))
    assert rule(claim, cells).verdict is HOLDS
    assert rule(Claim("t", [f"{name}.acc", value + 0.1], "~", slack=1e-9), cells).verdict is REFUTED


def test_ratios_are_taken_seed_by_seed_and_the_first_epoch_can_stand_apart() -> None:
    """Kfac takes 5 s for its first epoch and 2 for each other one, sgdm always 1."""
    seconds = {"kfac": (5.0, 7.0, 9.0), "sgdm": (1.0, 2.0, 3.0)}
    cells = frame(
        *(row(p, "test.loss", 1.0, suite="x", seed=seed) for p in seconds for seed in range(3)),
        *(
            row(p, "train.seconds", v, suite="x", epoch=n, seed=seed)
            for p, vs in seconds.items()
            for n, v in enumerate(vs, 1)
            for seed in range(3)
        ),
    )
    for take, expected in (("per epoch", 3.0), ("per later epoch", 2.0), ("last", 3.0)):
        columns = {"pace": Column("x", "train.seconds", take=take, over="S")}  # type: ignore[arg-type]
        rows = {"K": Entry("kfac"), "S": Entry("sgdm")}
        claim = Claim("t", ["K.pace", expected], "~", slack=1e-9)
        assert rule(claim, cells, columns=columns, rows=rows).verdict is HOLDS, take


@pytest.mark.parametrize(
    ("label", "selector", "fits"),
    [
        ("ginger", "ginger", True),
        ("ginger[rank=4]", "ginger[rank=4]", True),
        ("ginger", "ginger[rank=16]", True),  # the default
        ("ginger[rank=4,damping=0.1]", "ginger[rank=16]", False),
        ("ginger[decay=0.9]", "ginger[decay=0.90]", True),
        ("fngd[accelerated=False]", "fngd[accelerated=false]", True),
        ("fngd", "fngd[accelerated=false]", False),
        ("qng", "ginger", False),
        ("resnet[depth=18,width=4]", "resnet[depth=18]", True),
    ],
)
def test_rows_match_cells_by_name_and_hyperparameters(label: str, selector: str, fits: bool) -> None:
    assert claims.fits(label, selector) is fits


def test_exponents_are_fitted_over_the_width_of_the_sweep() -> None:
    """A cost of 3 D^2."""
    rows = [
        row("kfac", metric, 3.0 * n**2 if metric == "flops.counted" else 0.0, "invert", suite="x", problem="chain",
            problem_args=f"width={n},samples=2")
        for n in (32, 64, 128)
        for metric in ("flops.counted", "flops.passes")
    ]  # fmt: skip
    cells = frame(*(r | {"cell_id": r["problem_args"]} for r in rows))
    columns, entries = {"inverse": Column("1", exponent="invert")}, {"K": Entry("kfac")}
    for number, verdict in ((2.0, HOLDS), (3.0, REFUTED)):
        claim = Claim("t", ["K.inverse", number], "~", slack=0.25)
        assert rule(claim, cells, columns=columns, rows=entries).verdict is verdict


@pytest.mark.parametrize(
    ("kfac", "adam", "verdict"),
    [
        (0.90, 0.89, DIRECTION),
        (0.90, 0.85, HOLDS),  # a factor of 1.059
        (0.85, 0.90, REFUTED),
        (0.89, 0.90, UNDECIDED),
    ],
)
def test_a_stand_in_metric_is_held_against_a_ratio_and_not_the_papers_effect(
    kfac: float, adam: float, verdict: Verdict
) -> None:
    """A hundredth of accuracy is no hundredth of BLEU: of the paper's ten points half would be asked for."""
    columns = {"acc": Column("BLEU", "test.bleu", stand_in="test.accuracy", take="best")}
    cells = accuracies(True, kfac=(kfac,) * 3, adam=(adam,) * 3)
    (found,) = claims.judge(cells, [experiment(Claim("t", ["K.acc", "A.acc"], ">"), columns=columns)])
    assert found.surrogate.verdict is verdict


def test_a_number_of_a_claim_is_shown_once() -> None:
    found = rule(Claim("t", ["K.acc", 50.0], "<"), accuracies(kfac=(0.9,) * 3))
    assert (found.verdict, found.measured) == (REFUTED, "K 90.0")
    assert found.reason == "K 90.0 > 50.0; a factor of 1.8, 1.05 asked; 3 seeds"


def test_a_stand_in_is_not_taken_where_the_papers_metric_was_measured() -> None:
    columns = {"acc": Column("BLEU", "test.bleu", stand_in="test.accuracy", take="best")}
    scores = [
        row(probe, "test.bleu", value, suite="x", epoch=2, method="surrogate", seed=seed)
        for probe, value in (("kfac", 3.0), ("adam", 9.0))
        for seed in range(3)
    ]
    cells = frame(*accuracies(True, kfac=(0.9,) * 3, adam=(0.89,) * 3).to_dict("records"), *scores)
    (found,) = claims.judge(cells, [experiment(Claim("t", ["K.acc", "A.acc"], ">"), columns=columns)])
    assert found.surrogate.measured == "K 3.00, A 9.00" and found.surrogate.verdict is REFUTED


def test_the_cost_of_tuning_is_that_of_all_trials_of_a_row() -> None:
    rows = [
        row("kfac", "train.seconds", seconds, suite="x.tuning", cell_id=name, epoch=epoch, probe_args=f"damping={name}")
        for name in ("0.1", "0.3")
        for epoch, seconds in ((1, 2.0), (2, 5.0))
    ]
    rows.append(row("adam", "", None, suite="x.tuning", cell_id="lost", status="diverged"))
    rows.append(row("adam", "train.seconds", 9.0, suite="x", cell_id="no trial", epoch=1))
    known = experiment(Claim("t", ["K.acc", "A.acc"], ">"))
    assert list(map(str, claims.efforts(frame(*rows), known))) == ["K 2 trials, 10.0 s", "A 1 trials, 0 s"]


def test_the_cost_of_tuning_a_surrogate_stands_apart() -> None:
    kinds = {"original": "lr=0.1", "stand-in": "surrogate, lr=0.1"}
    rows = [
        row("kfac", "train.seconds", seconds, suite="x.tuning", cell_id=kind, method=kinds[kind])
        for kind, seconds in (("stand-in", 3.0), ("original", 20.0))
    ]
    found = claims.efforts(frame(*rows), experiment(Claim("t", ["K.acc", "A.acc"], ">")))
    assert found == [claims.Effort("K", 1, 20.0, False), claims.Effort("K", 1, 3.0, True)]


def test_the_newest_run_of_each_kind_counts_whatever_was_run_later() -> None:
    """A later run with another setting replaces the earlier of its kind, and hides neither the other nor its tuning."""

    def cells(value: float, surrogate: bool, **other: Any) -> pd.DataFrame:
        method = "surrogate" if surrogate else ""
        rows = [row(p, "test.accuracy", v, method=method, **other) for p, v in (("kfac", value), ("adam", 0.5))]
        return frame(*rows)

    runs = [
        cells(0.6, False, suite="x", probe_args="damping=0.1"),
        cells(0.9, False, suite="x"),
        cells(0.7, True, suite="x", probe_args="damping=0.1"),
        cells(0.1, True, suite="x.tuning"),
        cells(0.8, True, suite="x"),
    ]
    chosen = claims.newest(runs)
    assert len(chosen) == 6
    (found,) = claims.judge(chosen, [experiment(Claim("t", ["K.acc", "A.acc"], ">"))])
    assert (found.original.measured, found.surrogate.measured) == ("K 90.0, A 50.0", "K 80.0, A 50.0")
    assert claims.newest([runs[0].iloc[:0]]).empty


PACE = Column("x SGD-m", "pace.ratio", scope="step", beside="pace.flops_ratio")
OVER = Column("x K", "pace.ratio", scope="step", over="K")
LEVEL = Column("epochs", "test.accuracy", level=0.9)


def paces(
    seconds: Mapping[str, Sequence[Sequence[float]]], flops: Mapping[str, float], method: str = "lr=0.1,paced=4"
) -> pd.DataFrame:
    """Cells of clocked steps: a process per entry of ``seconds``, with its samples, and a count of FLOPs."""
    rows = []
    for name, processes in seconds.items():
        for seed, samples in enumerate(processes):
            common = {"suite": "x", "seed": seed, "scope": "step", "method": method, "cell_id": f"paced {name} {seed}"}
            rows.append(row(name, "pace.ratio", sorted(samples)[len(samples) // 2], samples=samples, **common))
            rows.append(row(name, "pace.flops_ratio", flops[name], **common))
    return frame(*rows)


def test_a_claim_about_cost_is_read_from_clocked_steps_and_not_from_a_training() -> None:
    steps = paces({"kfac": [[1.0]] * 3, "adam": [[2.0]] * 3}, {"kfac": 1.0, "adam": 2.0})
    cells = pd.concat([steps, accuracies(kfac=(0.9,) * 3, adam=(0.8,) * 3)], ignore_index=True)
    columns = {"acc": ACC, "pace": PACE}
    found = rule(Claim("t", ["K.pace", "A.pace"], "<"), cells, columns=columns)
    assert found.verdict is HOLDS and "3 processes; FLOPs: K 1.00, A 2.00" in found.reason
    assert rule(Claim("t", ["K.acc", "A.acc"], ">"), cells, columns=columns).verdict is HOLDS
    lone = rule(Claim("t", ["K.pace", "A.pace"], "<"), accuracies(kfac=(0.9,), adam=(0.8,)), columns=columns)
    assert (lone.verdict, lone.reason) == (NOT_MEASURED, "K: not run")


def test_seconds_against_flops_decide_nothing() -> None:
    columns = {"pace": PACE}
    claim = Claim("t", ["K.pace", "A.pace"], "<")
    seconds: Mapping[str, Sequence[Sequence[float]]] = {"kfac": [[1.0]] * 3, "adam": [[2.0]] * 3}
    found = rule(claim, paces(seconds, {"kfac": 2.0, "adam": 1.0}), columns=columns)
    assert found.verdict is UNDECIDED and found.reason.startswith("seconds and FLOPs disagree: K 1.00 < A 2.00")
    equal = rule(claim, paces(seconds, {"kfac": 1.0, "adam": 1.0}), columns=columns)
    assert equal.verdict is HOLDS


def test_a_cell_that_failed_in_the_place_of_clocked_steps_is_a_failure_of_those() -> None:
    broken = frame(*(row("kfac", "", None, suite="x", seed=s, status="oom_host", method="paced=4") for s in range(3)))
    cells = pd.concat([broken, paces({"adam": [[2.0]] * 3}, {"adam": 1.0})], ignore_index=True)
    found = rule(Claim("t", ["K.pace", "A.pace"], "<"), cells, columns={"pace": PACE})
    assert found.verdict is UNDECIDED and "K: oom_host" in found.reason


def test_steps_of_few_processes_are_apart_if_their_intervals_are() -> None:
    """Medians over processes differ, while one process's steps scatter over all of the other method's."""
    claim, columns = Claim("t", ["K.pace", "A.pace"], "<"), {"pace": PACE}
    wide: Mapping[str, Sequence[Sequence[float]]] = {"kfac": [[1.0, 1.0, 9.0]] * 3, "adam": [[1.5, 1.5, 1.6]] * 3}
    assert rule(claim, paces(wide, {"kfac": 1.0, "adam": 2.0}), columns=columns).verdict is DIRECTION
    narrow: Mapping[str, Sequence[Sequence[float]]] = {"kfac": [[1.0, 1.0, 1.1]] * 3, "adam": [[1.5, 1.5, 1.6]] * 3}
    assert rule(claim, paces(narrow, {"kfac": 1.0, "adam": 2.0}), columns=columns).verdict is HOLDS


def test_steps_over_those_of_another_method_are_divided_process_by_process() -> None:
    cells = paces({"kfac": [[1.0], [2.0], [4.0]], "adam": [[2.0], [4.0], [8.0]]}, {"kfac": 1.0, "adam": 2.0})
    found = rule(Claim("t", ["K.pace", "A.pace"], "<"), cells, columns={"pace": OVER})
    assert found.verdict is HOLDS and found.measured == "K 1.00, A 2.00"


def test_epochs_to_a_level_are_the_first_that_reach_it() -> None:
    claim = Claim("t", ["K.level", "A.level"], "<")
    cells = accuracies(kfac=(0.95,) * 3, adam=(0.85,) * 3)  # three epochs, of which the second is the best
    shortened = rule(claim, cells, columns={"level": LEVEL})
    assert shortened.verdict is HOLDS and shortened.measured == "K 1.00, A missed"
    late = rule(Claim("t", ["A.level", "K.level"], "<"), cells, columns={"level": LEVEL})
    assert late.verdict is UNDECIDED and "A is censored" in late.reason


def test_sizes_that_a_paper_leaves_open_have_to_agree() -> None:
    claim = Claim("t", ["K.acc", "A.acc"], ">", again=[["S.acc", "A.acc"]])
    agreed = rule(claim, accuracies(kfac=(0.9,) * 3, sgdm=(0.95,) * 3, adam=(0.8,) * 3))
    assert agreed.verdict is DIRECTION or agreed.verdict is HOLDS
    apart = rule(claim, accuracies(kfac=(0.9,) * 3, sgdm=(0.6,) * 3, adam=(0.8,) * 3))
    assert apart.verdict is UNDECIDED and apart.reason.startswith("readings differ: ")
    half = rule(claim, accuracies(kfac=(0.9,) * 3, adam=(0.8,) * 3))
    assert half.verdict is NOT_MEASURED and "S: not run" in half.reason

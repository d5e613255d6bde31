"""What small frames say of a claim: every kind of comparison beside its negative twin, expected by hand.

The paper of these frames prints 10, 20, 40 and 80 seconds for K, A, S and E, a factor of 2 from each to the next, of
which half is a factor of 1.414; and 90, 80, 70 and 60 % of accuracy, of which half is 5 points.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from frames import frame, row

from curvbench.analysis import claims, papers
from curvbench.analysis.claims import Ruling
from curvbench.analysis.papers import Claim, Column, Entry, Experiment
from curvbench.analysis.verdicts import Bounded, Reading, Verdict

HOLDS, DIRECTION, REFUTED, UNDECIDED, NOT_MEASURED = Verdict
NAN, INF = math.nan, math.inf
COLUMNS = {
    "time": Column("s", "train.seconds_to_target"),
    "epochs": Column("epochs", "train.epochs_to_target"),
    "acc": Column("%", "test.accuracy", take="best", scale=100),
    "loss": Column("1", "train.loss"),
    "flops": Column("FLOP", "flops.counted", scope="step"),
    "bytes": Column("B", "memory.state"),
    "cosine": Column("1", "error.cosine"),
    "pace": Column("x S", "train.seconds", over="S"),
    "total": Column("x S", "train.seconds_to_target", over="S"),
}
PROBES = {"K": "kfac", "A": "adam", "S": "sgdm", "E": "ekfac"}
PRINTED = {"K": (10.0, 90.0, 1.06), "A": (20.0, 80.0, 1.5), "S": (40.0, 70.0, 1.0), "E": (80.0, 60.0, 2.0)}
ROWS = {
    name: Entry(PROBES[name], values={"time": time, "epochs": time, "acc": acc, "pace": pace})
    for name, (time, acc, pace) in PRINTED.items()
}
TIME = Claim("t", ["K.time", "A.time"], "<")
ACC = Claim("t", ["K.acc", "A.acc"], ">")
LOSS = Claim("t", ["K.loss", "A.loss"], "<")
COSINE = Claim("t", ["K.cosine", "A.cosine"], ">")
CHAIN = Claim("t", ["K.time", "A.time", "S.time", "E.time"], "<")


def cells(column: str, surrogate: bool = False, epochs: int = 30, **values: Sequence[float | None]) -> pd.DataFrame:
    """A training of ``epochs`` of two seconds per row of the paper and seed, with what its column is read from.

    None: a target that was missed; no value at all where the row is given none.
    """
    read, rows = COLUMNS[column], []
    for name, several in values.items():
        for seed, value in enumerate(several):
            method = f"surrogate, epochs={epochs}" if surrogate else f"epochs={epochs}"
            common: dict[str, Any] = {"suite": "x", "seed": seed, "method": method}
            rows.append(row(PROBES[name], "test.loss", 1.0, epoch=0, **common))
            if read.metric != "train.seconds":
                rows.append(row(PROBES[name], "train.seconds", 2.0 * epochs, epoch=epochs, **common))
            missed = {"status": "unsupported"} if value is None else {}
            shown = value / read.scale if value is not None else None
            rows.append(row(PROBES[name], read.metric, shown, read.scope, epoch=epochs, **common, **missed))
    return frame(*rows)


def failed(name: str, status: str = "diverged", surrogate: bool = False) -> pd.DataFrame:
    return frame(row(PROBES[name], "", None, "", suite="x", status=status, method="surrogate" if surrogate else ""))


def ruled(claim: Claim, table: pd.DataFrame, budget: float = INF) -> Ruling:
    """The ruling on the surrogate's cells if there are any, else on those of the paper's own setting."""
    experiment = Experiment("x", "P", "T", "c", "s", COLUMNS, ROWS, [claim], budget=budget)
    (found,) = claims.judge(table, [experiment])
    return found.surrogate if table["method"].str.startswith("surrogate").any() else found.original


def thrice(**values: float | None) -> dict[str, Sequence[float | None]]:
    return {name: (value,) * 3 for name, value in values.items()}


def late(column: str, seeds: int, **values: float) -> pd.DataFrame:
    """Cells of which the first seed is not 0."""
    table = cells(column, **{name: (value,) * 3 for name, value in values.items()})
    shifted = table["seed"] + seeds
    return table.assign(seed=shifted, cell_id=table["probe"] + "/" + shifted.astype(str))


SIZES = [
    (TIME, "time", {"K": 1.0, "A": 1.42}, HOLDS),
    (TIME, "time", {"K": 1.0, "A": 1.41}, DIRECTION),
    (TIME, "time", {"K": 1.41, "A": 1.0}, UNDECIDED),
    (TIME, "time", {"K": 1.42, "A": 1.0}, REFUTED),
    (TIME, "time", {"K": 1.0, "A": 1.0}, UNDECIDED),
    (ACC, "acc", {"K": 85.0, "A": 80.0}, HOLDS),  # half of the paper's ten points, and not a hair more
    (ACC, "acc", {"K": 84.9, "A": 80.0}, DIRECTION),
    (ACC, "acc", {"K": 80.0, "A": 84.9}, UNDECIDED),
    (ACC, "acc", {"K": 80.0, "A": 85.0}, REFUTED),
    (LOSS, "loss", {"K": 1.0, "A": 1.05}, HOLDS),  # no number is printed
    (LOSS, "loss", {"K": 1.0, "A": 1.04}, DIRECTION),
    (LOSS, "loss", {"K": 1.04, "A": 1.0}, UNDECIDED),
    (LOSS, "loss", {"K": 1.05, "A": 1.0}, REFUTED),
    (LOSS, "loss", {"K": 0.0, "A": 1.0}, HOLDS),
    (LOSS, "loss", {"K": 0.0, "A": 0.0}, UNDECIDED),
    (COSINE, "cosine", {"K": 0.5, "A": -0.1}, DIRECTION),  # they have no ratio
    (COSINE, "cosine", {"K": -0.1, "A": 0.5}, UNDECIDED),
    # Against a number: the paper's 90 % is 40 points from it, of which half is 20.
    (Claim("t", ["K.acc", 50.0], ">"), "acc", {"K": 70.0}, HOLDS),
    (Claim("t", ["K.acc", 50.0], ">"), "acc", {"K": 69.0}, DIRECTION),
    (Claim("t", ["K.acc", 50.0], ">"), "acc", {"K": 31.0}, UNDECIDED),
    (Claim("t", ["K.acc", 50.0], ">"), "acc", {"K": 30.0}, REFUTED),
    # Within 10 %: the paper has 1.06, of which 1.019 below or above the bound is half.
    (Claim("t", ["K.pace", 1.1], "<"), "pace", {"K": 1.07, "S": 1.0}, HOLDS),
    (Claim("t", ["K.pace", 1.1], "<"), "pace", {"K": 1.09, "S": 1.0}, DIRECTION),
    (Claim("t", ["K.pace", 1.1], "<"), "pace", {"K": 1.11, "S": 1.0}, UNDECIDED),
    (Claim("t", ["K.pace", 1.1], "<"), "pace", {"K": 1.13, "S": 1.0}, REFUTED),
    # No more than: no effect is claimed, one of 1.05 refutes.
    (Claim("t", ["K.time", "A.time"], "<="), "time", {"K": 4.0, "A": 4.0}, HOLDS),
    (Claim("t", ["K.time", "A.time"], "<="), "time", {"K": 4.1, "A": 4.0}, UNDECIDED),
    (Claim("t", ["K.time", "A.time"], "<="), "time", {"K": 4.3, "A": 4.0}, REFUTED),
    (Claim("t", ["K.acc", "A.acc"], ">=", slack=0.5), "acc", {"K": 79.6, "A": 80.0}, HOLDS),
    (Claim("t", ["K.acc", "A.acc"], ">=", slack=0.5), "acc", {"K": 79.0, "A": 80.0}, UNDECIDED),
    (Claim("t", ["K.acc", "A.acc"], ">=", slack=0.5), "acc", {"K": 75.0, "A": 80.0}, REFUTED),
    # About: the slack is what is asked for.
    (Claim("t", ["K.loss", 2.0], "~", slack=0.25), "loss", {"K": 2.25}, HOLDS),
    (Claim("t", ["K.loss", 2.0], "~", slack=0.25), "loss", {"K": 1.75}, HOLDS),
    (Claim("t", ["K.loss", 2.0], "~", slack=0.25), "loss", {"K": 2.26}, REFUTED),
    (Claim("t", ["K.loss", 2.0], "~", slack=0.25), "loss", {"K": 1.74}, REFUTED),
    (Claim("t", ["K.loss", "A.loss"], "~", slack=0.25), "loss", {"K": 2.0, "A": 2.2}, HOLDS),
    (Claim("t", ["K.loss", "A.loss"], "~", slack=0.25), "loss", {"K": 2.0, "A": 2.3}, REFUTED),
    # A chain orders every pair: each step is too small to refute it, both together are not.
    (Claim("t", ["K.loss", "A.loss", "S.loss"], "<"), "loss", {"K": 1.06, "A": 1.03, "S": 1.0}, REFUTED),
    (Claim("t", ["K.loss", "A.loss", "S.loss"], "<"), "loss", {"K": 1.04, "A": 1.02, "S": 1.0}, UNDECIDED),
    (Claim("t", ["K.loss", "A.loss", "S.loss"], "<", "first"), "loss", {"K": 1.0, "A": 3.0, "S": 2.0}, HOLDS),
    (Claim("t", ["K.loss", "A.loss", "S.loss"], "<"), "loss", {"K": 1.0, "A": 3.0, "S": 2.0}, REFUTED),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "column", "values", "verdict"), SIZES)
@pytest.mark.parametrize("surrogate", [False, True])
def test_effects_have_a_size(
    claim: Claim, column: str, values: dict[str, float], verdict: Verdict, surrogate: bool
) -> None:
    found = ruled(claim, cells(column, surrogate, **thrice(**values)))
    assert found.verdict is verdict, found
    assert "seeds" in found.reason and "\n" not in found.reason


RANDOM = [
    ({"K": (1.0, 1.0), "A": (9.0, 9.0)}, DIRECTION, "2 common seeds of 3"),
    ({"K": (9.0, 9.0), "A": (1.0, 1.0)}, UNDECIDED, "2 common seeds of 3"),
    ({"K": (1.0, 1.0, 1.0), "A": (9.0,)}, DIRECTION, "1 common seed of 3"),
    ({"K": (9.0,), "A": (1.0, 1.0, 1.0)}, UNDECIDED, "1 common seed of 3"),
    ({"K": (1.0, 1.5, 1.2), "A": (2.0, 2.5, 1.4)}, DIRECTION, "the ranges meet; 3 common seeds"),
    ({"K": (2.0, 2.5, 1.4), "A": (1.0, 1.5, 1.2)}, UNDECIDED, "the ranges meet; 3 common seeds"),
    # A fourth seed of K's alone would have its range meet A's.
    ({"K": (1.0, 1.1, 1.2, 9.0), "A": (2.0, 2.1, 2.2)}, HOLDS, "3 common seeds"),
    ({"K": (2.0, 2.1, 2.2, 0.1), "A": (1.0, 1.1, 1.2)}, REFUTED, "3 common seeds"),
]


@pytest.mark.parametrize(("values", "verdict", "reason"), RANDOM)
def test_what_is_random_needs_seeds_in_common_and_ranges_apart(
    values: dict[str, Sequence[float]], verdict: Verdict, reason: str
) -> None:
    found = ruled(TIME, cells("time", **values))
    assert found.verdict is verdict and found.reason.endswith(reason), found


@pytest.mark.parametrize(("shift", "verdict", "seeds"), [(0, HOLDS, 3), (1, DIRECTION, 2), (3, UNDECIDED, 0)])
def test_seeds_of_one_side_alone_do_not_count(shift: int, verdict: Verdict, seeds: int) -> None:
    found = ruled(TIME, pd.concat([cells("time", K=(1.0,) * 3), late("time", shift, A=2.0)]))
    assert (found.verdict, found.seeds) == (verdict, seeds), found


@pytest.mark.parametrize("column", ["flops", "bytes"])
@pytest.mark.parametrize(
    ("a", "b", "verdict"), [(1.0, 1.05, HOLDS), (1.0, 1.04, DIRECTION), (1.04, 1.0, UNDECIDED), (1.05, 1.0, REFUTED)]
)
def test_what_is_counted_needs_one_cell_a_side_of_any_seed(column: str, a: float, b: float, verdict: Verdict) -> None:
    table = pd.concat([cells(column, K=(100 * a,)), late(column, 5, A=100 * b)])
    found = ruled(Claim("t", [f"K.{column}", f"A.{column}"], "<"), table)
    assert found.verdict is verdict and found.reason.endswith("; counted") and found.is_counted, found


# Seconds of 30 epochs are 60: a target missed in them is later.
MISSES = [
    ({"K": (None,) * 3, "A": (5.0,) * 3}, True, INF, UNDECIDED),
    ({"K": (None,) * 3, "A": (5.0,) * 3}, True, 31.0, UNDECIDED),
    ({"K": (None,) * 3, "A": (5.0,) * 3}, True, 30.0, REFUTED),  # it was trained for as long as the paper's
    ({"K": (None,) * 3, "A": (5.0,) * 3}, False, 30.0, REFUTED),
    ({"K": (None,) * 3, "A": (5.0,) * 3}, False, 100.0, REFUTED),  # its own setting is as long as the paper's
    ({"K": (5.0,) * 3, "A": (None,) * 3}, True, 100.0, HOLDS),  # a factor of 12 at least
    ({"K": (50.0,) * 3, "A": (None,) * 3}, True, 100.0, DIRECTION),  # of 1.2 at least
    ({"K": (50.0,) * 3, "A": (None,) * 3}, True, 30.0, HOLDS),  # never reached
    ({"K": (50.0,) * 3, "A": (None,) * 3}, False, 30.0, HOLDS),
    ({"K": (None,) * 3, "A": (None,) * 3}, True, 100.0, UNDECIDED),
    ({"K": (None,) * 3, "A": (None,) * 3}, False, 30.0, UNDECIDED),
    ({"K": (20.0, 21.0, None), "A": (5.0, 6.0, 7.0)}, True, 100.0, REFUTED),  # whenever the third would have come
    ({"K": (20.0, None, None), "A": (5.0, 6.0, 7.0)}, True, 100.0, UNDECIDED),
    ({"K": (1.0, None, None), "A": (5.0, 5.0, 5.0)}, False, 30.0, UNDECIDED),  # the ranges meet
]


@pytest.mark.parametrize(("values", "surrogate", "budget", "verdict"), MISSES)
@pytest.mark.parametrize("column", ["time", "epochs"])
def test_a_miss_in_a_shorter_training_than_the_papers_is_censored(
    column: str, values: dict[str, Sequence[float | None]], surrogate: bool, budget: float, verdict: Verdict
) -> None:
    seconds = 2.0 if column == "epochs" else 1.0
    scaled = {name: [v and v / seconds for v in several] for name, several in values.items()}
    found = ruled(Claim("t", [f"K.{column}", f"A.{column}"], "<"), cells(column, surrogate, **scaled), budget)
    assert found.verdict is verdict, found
    assert "missed" in found.measured


def test_a_censored_miss_says_so() -> None:
    found = ruled(TIME, cells("time", True, **thrice(K=None, A=5.0)), budget=100)
    assert found.reason == (
        "K missed > A 5.00; K is censored: the target was missed in a shorter training than the paper's; 3 common seeds"
    )


def test_a_row_may_have_a_budget_of_its_own() -> None:
    short = {"K": dataclasses.replace(ROWS["K"], budget=30.0), "A": ROWS["A"]}
    known = Experiment("x", "P", "T", "c", "s", COLUMNS, short, [TIME], budget=100.0)
    (found,) = claims.judge(cells("time", True, **thrice(K=None, A=5.0)), [known])
    assert found.surrogate.verdict is REFUTED


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"K": 5.0, "S": None}, HOLDS),  # at most 5 / 60 of S's seconds
        ({"K": 50.0, "S": None}, DIRECTION),
        ({"K": None, "S": 5.0}, UNDECIDED),
        ({"K": None, "S": None}, UNDECIDED),
        ({"K": 60.0, "S": 30.0}, REFUTED),
    ],
)
def test_ratios_to_a_row_that_missed_are_known_in_part(values: dict[str, float | None], verdict: Verdict) -> None:
    rows = {name: Entry(PROBES[name], values={"total": n}) for name, n in {"K": 0.5, "S": 1.0}.items()}
    claim = Claim("t", ["K.total", "S.total"], "<")
    known = Experiment("x", "P", "T", "c", "s", COLUMNS, rows, [claim])
    (found,) = claims.judge(cells("total", True, **thrice(**values)), [known])
    assert found.surrogate.verdict is verdict, found.surrogate


@pytest.mark.parametrize("lost", [NAN, INF, -INF])
@pytest.mark.parametrize(("a", "b"), [(1.0, 9.0), (9.0, 1.0)])
def test_what_is_no_number_is_undecided(lost: float, a: float, b: float) -> None:
    for values in ({"K": (a, lost, a), "A": (b,) * 3}, {"K": (a,) * 3, "A": (b, b, lost)}):
        found = ruled(LOSS, cells("loss", **values))
        assert found.verdict is UNDECIDED and f"train.loss is {lost}" in found.reason, found


def test_no_number_in_one_epoch_is_none_of_the_best() -> None:
    """Python's least and greatest depend on where a NaN stands."""
    table = cells("acc", **thrice(K=90.0, A=70.0))
    for epoch in (1, 99):
        torn = table[(table["probe"] == "adam") & (table["metric"] == "test.accuracy")].assign(epoch=epoch, value=NAN)
        assert ruled(ACC, pd.concat([table, torn])).verdict is UNDECIDED


def test_an_overflow_is_no_number() -> None:
    columns = {"ppl": Column("1", "train.loss", transform="exp")}
    claim = Claim("t", ["K.ppl", "A.ppl"], "<")
    known = Experiment("x", "P", "T", "c", "s", columns, ROWS, [claim])
    (found,) = claims.judge(cells("loss", **thrice(K=1.0, A=1e6)), [known])
    assert found.original.verdict is UNDECIDED


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"K": 10.0, "S": 40.0, "E": 80.0}, UNDECIDED),
        ({"K": 10.0, "S": 80.0, "E": 40.0}, REFUTED),
        ({"K": 90.0, "S": 30.0, "E": 80.0}, REFUTED),  # by members that are no neighbours in the chain
        ({"K": 10.0, "S": 50.0, "E": 40.0}, UNDECIDED),  # the other way round by less than half of the paper's
    ],
)
def test_a_chain_with_a_failed_member_is_undecided_unless_the_others_refute_it(
    values: dict[str, float], verdict: Verdict
) -> None:
    measured = cells("time", **thrice(**values))
    assert ruled(CHAIN, pd.concat([measured, failed("A")])).verdict is verdict
    missing = ruled(CHAIN, measured)
    assert missing.verdict in (verdict, NOT_MEASURED) and (missing.verdict is REFUTED) == (verdict is REFUTED)


def test_a_chain_that_is_measured_whole_holds() -> None:
    found = ruled(CHAIN, cells("time", **thrice(K=10.0, A=20.0, S=40.0, E=80.0)))
    assert found.verdict is HOLDS
    assert found.reason == "K 10.0 < A 20.0; a factor of 2, 1.41 asked; 3 common seeds"


def test_one_failed_seed_is_a_failed_member() -> None:
    """The seeds that came through must not speak for all."""
    table = pd.concat([cells("time", K=(1.0,) * 3, A=(9.0,) * 4), failed("K").assign(seed=3, cell_id="lost")])
    found = ruled(TIME, table)
    assert (found.verdict, found.reason) == (UNDECIDED, "K: diverged")


@pytest.mark.parametrize(
    ("planned", "a", "b", "verdict"),
    [(30, 90.0, 80.0, HOLDS), (40, 90.0, 80.0, UNDECIDED), (30, 80.0, 90.0, REFUTED), (40, 80.0, 90.0, UNDECIDED)],
)
def test_the_best_of_a_training_that_stopped_at_its_target_is_known_in_part(
    planned: int, a: float, b: float, verdict: Verdict
) -> None:
    """After 30 of 40 epochs it might have gone on to be better."""
    values = thrice(K=a, A=b)
    table = pd.concat([cells("acc", **values), cells("time", **thrice(K=9.0, A=9.0))])
    found = ruled(ACC, table.assign(method=f"epochs={planned}"))
    assert found.verdict is verdict, found
    assert ("stopped at its target" in found.reason) == (planned == 40)


class Reported:
    """Cells in which the paper's own numbers were measured, by three seeds."""

    surrogate = False

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.frame, self.surrogate = pd.DataFrame({"any": [1]}), False

    @property
    def of_counts(self) -> Reported:
        return self

    def absent(self, member: str | float) -> bool:
        return isinstance(member, str) and bool(self.experiment.rows[member.rpartition(".")[0]].absent)

    def stands_in(self, column: Column) -> bool:
        return False

    def read(self, member: str | float) -> Reading:
        value = self.experiment.reported(member)
        assert value is not None
        counted = not isinstance(member, str)
        return Reading(str(member), dict.fromkeys(range(3), Bounded.exactly(value)), counted=counted)


def printed(experiment: Experiment) -> list[Claim]:
    """Claims of which the paper prints every number."""
    return [
        claim
        for claim in experiment.claims
        if claim.chain and None not in [experiment.reported(member) for member in claim.chain]
    ]


PRINTING = [e for e in papers.experiments() if printed(e)]


@pytest.mark.parametrize("experiment", PRINTING, ids=[e.id for e in PRINTING])
def test_a_paper_that_measures_its_own_numbers_bears_itself_out(experiment: Experiment) -> None:
    for claim in printed(experiment):
        found = claims.rule(Reported(experiment), claim)  # type: ignore[arg-type]
        assert (found.verdict is HOLDS) == claim.holds_on_reported, (claim.text, found.reason)

"""Verdicts on planted methods of which the truth is known."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from frames import frame, row
from planted import failed, planted

from curvbench.analysis.verdict import sentences
from curvbench.analysis.verdict.comparison import (
    best_damping,
    best_method,
    cost_of_a_step,
    layers_with_the_error,
    missing,
    not_told_apart,
)
from curvbench.analysis.verdict.methods import Budget

SCALE = "the gap between a plain gradient step and a step with the exact Fisher of every layer"
WITHIN = "Within 2 gradients a step and 3 times SGD's memory, with statistics refreshed every 100 steps"
CHEAP, DEAR = (0.25, 0.25, 0.0), (10.0, 40.0, 1.0)  # 1.005 and 2.5 gradients a step, refreshed every 100


def test_the_best_within_the_budget_and_at_any_cost() -> None:
    rows = frame(
        *planted("diag", [0.25], CHEAP),
        *planted("eva", [0.5], CHEAP),
        *planted("kfac", [0.75], DEAR, 5.0),
        *planted("layer", [1.0], CHEAP),
        *planted("full", [1.25], CHEAP),
        *planted("sgdm", [0.0], (0.0, 0.0, 0.0), 1.0),
    )
    assert best_method(rows, Budget()) == (
        f"{WITHIN}, eva closes most of {SCALE} on this batch: 50.0%, at 1 gradient a step and 2 times the memory; "
        "at any cost, kfac closes most: 75.0%, at 2.5 gradients a step and 5 times the memory."
    )
    generous = best_method(rows, Budget(2.5, 5.0)) or ""
    assert (
        generous.startswith("Within 2.5 gradients a step and 5 times SGD's memory") and "kfac closes most" in generous
    )
    assert generous.endswith("; no method closes more at any cost.")
    at_every_step = best_method(rows, Budget(2.0, 3.0, 1)) or ""
    assert (
        "with statistics refreshed at every step, eva closes most" in at_every_step
        and "at 1.5 gradients" in at_every_step
    )


def test_bounds_and_references_never_win() -> None:
    rows = frame(*(r for name in ("layer", "full", "kpsvd", "eigen") for r in planted(name, [1.0])))
    assert best_method(rows, Budget()) == "Not enough measured: only references (layer, full, kpsvd and eigen) so far."
    better = ("full", "kpsvd", "klkron", "kronsum", "diagpair")
    planned = (row for name in better for row in planted(name, [1.0]))
    said = " ".join(sentences(frame(*planted("kfac", [0.25]), *planned)))
    assert "kfac closes most" in said and not any(name in said for name in better)


def test_ranges_over_batches_are_given() -> None:
    args = {"problem_args": "samples=8,content=ab12"}
    rows = frame(*planted("kfac", [0.5, 0.75, 0.625], **args), *planted("eva", [0.25, 0.125, 0.25], **args))
    assert f"{SCALE} over 3 batches: 62.5% (50.0% to 75.0%)" in (best_method(rows, Budget()) or "")
    assert not_told_apart(rows, Budget()) is None
    assert "over 3 seeds" in (best_method(rows.assign(problem_args=""), Budget()) or "")


def test_all_worse_than_the_gradient() -> None:
    rows = frame(*planted("kfac", [-0.25]), *planted("eva", [-0.5]), *planted("sgdm", [0.0]))
    assert best_method(rows, Budget()) == (
        f"No method steps better than the plain gradient on this batch: the best, kfac, closes -25.0% of {SCALE}."
    )
    rows = frame(*planted("kfac", [0.5], DEAR), *planted("eva", [-0.5], CHEAP))
    assert best_method(rows, Budget()) == (
        f"{WITHIN}, no method steps better than the plain gradient on this batch: the best, eva, closes -50.0% of "
        f"{SCALE}; at any cost, kfac closes most: 50.0%, at 2.5 gradients a step and 2 times the memory."
    )


def test_no_method_fits() -> None:
    rows = frame(*planted("kfac", [0.5], DEAR, 6.0), *planted("eva", [0.25], DEAR, 9.0))
    assert best_method(rows, Budget()) == (
        "No method stays within 2 gradients a step and 3 times SGD's memory, with statistics refreshed every 100 "
        "steps: the nearest, kfac, takes 2.5 gradients a step and 6 times the memory; at any cost, kfac closes most of "
        f"{SCALE} on this batch: 50.0%, at 2.5 gradients a step and 6 times the memory."
    )


def test_costs_that_were_not_measured() -> None:
    rows = frame(*planted("kfac", [0.5], None, None), *planted("eva", [0.25], None, 2.0))
    said = best_method(rows, Budget()) or ""
    assert said.startswith("Not enough measured to say what stays within 2 gradients a step")
    assert said.endswith(f"; at any cost, kfac closes most of {SCALE} on this batch: 50.0%.")
    assert cost_of_a_step(rows, Budget()) is None
    assert missing(rows, Budget()) is None, "no method has its cost, so that none lacks it"
    some = frame(*planted("kfac", [0.5], None), *planted("eva", [0.25]))
    assert missing(some, Budget()) == "The cost of kfac was not measured."
    assert "eva closes most" in (best_method(some, Budget()) or "")


def test_one_method_only_and_the_gradient_only() -> None:
    said = best_method(frame(*planted("kfac", [0.5]), *planted("sgdm", [0.0])), Budget()) or ""
    assert said.endswith("; no other method was compared.")
    only = best_method(frame(*planted("sgdm", [0.0]), *planted("identity", [0.0])), Budget())
    assert only == "Not enough measured: only the plain gradient (sgdm and identity) has a step to compare."


def test_not_enough_measured() -> None:
    rows = frame(*planted("kfac", [None]))
    why = f"Not enough measured: no method has a share of {SCALE}"
    assert best_method(rows, Budget()) == f"{why}, because steps were not measured (meter direction)."
    none = {"status": "skipped", "reason": "the gradient is zero here"}
    rows = frame(row("kfac", "direction.gap_closed", None, **none))
    assert best_method(rows, Budget()) == f"{why} (skipped: the gradient is zero here)."
    assert sentences(frame(*planted("kfac", [0.5])).head(0)) == ["Not enough measured: there is no row yet."]


def test_ties_on_one_batch() -> None:
    rows = frame(
        *planted("kfac", [0.5]), *planted("ekfac", [0.4999]), *planted("eva", [0.25]), *planted("diag", [0.26])
    )
    assert not_told_apart(rows, Budget()) == (
        "On this batch, kfac (50.0%) cannot be told apart from ekfac (50.0%): gaps closer than 2.0% are ties; "
        "nor can 1 other pair of methods."
    )
    near_the_gradient = frame(*planted("kfac", [0.01]))
    assert "kfac (1.0%) cannot be told apart from the plain gradient (0.0%)" in (
        not_told_apart(near_the_gradient, Budget()) or ""
    )


def test_ranges_that_overlap_and_two_winners() -> None:
    rows = frame(
        *planted("kfac", [0.8, 0.9], DEAR),
        *planted("ekfac", [0.7, 0.85], DEAR),
        *planted("eva", [0.4, 0.5], CHEAP),
        *planted("diag", [0.3, 0.45], CHEAP),
        *planted("adam", [0.1, 0.2], (0.0, 0.0, 0.0)),
    )
    assert not_told_apart(rows, Budget()) == (
        "Over 2 seeds, eva (45.0% (40.0% to 50.0%)) cannot be told apart from diag (37.5% (30.0% to 45.0%)), nor kfac "
        "(85.0% (80.0% to 90.0%)) from ekfac (77.5% (70.0% to 85.0%)): their ranges overlap."
    )


def test_a_winner_within_the_budget_is_told_from_what_fits_alone() -> None:
    rows = frame(*planted("eva", [0.5], CHEAP), *planted("kfac", [0.51], DEAR))
    said = not_told_apart(rows, Budget()) or ""
    assert said.startswith("On this batch, kfac (51.0%) cannot be told apart from eva (50.0%)")


def test_dampings_and_plateaus() -> None:
    rows = frame(
        *planted("kfac", [0.5], damping=(1e-2, 2.5, 0.75)),
        *planted("eva", [0.25], damping=(1e-6, 0.5, 0.875)),
        *planted("adam", [0.25]),
    )
    assert best_damping(rows, Budget()) == (
        "Each method serves best at a damping of its own, added to the mean Fisher's diagonal: eva at 1e-06 "
        "(plateau of 0.5 decades) and kfac at 0.01 (plateau of 2.5 decades)."
    )
    assert "eva closes most" in (best_method(rows, Budget()) or ""), "each method at its best damping"
    assert best_damping(frame(*planted("kfac", [0.5])), Budget()) == (
        "Steps were compared at damping 0.001, added to the mean Fisher's diagonal; which damping serves each method "
        "best was not measured."
    )


def test_what_a_step_costs() -> None:
    rows = frame(
        *planted("eva", [0.5], CHEAP), *planted("kfac", [0.75], DEAR), *planted("adam", [0.1], (0.02, 0.0, 0.02))
    )
    assert cost_of_a_step(rows, Budget()) == (
        "In FLOPs, a step with eva costs 1.5 gradients if its statistics are refreshed at every step, and less than "
        "1.1 if every 6 steps or more rarely; a step with kfac costs 52 gradients if its statistics are refreshed at "
        "every step, and never less than 1.1, because preconditioning alone adds 1; of 3 methods, 1 "
        "never cost less than 1.1."
    )
    (only,) = [cost_of_a_step(frame(*planted("adam", [0.1], (0.02, 0.0, 0.02))), Budget())]
    assert only == "In FLOPs, a step with adam costs 1.04 gradients."


def test_layers_that_carry_the_error() -> None:
    shares = {"fc1": 0.5, "fc2": 0.125, "fc3": 0.375}
    rows = frame(*planted("kfac", [0.5], shares=shares), *planted("eva", [0.25], shares={"fc1": 1.0, "fc2": 0.0}))
    assert layers_with_the_error(rows, Budget()) == (
        "Of the squared distance between the matrix of kfac and the exact Fisher of the 3 layers, 50.0% lies in layer "
        "fc1 and 37.5% in fc3."
    )
    assert layers_with_the_error(frame(*planted("kfac", [0.5])), Budget()) is None
    assert layers_with_the_error(frame(*planted("kfac", [0.5], shares={"fc": 1.0})), Budget()) is None


def test_what_is_missing() -> None:
    rows = frame(
        *planted("kfac", [0.5]),
        row("kfac", "coverage.parameters", 0.75, reason="norm is left out: no rule"),
        failed("lngd", "unsupported", "no convolution"),
        failed("thor", "unsupported", "no convolution"),
        failed("full", "oom_host", "needs 9 GB"),
    )
    assert missing(rows, Budget()) == (
        "25.0% of the trainable parameters are not covered: norm is left out: no rule; no value of lngd and thor "
        "(unsupported: no convolution); no value of full (oom_host: needs 9 GB)."
    )
    assert missing(frame(*planted("kfac", [0.5]), row("kfac", "coverage.parameters", 1.0)), Budget()) is None
    nearly = frame(*planted("kfac", [0.5]), row("kfac", "coverage.parameters", 1 - 1e-6), *planted("eva", [None]))
    assert missing(nearly, Budget()) == (
        "Less than 0.1% of the trainable parameters are not covered; no value of eva (no step was measured)."
    )


def test_operations_without_a_formula_are_named() -> None:
    rows = frame(
        *planted("kfac", [0.5]),
        row("kfac", "flops.uncounted_ops", 1.0, "step", reason="aten.fft"),
        row("kfac", "flops.uncounted_ops", 1.0, "invert", reason="aten.fft"),
        *planted("eva", [0.25]),
        row("eva", "flops.uncounted_ops", 0.0, "step"),
    )
    assert missing(rows, Budget()) == "The FLOPs of kfac are too low, because operations lack a formula: aten.fft."


def test_a_gap_at_the_best_damping_is_a_value() -> None:
    none = {"status": "skipped", "reason": "there is no gap"}
    rows = frame(
        row("kfac", "direction.gap_closed", None, **none),
        row("kfac", "damping.gap_closed", 0.5),
        *planted("eva", [0.25]),
    )
    assert missing(rows, Budget()) == "The cost of kfac was not measured."


def test_weights_of_other_origin_are_one_case() -> None:
    """One seed has shipped weights and the other was trained here: both are seeds of one verdict."""
    rows = frame(*planted("kfac", [0.5, 0.6]))
    here = rows["method"].str.replace("float64", "float64 at weights trained here")
    rows["method"] = here.where(rows["seed"] == 1, rows["method"])
    assert "over 2 seeds" in sentences(rows)[0]


def test_settings_that_cannot_be_pooled_have_verdicts_of_their_own() -> None:
    other = "exact type-2 Fisher in float64, damping 0.1"
    rows = frame(*planted("kfac", [0.5]), *planted("eva", [0.25]), failed("lngd", "timeout", "late"))
    far = rows.assign(cell_id=rows["cell_id"] + "b", method=rows["method"].where(rows["method"] == "", other))
    far.loc[far["metric"] == "direction.gap_closed", "value"] = [0.125, 0.75]
    said = sentences(pd.concat([rows, far[far["probe"] != "lngd"]]))
    assert any(s.startswith("damping 0.001: Within") and "kfac closes most" in s for s in said)
    assert any(s.startswith("damping 0.1: Within") and "eva closes most" in s for s in said)
    assert sum("lngd" in s for s in said) == 2, "a cell without a step belongs to both"


def test_provisional_sentences_say_so() -> None:
    rows = frame(*planted("kfac", [0.5]), *planted("eva", [0.25]))
    said, marked = sentences(rows), sentences(rows, provisional=True)
    assert marked == [f"Provisional: {sentence}" for sentence in said]


def test_every_sentence_ends_and_has_a_number() -> None:
    rows = frame(
        *planted("kfac", [0.5, 0.6], DEAR, shares={"a": 0.75, "b": 0.25}),
        *planted("eva", [0.55, 0.61], CHEAP),
        failed("lngd", "timeout", "not finished in 4 s"),
    )
    said = sentences(rows)
    assert 3 <= len(said) <= 6
    assert all(sentence.endswith(".") and re.search(r"\d", sentence) for sentence in said)


def test_rows_of_two_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="a verdict is on one problem, and the rows have 2: toy, other"):
        sentences(frame(*planted("kfac", [0.5]), *planted("kfac", [0.5], problem="other")))


def test_a_sampled_fisher_is_not_called_exact() -> None:
    rows = frame(*planted("kfac", [0.5]), *planted("eva", [0.25]))
    rows["method"] = "Monte-Carlo Fisher of 4 draws in float64, damping 0.001"
    said = best_method(rows, Budget()) or ""
    assert "a step with the Monte-Carlo Fisher of every layer" in said and "exact" not in said


def test_gaps_at_other_dampings_than_the_table_say_so() -> None:
    rows = frame(*planted("kfac", [0.5]), *planted("eva", [0.25]))
    assert "at its best damping" not in (best_method(rows, Budget()) or "")
    tried = frame(
        *planted("kfac", [0.5]),
        *planted("eva", [0.25]),
        row("eva", "damping.best", 1e-6),
        row("eva", "damping.gap_closed", 0.75),
    )
    said = best_method(tried, Budget()) or ""
    assert "on this batch, each method at its best damping: 75.0%" in said

"""Exponents against costs whose growth is known, and sweeps found in the rows of a run."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from curvbench.analysis import frames, scaling
from curvbench.analysis.scaling import Exponent, exponent, growth
from curvbench.report import terminal

SIZES = np.array([8.0, 16.0, 32.0, 64.0])


def rows(sizes, counted, modelled, probe: str = "kfac", key: str = "width", **other) -> list[dict]:
    """The rows of cells that differ in one field of the problem ``chain``."""
    found = []
    for size, own, model in zip(sizes, counted, modelled, strict=True):
        cell = {"problem": "chain", "problem_args": f"{key}={size:g},samples=2", "probe": probe, "probe_args": ""}
        cell |= {"status": "ok", "seed": 0, "scope": "invert", "parameters": "weights"} | other
        values = {"flops.counted": own + 1000, "flops.passes": 1000, "flops.model": model}
        found += [cell | {"metric": metric, "value": value} for metric, value in values.items() if value is not None]
    return found


def only(found: list[scaling.Growth]) -> scaling.Growth:
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("power", [0, 1, 2.5])
def test_exponent_of_a_power(power: float) -> None:
    fit = exponent(SIZES, 3 * SIZES**power)
    assert abs(fit.value - power) <= 1e-12
    assert fit.half <= 1e-12


def test_interval_is_that_of_least_squares() -> None:
    """Against numpy's covariance of a straight line, which has the variance of the residuals in it."""
    x, noise = np.log(SIZES[-3:]), np.array([0.1, -0.2, 0.1])
    fit = exponent(SIZES, np.concatenate([[5.0], np.exp(2 * x + noise)]))
    (slope, _), covariance = np.polyfit(x, 2 * x + noise, 1, cov=True)
    assert abs(fit.value - slope) <= 1e-12
    assert abs(fit.half - 12.71 * covariance[0, 0] ** 0.5) <= 1e-9


def test_small_sizes_do_not_count() -> None:
    """Of six sizes the upper three are fitted."""
    sizes = 2.0 ** np.arange(6)
    assert exponent(sizes, np.where(sizes < 8, 100.0, sizes**2)).value == pytest.approx(2, abs=1e-12)


def test_an_exponent_takes_three_sizes_and_costs_above_zero() -> None:
    with pytest.raises(ValueError, match="three sizes, got 2"):
        exponent(SIZES[:2], SIZES[:2])
    assert math.isnan(exponent(SIZES, np.array([1.0, 1.0, 0.0, 1.0])).value)


def test_exponents_agree_where_intervals_meet_or_values_are_near() -> None:
    assert Exponent(2.0, 0.1).agrees(Exponent(2.2, 0.11))
    assert Exponent(2.0, 0.0).agrees(Exponent(2.04, 0.0))
    assert not Exponent(2.0, 0.1).agrees(Exponent(2.3, 0.1))
    assert not Exponent(2.0, 0.1).agrees(Exponent(math.nan, math.nan))


def test_passes_are_no_growth_of_the_method() -> None:
    found = only(growth(pd.DataFrame(rows(SIZES, 3 * SIZES**3, SIZES**3))))
    assert found[:3] == ("chain[width=8..64,samples=2]", "kfac", "invert")
    assert abs(found.counted.value - 3) <= 1e-12
    assert abs(found.published.value - 3) <= 1e-12
    assert abs(found.ratio - 3) <= 1e-12
    assert found.agrees


def test_growth_that_is_not_published_does_not_agree() -> None:
    found = only(growth(pd.DataFrame(rows(SIZES, SIZES**3, SIZES**2))))
    assert abs(found.drift - 1) <= 1e-12
    assert not found.agrees


def test_without_a_model_nothing_is_published() -> None:
    found = only(growth(pd.DataFrame(rows(SIZES, SIZES**2, [None] * 4))))
    assert abs(found.counted.value - 2) <= 1e-12
    assert math.isnan(found.published.value) and math.isnan(found.ratio)
    assert not found.agrees


def test_what_costs_nothing_has_no_growth() -> None:
    assert growth(pd.DataFrame(rows(SIZES, 0 * SIZES, 0 * SIZES))) == []
    unexpected = only(growth(pd.DataFrame(rows(SIZES, SIZES, 0 * SIZES))))
    assert not unexpected.agrees


def test_a_size_left_at_its_default_belongs_to_the_sweep() -> None:
    """``width=32`` is the default of ``chain`` and stands in no label."""
    frame = pd.DataFrame(rows(SIZES, SIZES, SIZES))
    frame["problem_args"] = frame["problem_args"].str.replace("width=32,", "")
    assert only(growth(frame)).problem == "chain[width=8..64,samples=2]"


def test_ranks_are_swept_as_well_and_two_sizes_are_no_sweep() -> None:
    ranks = [row for r in (4, 8, 16) for row in rows([8.0], [r**2], [r**2], "ginger", probe_args=f"rank={r}")]
    found = only(growth(pd.DataFrame(ranks)))
    assert (found.problem, found.probe) == ("chain[width=8,samples=2]", "ginger[rank=4..16]")
    assert abs(found.counted.value - 2) <= 1e-12
    assert growth(pd.DataFrame(ranks[:6])) == []


def test_memory_is_compared_with_its_model() -> None:
    cells = [row for row in rows(SIZES, SIZES, SIZES, scope="step") if row["metric"] != "flops.passes"]
    names = {"flops.counted": "memory.state", "flops.model": "memory.model"}
    frame = pd.DataFrame([row | {"metric": names[row["metric"]]} for row in cells])
    frame.loc[frame["metric"] == "memory.state", "value"] -= 1000
    found = only(growth(frame))
    assert found.quantity == "memory"
    assert abs(found.ratio - 1) <= 1e-12


def test_table_marks_what_does_not_agree() -> None:
    frame = pd.DataFrame([*rows(SIZES, SIZES**3, SIZES**2, probe_args="damping=1"), *rows(SIZES, SIZES, SIZES, "diag")])
    console = Console(file=io.StringIO(), width=40)
    for title, table in terminal.growth_tables(frame, set(frames.problems(frame))):
        assert title == "chain[width=8..64,samples=2], weights only"
        terminal.show(console, table)
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    fits = ["3.00", "±", "0.00", "2.00", "±", "0.00", "64.0", "+100.0%", "!"]
    assert lines[1][-2:] == ["1.00", "+0.0%"]
    assert lines[2] == ["kfac[damping=1]", "invert", *fits]


def test_only_selected_problems_are_shown() -> None:
    frame = pd.DataFrame(rows(SIZES, SIZES, SIZES))
    assert list(terminal.growth_tables(frame, [])) == []


def test_the_table_of_what_grows() -> None:
    frame = pd.DataFrame(rows(SIZES, 3 * SIZES**3, SIZES**3) + rows(SIZES, 0 * SIZES + 5, 0 * SIZES + 5, "eva"))
    (found,) = scaling.growing(frame).to_dict("records")
    assert (found["probe"], found["cost"]) == ("kfac", "invert")
    assert found["counted"] == pytest.approx(3)
    assert found["published"] == pytest.approx(3)
    assert found["agrees"]


def test_a_size_of_zero_is_none_and_texts_are_no_sizes() -> None:
    from_zero = SIZES - SIZES[0]
    assert scaling.growing(pd.DataFrame(rows(from_zero[:3], SIZES[:3], SIZES[:3], key="epochs"))).empty
    texts = pd.DataFrame(rows(SIZES, SIZES, SIZES)).assign(problem_args="layer=conv2d")
    assert list(scaling.growing(texts)) == list(scaling.growing(texts.head(0)))
    assert scaling.growing(texts).empty

"""Tables and figures against samples and age, from planted rows in which the truth is known."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from frames import frame, row
from rich.console import Console

from curvbench.analysis import held
from curvbench.analysis.frames import problems
from curvbench.analysis.views import Quantity
from curvbench.report import terminal

ERROR, UNBIASED, QUALITY = held.SAMPLES
STALE, DRIFT, COST = held.AGES


def of_cell(probe: str, samples: int, error: float, problem_args: str, **other: Any) -> list[dict[str, Any]]:
    """A cell's rows: the layer blocks that tables show, and the network, which they do not."""
    common = {"problem_args": problem_args, "method": "exact Fisher, of 40 other samples", **other}
    return [
        row(probe, "problem.samples", samples, **common),
        row(probe, "error.population", error, "layer blocks", **common),
        row(probe, "error.population", 99.0, "network", **common),
        row(probe, "error.floor", 1 / samples, "layer blocks", **common),
        row(probe, "direction.population", None, **{**common, "status": "unsupported", "reason": "why"}),
    ]


SAMPLED = frame(
    *of_cell("a", 8, 0.5, "samples=8"),
    *of_cell("a", 8, 0.9, "samples=8", seed=1),
    *of_cell("a", 8, 0.6, "samples=8", seed=2),
    *of_cell("a", 128, 0.1, ""),  # the default number of samples is in no label
    *of_cell("b", 8, 0.7, "samples=8"),
    *of_cell("a", 8, 0.3, "width=3,samples=8"),
    *of_cell("a", 16, 0.2, "samples=16,width=3"),
)


def aged(probe: str, age: int, **values: float) -> list[dict[str, Any]]:
    scopes = {"error": "layer blocks", "floor": "layer blocks", "quality": "network", "cost": "step"}
    how = "exact Fisher at step 3 of sgd at rate 0.1 in batches of 8, damping 0.001"
    return [
        row(probe, f"stale.{name}", value, f"{scopes[name]}, age {age}", step=age, method=how)
        for name, value in values.items()
    ]


AGED = frame(
    *aged("a", 10, error=0.9, floor=0.5, quality=0.2, cost=1.0),
    *aged("a", 0, error=0.4, floor=0.0, quality=0.8, cost=9.0),
    *aged("b", 0, error=0.6, floor=0.0),
    row("a", "error.relative", 0.4, "layer blocks"),
)


def test_one_row_per_probe_with_the_floor_first_and_one_column_per_size() -> None:
    table = held.against_samples(SAMPLED, "toy", ERROR)
    assert list(table.columns) == [8, 128]
    assert list(table.index) == [held.FLOOR, "a", "b"]
    assert table.loc["a"].tolist() == [0.6, 0.1], "the median over seeds"
    assert table.loc[held.FLOOR].tolist() == [1 / 8, 1 / 128]
    assert table.loc["b", 8] == 0.7 and math.isnan(table.loc["b", 128])


def test_problems_that_differ_in_samples_alone_are_a_family() -> None:
    assert held.families(SAMPLED) == ["toy", "toy[width=3]"]
    assert held.against_samples(SAMPLED, "toy[width=3]", ERROR).loc["a"].tolist() == [0.3, 0.2]


@pytest.mark.parametrize(
    ("arguments", "family"),
    [
        ("samples=8", "toy"),
        ("", "toy"),
        ("mc_samples=5,samples=8", "toy[mc_samples=5]"),
        ("samples=8,mc_samples=5", "toy[mc_samples=5]"),
        ("mc_samples=5", "toy[mc_samples=5]"),
        ("width=3,samples=8,depth=2", "toy[width=3,depth=2]"),
    ],
)
def test_the_family_leaves_out_samples_and_nothing_else(arguments: str, family: str) -> None:
    assert held.families(frame(row("a", "problem.samples", 8.0, problem_args=arguments))) == [family]


def test_curves_have_the_range_over_seeds() -> None:
    curves = held.sampling(SAMPLED, ERROR).set_index(["probe", "problem", held.N])
    assert curves.loc[("a", "toy", 8)].tolist() == [0.6, 0.5, 0.9]


def test_ages_are_columns_in_their_order() -> None:
    table = held.against_age(AGED, "toy", DRIFT)
    assert list(table.columns) == [0, 10] and list(table.index) == [held.FLOOR, "a", "b"]
    assert table.loc["a"].tolist() == [0.4, 0.9] and table.loc[held.FLOOR].tolist() == [0.0, 0.5]
    assert held.against_age(AGED, "toy", STALE).loc["a"].tolist() == [0.8, 0.2]
    assert held.against_age(AGED, "toy", COST).loc["a"].tolist() == [9.0, 1.0]
    assert held.aging(AGED, COST)[held.STEPS].tolist() == [11, 1]


def test_an_age_is_no_part_of_another_scope() -> None:
    rows = frame(*aged("a", 0, quality=0.5), row("a", "stale.quality", 0.1, "network of b, age 0", step=0))
    assert held.against_age(rows, "toy", STALE).to_numpy().tolist() == [[0.5]]


@pytest.mark.parametrize("quantity", [*held.SAMPLES, *held.AGES])
def test_what_was_not_measured_is_an_empty_table(quantity: Quantity) -> None:
    other = frame(row("a", "error.relative", 0.4), row("b", "problem.samples", 3.0)).assign(step=None)
    assert held.against_samples(other, "toy", quantity).empty and held.against_age(other, "toy", quantity).empty


def shown(tables: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    for title, table in tables:
        console.print(title, soft_wrap=True, markup=False)
        terminal.show(console, table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_shows_what_statistics_are_held_against() -> None:
    text = shown(terminal.samples_tables(SAMPLED, problems(SAMPLED)))
    assert "toy[width=3], error.population (layer blocks), of 40 other samples: |F^ - F_B| / |F_B|" in text
    assert f"{held.FLOOR} 0.125 0.00781" in text
    assert "direction.population (network)" not in text, "what was not measured has no table"
    text = shown(terminal.staleness_tables(AGED, ["toy"]))
    assert "stale.quality (network), at step 3 of sgd at rate 0.1 in batches of 8: quality" in text
    assert list(terminal.samples_tables(SAMPLED, [])) == list(terminal.staleness_tables(AGED, [])) == []


def test_a_figure_shows_the_distance_from_1_of_what_is_best_at_1() -> None:
    rows = frame(
        *(row("a", "problem.samples", 8.0, seed=seed) for seed in (0, 1, 2)),
        *(row("a", "direction.population", value, seed=seed) for seed, value in enumerate((0.5, 0.7, 0.8))),
    )
    drawn = held.as_drawn(held.sampling(rows, QUALITY), QUALITY)
    assert drawn[["median", "min", "max"]].to_numpy().tolist() == [pytest.approx([0.3, 0.2, 0.5])]
    assert held.against_samples(rows, "toy", QUALITY).loc["a", 8] == 0.7, "a table shows the quality itself"


def test_figures_draw_the_floor_as_a_line() -> None:
    pytest.importorskip("plotly", reason="figures need the extra `dashboard`")
    from curvbench import plot

    lines = {trace.name: trace for trace in plot.aging(AGED, DRIFT).data}
    assert list(lines) == ["a", held.FLOOR]
    assert list(lines[held.FLOOR].x) == [1, 11] or list(lines[held.FLOOR].x) == [11, 1]
    sizes = plot.sampling(SAMPLED)
    assert {trace.name for trace in sizes.data} >= {"a on toy", f"{held.FLOOR} on toy"}

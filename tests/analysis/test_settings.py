"""Tables of quality against a method's damping and against the dtype of its statistics."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from frames import frame, row

from curvbench.analysis import dampings, digits, views
from curvbench.analysis.summary import Column
from curvbench.analysis.views import FLOPS, GAP_CLOSED, Quantity

TOY = "toy"
QUALITY = Quantity("damping.quality", "network")


def damped(probe: str, *values: float) -> list[dict[str, Any]]:
    scopes = [f"damping=1e-0{3 - k}" for k in range(len(values))]
    curve = [row(probe, "damping.quality", v, scope) for v, scope in zip(values, scopes, strict=True)]
    return [*curve, row(probe, "damping.quality", 0.0, f"{scopes[0]} target=1e-05"), row(probe, "damping.best", 1e-2)]


def test_a_curve_over_dampings_has_its_plateau() -> None:
    rows = frame(*damped("kfac", 0.5, 0.97, 1.0), *damped("sgdm", -1.0, -2.0, -3.0))
    curves = dampings.curves(rows, TOY, QUALITY)
    assert curves.loc[curves["probe"] == "kfac", ["damping", "median"]].to_numpy().tolist() == [
        [1e-3, 0.5],
        [1e-2, 0.97],
        [1e-1, 1.0],
    ]
    plateau = dampings.plateaus(curves)
    assert plateau["damping"].tolist() == [1e-2, 1e-1] and set(plateau["probe"]) == {"kfac"}
    assert dampings.outcomes(rows, TOY).set_index("probe").loc["kfac", "damping.best"] == 1e-2


def test_lines_over_dtypes_leave_the_dtype_out_of_their_names() -> None:
    kinds = {"float64": 0.9, "bfloat16": 0.5, "float32,factor_dtype=float64": 0.7}
    rows = frame(
        *(row("kfac", "direction.gap_closed", v, probe_args=f"statistics_dtype={k}") for k, v in kinds.items()),
        row("sgdm", "direction.gap_closed", 0.0),
    )
    table = digits.against_dtype(rows, TOY, GAP_CLOSED)
    assert table[["probe", digits.AXIS]].to_numpy().tolist() == [
        ["kfac", "bfloat16"],
        ["kfac", "float64"],
        ["kfac[factor_dtype=float64]", "float32"],
    ]
    assert table["median"].tolist() == pytest.approx([0.5, 0.1, 0.3]), "the distance from 1, as the axis shows it"
    assert digits.is_measured(rows) and not digits.is_measured(rows[rows["probe"] == "sgdm"])


def test_a_sweep_opens_on_a_metric_that_moves() -> None:
    rows = frame(
        *(row("kfac", "error.relative", 0.5, "layer blocks", probe_args=f"damping={d}") for d in (0.1, 1.0)),
        *(row("kfac", "direction.gap_closed", d / 2, probe_args=f"damping={d}") for d in (0.1, 1.0)),
    )
    both = [views.ERROR, GAP_CLOSED]
    assert views.moving(rows, views.settings(rows), "probe.damping", both) == GAP_CLOSED
    assert views.moving(rows, views.settings(rows), "probe.damping", both[:1]) == views.ERROR


def test_tables_are_ranked_with_references_last_and_have_ranges() -> None:
    medians = pd.DataFrame({"direction.gap_closed (network)": [0.2, 1.0, 0.9]}, index=["adam", "full", "kfac"])
    ranked = views.ranked(medians, [Column(GAP_CLOSED.metric, "network", "gap")])
    assert ranked.index.tolist() == ["kfac", "adam", "full"]
    table = views.with_ranges(ranked, medians - 0.1, medians + 0.1)
    assert table.loc["kfac", "direction.gap_closed (network) range"] == "0.800 to 1.00"


def test_a_table_of_a_trade_off_names_its_quantities() -> None:
    table = views.headed(pd.DataFrame(columns=["probe", "x", "x min", "y", "front"]), FLOPS, GAP_CLOSED)
    names = [str(FLOPS), f"{FLOPS} min", f"1 - {GAP_CLOSED}"]
    assert table.columns.tolist() == ["probe", *names, "front"]

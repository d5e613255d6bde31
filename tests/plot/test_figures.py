from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import LAYERS, fisher_cell, frame, row

pytest.importorskip("plotly", reason="figures need the extra `dashboard`")

import curvbench as cb
from curvbench import plot, registry
from curvbench.analysis.views import Quantity
from curvbench.plot import axes
from curvbench.plot.look import COLORS, FAMILIES, by_family, look

ERROR = Quantity("error.relative", "network")


def measured(probe: str, error: float, cost: float, **other: Any) -> list[dict[str, Any]]:
    return [row(probe, r.metric, r.value, r.scope, **other) for r in fisher_cell(error, cost)]


FAILED = row("ginger", "", None, "", status="timeout", reason="not finished in 4 s")
ROWS = frame(
    *measured("kfac", 0.5, 8.0),
    *measured("kfac", 0.7, 8.0, seed=1),
    *measured("full", 0.0, 100.0),
    *measured("identity", 5.0, 1.0),
    *measured("sgdm", 60.0, 2.0),
    FAILED,
)


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.name}


def subtitle(figure: Any) -> str:
    return (figure.layout.title.subtitle.text or "").replace("<br>", " ")


def test_every_shipped_probe_has_a_look_of_its_own() -> None:
    looks = {name: look(name) for name in registry.probes()}
    assert len(set(looks.values())) == len(looks)
    assert not [name for name, seen in looks.items() if seen.symbol.startswith("star")]
    assert {seen.color for seen in looks.values()} <= set(COLORS)


def test_looks_are_for_good() -> None:
    assert look("kfac") == ("#0072B2", "circle")
    assert look("kfac[damping=1.0]") == ("#0072B2", "circle-open")
    assert look("MyProbe") == look("MyProbe")
    assert look("MyProbe").symbol == "star"


def test_families_and_their_variants_stand_together() -> None:
    assert by_family(["MyProbe", "adam", "kfac[x=1]", "kfac", "full"]) == [
        "full",
        "kfac",
        "kfac[x=1]",
        "adam",
        "MyProbe",
    ]
    assert sum(len(names) for _, names in FAMILIES.values()) == len(registry.probes())


def test_tradeoff() -> None:
    figure = cb.plot.tradeoff(ROWS)
    drawn = traces(figure)
    assert set(drawn) == {"Pareto front", "kfac", "full", "identity", "sgdm"}
    assert (drawn["kfac"].x[0], drawn["kfac"].y[0]) == (8.0, 0.6)
    assert drawn["kfac"].error_y.array[0] == pytest.approx(0.1)
    assert drawn["kfac"].marker.color == look("kfac").color
    assert drawn["kfac"].mode == "markers+text"
    assert drawn["sgdm"].mode == "markers"
    assert drawn["Pareto front"].line.shape == "hv"
    assert list(drawn["Pareto front"].x) == [1.0, 8.0, 100.0]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis.title.text == "flops.ratio, step, lower is better"
    assert figure.layout.yaxis.title.text == "error.relative, layer blocks<br>lower is better"
    assert "not drawn: ginger (timeout)" in subtitle(figure)


def test_zero_is_at_the_edge_and_named() -> None:
    figure = cb.plot.tradeoff(ROWS)
    assert 0 < traces(figure)["full"].y[0] < 0.5
    assert "full 0" in subtitle(figure)
    assert "relative, layer blocks, lower is better: 0<" in traces(figure)["full"].hovertemplate
    linear = cb.plot.tradeoff(ROWS, log=False)
    assert traces(linear)["full"].y[0] == 0.0
    assert linear.layout.yaxis.type == "linear"


def test_what_is_best_at_one_is_drawn_as_a_distance() -> None:
    figure = plot.tradeoff(ROWS, y=Quantity("direction.cosine", "network"))
    assert figure.layout.yaxis.title.text == "1 - direction.cosine, network<br>lower is better"
    assert traces(figure)["identity"].y[0] == pytest.approx(0.5)


def test_seconds_have_a_unit() -> None:
    assert axes.axis_title(Quantity("time.wall", "step")) == "time.wall [s], step, lower is better"


@pytest.mark.parametrize(
    ("values", "floor"),
    [
        ([1.0, 2.0, 3.0], 1.0),
        ([0.0, 1.0, 2.0], 1.0),
        ([1e-9, 1e-8, 0.5, 1.0, 2.0, 3.0, 4.0], 0.5),
        ([0.5, 1.0, 1e5, 2e5, 3e5, 4e5], 0.5),
        ([-1.0, 1.0], None),
        ([0.0, 0.0], None),
        ([], None),
        ([math.nan, math.inf], None),
    ],
)
def test_what_a_logarithm_can_show(values: list[float], floor: float | None) -> None:
    if values[:2] == [0.5, 1.0]:
        values = [0.5, 1.0, 2.0, 100.0, 1e4, 1e5]
    assert axes.logarithmic(pd.Series(values, dtype="float64")) == floor


def test_negative_values_are_drawn_on_a_linear_axis() -> None:
    rows = frame(*measured("kfac", 0.5, 8.0), row("kfac", "error.sampling", -0.5), row("diag", "error.sampling", 0.5))
    assert plot.tradeoff(rows, y=Quantity("error.sampling", "network")).layout.yaxis.type == "linear"


def test_infinite_values_are_named() -> None:
    rows = frame(*measured("kfac", 0.5, 8.0), *measured("adam", math.inf, 2.0))
    figure = plot.tradeoff(rows)
    assert "not drawn: adam (infinite)" in subtitle(figure)
    json.loads(figure.to_json())


def test_heatmap() -> None:
    figure = plot.heatmap(ROWS, metric="error.relative")
    (heat,) = figure.data
    assert list(heat.x) == ["network", "layer blocks", *LAYERS]
    assert list(heat.y) == by_family(heat.y)[::-1], "plotly draws from below"
    at = list(heat.y).index("kfac")
    assert heat.text[at][0] == "0.600"
    assert heat.z[at][0] == pytest.approx(np.log10(0.6))
    assert heat.colorbar.ticktext[-1] != str(heat.colorbar.tickvals[-1]), "ticks are values, not logarithms"
    assert np.isnan(heat.z[list(heat.y).index("ginger")]).all()
    assert "not drawn: ginger (timeout)" in subtitle(figure)
    assert figure.layout.title.text == "error.relative on toy"
    assert subtitle(figure).startswith("lower is better")


def test_a_ratio_is_right_at_one() -> None:
    rows = frame(*(row(p, "error.trace_ratio", v) for p, v in (("kfac", 0.01), ("full", 1.0), ("adam", 10.0))))
    (heat,) = plot.heatmap(rows, metric="error.trace_ratio").data
    assert heat.zmin == pytest.approx(-heat.zmax)
    assert heat.colorscale != plot.heatmap(ROWS).data[0].colorscale


def test_sweep() -> None:
    rows = frame(
        *(row("kfac", "error.relative", d, probe_args=f"damping={d}") for d in (1.0, 0.01, 0.1)),
        row("full", "error.relative", 1.0),
    )
    figure = plot.sweep(rows, "probe.damping", ERROR)
    drawn = traces(figure)
    assert set(drawn) == {"kfac"}
    assert list(drawn["kfac"].x) == [0.01, 0.1, 1.0]
    assert drawn["kfac"].line.color == look("kfac").color
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "probe.damping"
    assert figure.layout.yaxis.title.text == "error.relative, network<br>lower is better"


def test_cost() -> None:
    figure = plot.cost(ROWS)
    drawn = traces(figure)
    assert list(drawn) == ["gradient", "statistics", "invert", "precondition"]
    at = list(drawn["statistics"].y).index("kfac")
    assert sum(trace.x[at] for trace in drawn.values()) == pytest.approx(8.0)
    assert drawn["gradient"].x[at] == pytest.approx(1.0)
    assert list(drawn["gradient"].y) == ["identity", "sgdm", "kfac", "full"]
    assert figure.layout.barmode == "stack"
    assert figure.layout.xaxis.title.text == "flops.counted, x SGD, lower is better"
    assert "8.00 x SGD" in figure.data[-1].text[2]
    assert "ginger (timeout)" in subtitle(figure)


def test_a_bar_far_longer_than_most_is_cut() -> None:
    costs = {"identity": 1.0, "sgdm": 2.0, "adam": 3.0, "kfac": 4.0, "full": 1000.0}
    figure = plot.cost(frame(*(r for probe, cost in costs.items() for r in measured(probe, 0.5, cost))))
    assert figure.layout.xaxis.range[1] == 16.0
    assert figure.layout.xaxis.title.text.endswith("cut at 16.0")
    assert figure.data[-1].x[-1] == 16.0, "where the label stands"
    assert "1000 x SGD" in figure.data[-1].text[-1]


def test_cost_in_its_own_unit() -> None:
    figure = plot.cost(ROWS, metric="time.wall", relative=False)
    assert "time.wall [s], lower is better" in figure.layout.xaxis.title.text
    assert traces(figure)["gradient"].x[0] == pytest.approx(1e-3)


def test_peaks_of_memory_are_not_added() -> None:
    figure = plot.cost(ROWS, metric="memory.peak", relative=False)
    assert {trace.type for trace in figure.data} == {"scatter"}
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "memory.peak [B], lower is better"
    assert "step" in traces(figure)


def test_status() -> None:
    rows = pd.concat([ROWS, frame(row("kfac", "error.relative", 1.0, problem_args="surrogate=True"))])
    figure = plot.status(rows)
    (heat,) = figure.data
    assert list(heat.x) == by_family(heat.x)
    assert list(heat.y) == ["toy[surrogate=True] (surrogate)", "toy"]
    at = list(heat.x).index("ginger")
    assert heat.text[1][at] == "x"
    assert heat.customdata[1][at] == "timeout<br>not finished in 4 s"
    assert heat.text[0][at] == ""
    assert heat.text[1][list(heat.x).index("kfac")] == "+"


def test_curves() -> None:
    rows = frame(
        *(row("kfac", "test.accuracy", 0.5 + seed / 10, epoch=e, seed=seed) for e in (0, 1) for seed in (0, 1, 2)),
        *(row("kfac", "train.seconds", 10.0 * e, epoch=e) for e in (0, 1)),
        FAILED,
    )
    figure = plot.curves(rows, metric="test.accuracy", against="seconds")
    band, line = figure.data
    assert list(line.x) == [0.0, 10.0]
    assert list(line.y) == [0.6, 0.6]
    assert band.fill == "toself"
    assert max(band.y) == 0.7
    assert "[s]" in figure.layout.xaxis.title.text
    assert "ginger (timeout)" in subtitle(figure)


def test_comparison() -> None:
    other = ROWS.assign(value=ROWS["value"] * 2)
    figure = plot.comparison(ROWS, other[other["probe"] != "sgdm"], ERROR)
    drawn = traces(figure)
    assert list(drawn["y = x"].x) == list(drawn["y = x"].y)
    assert (drawn["identity"].x[0], drawn["identity"].y[0]) == (5.0, 10.0)
    assert "worse" in drawn["identity"].text[0]
    assert "only in A: sgdm" in subtitle(figure)
    assert figure.layout.xaxis.title.text == "A: error.relative, network, lower is better"


def test_history() -> None:
    changed = ROWS["value"].where(ROWS["probe"] != "identity", ROWS["value"] * 1.5)
    drawn = traces(plot.history(pd.concat([ROWS.assign(run_id="r2", value=changed), ROWS]), ERROR))
    assert list(drawn["identity"].x) == ["r1", "r2"]
    ring = drawn["a step"]
    assert (list(ring.x), list(ring.y)) == (["r2"], [drawn["identity"].y[1]])


def test_matrices() -> None:
    exact, diagonal = np.array([[4.0, 1.0], [1.0, 4.0]]), np.diag([4.0, 4.0])
    figure = plot.matrices(exact, diagonal, "fc1", "diag")
    assert [heat.customdata.tolist() for heat in figure.data] == [
        exact.tolist(),
        diagonal.tolist(),
        (diagonal - exact).tolist(),
    ]
    assert len({(heat.zmin, heat.zmax) for heat in figure.data}) == 1
    assert figure.layout.yaxis2.matches == "y"
    with pytest.raises(ValueError, match="two matrices of one size"):
        plot.matrices(exact, np.eye(3))


def test_units_are_parted_by_lines_and_their_norms_are_shown() -> None:
    exact = np.arange(16.0).reshape(4, 4)
    figure = plot.matrices(exact, exact, "fc1", "full", inputs=2)
    assert [(line.x0, line.x1) for line in figure.layout.shapes if line.x0 == line.x1] == [(1.5, 1.5)] * 3
    norms = plot.units(exact, 2 * exact, 2, "fc1", "kfac")
    assert [text.text for text in norms.layout.annotations] == ["exact Fisher", "kfac", "|difference|"]
    assert norms.data[0].customdata[0][0] == pytest.approx(np.linalg.norm(exact[:2, :2]))
    assert norms.data[1].customdata[1][0] == pytest.approx(2 * np.linalg.norm(exact[2:, :2]))


def test_matrices_that_are_zero_or_not_finite() -> None:
    for matrix in (np.zeros((2, 2)), np.full((2, 2), math.nan), np.full((2, 2), math.inf)):
        with np.errstate(invalid="ignore"):
            figure = plot.matrices(matrix, matrix)
        assert math.isfinite(figure.data[0].zmax)


def test_spectra() -> None:
    table = pd.DataFrame({"index": [1, 2], "exact": [3.0, 1.0], "kfac": [3.0, 2.0], "ginger": [3.0, 0.0]})
    figure = plot.spectra(table, "fc1")
    drawn = traces(figure)
    assert list(drawn["exact Fisher"].y) == [3.0, 1.0]
    assert list(drawn["kfac"].y) == [3.0, 2.0]
    assert figure.layout.yaxis.type == "log"
    assert "ginger" in subtitle(figure)
    assert drawn["ginger"].y[1] == 0.5, "at the edge"
    assert drawn["ginger"].text[1] == "0"
    assert plot.spectra(table.head(0)).layout.title.text


def test_growth() -> None:
    columns = ["problem", "probe", "cost", "counted", "counted +-", "published", "published +-"]
    table = pd.DataFrame(
        [
            ["chain[width=1..4]", "kfac", "invert", 3.0, 0.25, 2.0, 0.0],
            ["chain[width=1..4]", "kpsvd", "invert", 3.0, 0.25, math.nan, math.nan],
            ["other", "kfac", "memory", 1.0, 0.0, 1.0, 0.0],
        ],
        columns=columns,
    )
    figure = plot.growth(table, "chain[width=1..4]")
    drawn = traces(figure)
    assert set(drawn) == {"invert, counted", "invert, published"}
    assert list(drawn["invert, counted"].x) == [3.0, 3.0]
    assert list(drawn["invert, counted"].error_x.array) == [0.25, 0.25]
    assert list(drawn["invert, published"].y) == ["kfac"]
    assert drawn["invert, published"].marker.symbol.endswith("-open")
    assert "lower is better" in figure.layout.xaxis.title.text
    assert plot.growth(table.head(0), "x").layout.title.text


def test_profiles() -> None:
    rows = frame(
        *(row("kfac", "test.accuracy", v, epoch=e, seed=s) for s in (0, 1) for e, v in enumerate((0.1, 0.9))),
        *(row("eva", "test.accuracy", v, epoch=e, seed=s) for s in (0, 1) for e, v in enumerate((0.1, 0.9 * s))),
        *(row("diag", "test.accuracy", 0.1, epoch=e) for e in (0, 1)),
        *(row(p, "train.seconds", 2.0 + (p == "eva"), epoch=1, seed=s) for p in ("kfac", "eva") for s in (0, 1)),
        FAILED,
    )
    figure = plot.profiles(rows, "test.accuracy", 0.9)
    drawn = traces(figure)
    assert (list(drawn["kfac"].x)[:2], list(drawn["kfac"].y)[:2]) == ([1.0, 1.0], [0.5, 1.0])
    assert (drawn["eva"].x[0], list(drawn["eva"].y)) == (1.5, [0.5, 0.5])
    assert figure.layout.title.text == "seconds to test.accuracy 0.900"
    assert "never reached by: diag" in subtitle(figure)
    assert "higher is better" in figure.layout.yaxis.title.text
    assert plot.profiles(rows.head(0)).layout.title.text


HOSTILE = "<img src=x onerror=alert(1)><b>&"


@pytest.mark.parametrize("draw", [plot.tradeoff, plot.heatmap, plot.cost, plot.status, plot.curves])
def test_names_are_shown_letter_by_letter(draw: Any) -> None:
    rows = frame(
        *measured(HOSTILE, 0.5, 2.0, problem=HOSTILE),
        row("</script>", "", None, "", problem=HOSTILE, status="error", reason=HOSTILE),
        row(HOSTILE, "train.loss", 1.0, problem=HOSTILE),
    )
    figure = draw(rows)
    drawn = figure.to_json()
    assert "onerror" in drawn
    assert HOSTILE not in json.loads(drawn, strict=False).__repr__()
    assert "<img" not in str(json.loads(drawn))
    page = figure.to_html(full_html=False, include_plotlyjs=False)
    assert "<img" not in page


@pytest.mark.parametrize("draw", [plot.tradeoff, plot.heatmap, plot.cost, plot.status, plot.curves, plot.sweep])
@pytest.mark.parametrize("rows", [frame(*measured("kfac", 0.5, 8.0)), frame(FAILED), ROWS.head(0)])
def test_one_cell_a_failed_one_and_none(draw: Any, rows: pd.DataFrame) -> None:
    assert draw(rows).layout.title.text


def test_settings_of_one_training_are_lines_of_their_own() -> None:
    rows = [
        row("kfac", "test.accuracy", lr * epoch, cell_id=f"{lr}", epoch=epoch, method=f"lr={lr},batch=8")
        for lr in (0.1, 0.3)
        for epoch in (1, 2)
    ]
    figure = plot.curves(frame(*rows), metric="test.accuracy")
    assert {trace.name: list(trace.y) for trace in figure.data} == {
        "kfac {lr=0.1}": [0.1, 0.2],
        "kfac {lr=0.3}": [0.3, 0.6],
    }
    assert len({trace.line.dash for trace in figure.data}) == 2
    assert {trace.line.color for trace in figure.data} == {look("kfac").color}

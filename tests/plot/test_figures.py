from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import LAYERS, fisher_cell, frame, row

pytest.importorskip("plotly", reason="figures need the extra `dashboard`")

import curvbench as cb
from curvbench import plot, registry
from curvbench.analysis.views import Quantity
from curvbench.planning.selection import select
from curvbench.plot import axes
from curvbench.plot.blockwise import matrices_figure, spectra_figure, units_figure
from curvbench.plot.exponents import growth_figure
from curvbench.plot.look import COLORS, FAMILIES, OTHERS, WORDS, by_family, look, looks, method
from curvbench.plot.phases import PARTS
from curvbench.registry.suites import load_suite, suite_files

ERROR = Quantity("error.relative", "network")
SAMPLE = Path(__file__).parents[2] / "data" / "sample"


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
    found = looks(registry.probes())
    assert len(set(found.values())) == len(found) == len(list(registry.probes()))
    assert not [name for name, seen in found.items() if seen.symbol in OTHERS]
    assert {seen.color for seen in found.values()} <= set(COLORS.values())


def test_a_look_depends_on_the_label_alone() -> None:
    assert look("kfac") == looks(registry.probes())["kfac"] == ("#2878D0", "circle", "solid")
    variants = [f"kfac[{argument}]" for argument in (*WORDS, "damping=1.0", "rank=4")]
    for probe in variants:
        assert look(probe) == looks([probe])[probe] == looks(["kfac", probe])[probe]
        assert look(probe) != look("kfac") and method(probe) == "kfac"
    assert look("kfac[damping=1.0] {lr=0.1}") != look("kfac[damping=1.0]")
    assert look("MyProbe").symbol in OTHERS and look("MyProbe") != look("HisProbe")


def test_no_two_variants_of_a_shipped_suite_look_alike() -> None:
    """Nor do their labels need to know of each other, so that no filter changes a mark.

    Left out are suites of more variants of a method than marks, which are drawn as curves.
    """
    for file in [*suite_files("suites"), *suite_files("suites/papers")]:
        name, suite = load_suite(file)
        if name in ("convergence", "optimizers", "scaling", "ginger_t3_t4_sensitivity"):
            continue
        for preset in suite.presets.values():
            probes = {cell.probe.label for cell in select(name, preset)}
            assert len({look(probe)[:2] for probe in probes}) == len(probes), name


def test_variants_that_no_suite_has_are_told_apart() -> None:
    seen = looks([*(f"kfac[word={k}]" for k in range(20)), "kfac", "skfac"]).values()
    assert len({one[:2] for one in seen}) == 22
    for one in looks(f"{name}[x={k}]" for name in registry.probes() for k in range(5)).values():
        axes.graph_objects().Scatter(marker_symbol=one.symbol)  # raises at one that plotly does not know


def lab(color: str, sees: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """L*, a*, b* of what is seen of a colour."""
    part = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.clip(sees @ np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes (2009), table 1 at severity 1.
SEEN_BY = {
    "everyone else": np.eye(3),
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopes": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("reader", SEEN_BY)
@pytest.mark.parametrize("family", [*FAMILIES, "phases"])
def test_colours_of_one_symbol_are_told_apart_by_every_reader(family: str, reader: str) -> None:
    names = [name for name, probe in registry.probes().items() if probe.about.family == family]
    colors = [look(name).color for name in names] or list(PARTS.values())
    for a, b in itertools.combinations(colors, 2):
        assert np.linalg.norm(lab(a, SEEN_BY[reader]) - lab(b, SEEN_BY[reader])) >= 15, (a, b)


@pytest.mark.parametrize("color", COLORS.values())
def test_colours_stand_out_on_dark_paper(color: str) -> None:
    light, dark = (((lab(shade, np.eye(3))[0] + 16) / 116) ** 3 for shade in (color, "#1A1A18"))
    assert (light + 0.05) / (dark + 0.05) >= 3, "WCAG 2.1, 1.4.11"


def test_families_and_their_variants_stand_together() -> None:
    assert by_family(["MyProbe", "adam", "kfac[x=1]", "kfac", "full"]) == [
        "full",
        "kfac",
        "kfac[x=1]",
        "adam",
        "MyProbe",
    ]
    assert {probe.about.family for probe in registry.probes().values()} <= set(FAMILIES)


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
    assert list(drawn["Pareto front"].x) == [1.0, 8.0], "the reference at 100 is no rival"
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis.title.text == "FLOPs over SGD's, step, lower is better"
    assert figure.layout.yaxis.title.text == "relative error, layer blocks<br>lower is better"
    assert "not drawn: ginger (timeout)" in subtitle(figure)


def test_references_of_one_quality_share_a_name() -> None:
    rows = [r for name in ("full", "layer") for r in measured(name, 0.2, 9.0)]
    drawn = traces(cb.plot.tradeoff(frame(*rows, *measured("kfac", 0.5, 8.0), *measured("sgdm", 60.0, 1.0))))
    assert sorted(drawn[name].text[1].strip() for name in ("full", "layer")) == ["", "full, layer"]


@pytest.mark.parametrize("width", [350, 600, 900])
def test_names_on_the_front_cover_no_other_name(width: int) -> None:
    rows = cb.load(SAMPLE / "mlp")
    named = [
        trace
        for trace in plot.tradeoff(rows, "mlp", y=Quantity("direction.cosine", "network")).data
        if trace.mode == "markers+text"
    ]
    assert len(named) > 3
    shown = rows[
        (rows["metric"] == "flops.ratio") & (rows["scope"] == "step") & (rows["problem_args"].fillna("") == "")
    ]
    wide = math.log10(shown["value"].max() / shown["value"].min())
    spans = {}
    for trace in named:
        vertical, side = trace.textposition.split()
        at = width * math.log10(trace.x[0]) / wide
        low = at + {"left": -8 - 7 * len(trace.name), "center": -3.5 * len(trace.name), "right": 8}[side]
        spans[trace.name] = (low, low + 7 * len(trace.name), math.log10(trace.y[0]), vertical)
    for (a, b, y, above), (c, d, z, other) in itertools.combinations(spans.values(), 2):
        assert min(b, d) <= max(a, c) or above != other or abs(y - z) > 0.02, spans


def test_zero_is_at_the_edge_and_named() -> None:
    figure = cb.plot.tradeoff(ROWS)
    assert 0 < traces(figure)["full"].y[0] < 0.5
    assert "full 0" in subtitle(figure)
    assert "relative error, layer blocks, lower is better: 0<" in traces(figure)["full"].hovertemplate
    linear = cb.plot.tradeoff(ROWS, log=False)
    assert traces(linear)["full"].y[0] == 0.0
    assert linear.layout.yaxis.type == "linear"


def test_what_is_best_at_one_is_drawn_as_a_distance() -> None:
    figure = plot.tradeoff(ROWS, y=Quantity("direction.cosine", "network"))
    assert figure.layout.yaxis.title.text == "1 - cosine with the exact step, network<br>lower is better"
    assert traces(figure)["identity"].y[0] == pytest.approx(0.5)


def test_seconds_have_a_unit() -> None:
    assert axes.axis_title(Quantity("time.wall", "step")) == "seconds [s], step, lower is better"


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
    rows = frame(*measured("kfac", 0.5, 8.0), *measured("adam", math.inf, 2.0), *measured("eva", 0.5, -math.inf))
    figure = plot.tradeoff(rows)
    assert subtitle(figure) == "not drawn: adam (infinite), eva (infinite)", "and not at the edge"
    assert list(traces(plot.cost(rows))["gradient"].y) == ["adam", "kfac"]
    json.loads(figure.to_json())


def test_heatmap() -> None:
    figure = plot.heatmap(ROWS, metric="error.relative")
    dark, heat = figure.data
    assert list(heat.x) == ["network", "layer blocks", *LAYERS]
    assert list(heat.y) == by_family(heat.y)[::-1], "plotly draws from below"
    at = list(heat.y).index("kfac")
    shown = heat if np.isfinite(heat.z[at][0]) else dark
    assert shown.text[at][0] == "0.600"
    assert shown.z[at][0] == pytest.approx(np.log10(0.6))
    assert dark.colorbar.ticktext[-1] != str(dark.colorbar.tickvals[-1]), "ticks are values, not logarithms"
    assert (dark.showscale, heat.showscale) == (True, False)
    assert np.isnan(heat.z[list(heat.y).index("ginger")]).all()
    assert heat.zmin == -heat.zmax, "an error of 1 is that of no approximation at all"
    assert (np.isfinite(dark.z) ^ np.isfinite(heat.z))[list(heat.y).index("kfac")].all(), "each value in one of the two"
    assert (dark.textfont.color, heat.textfont.color) == ("white", "black")
    assert (dark.zmin, dark.zmax, dark.colorscale) == (heat.zmin, heat.zmax, heat.colorscale)
    assert "not drawn: ginger (timeout)" in subtitle(figure)
    assert figure.layout.title.text == "relative error on toy"
    assert dark.colorbar.title.text == "relative error, lower is better"


def test_a_ratio_is_right_at_one() -> None:
    rows = frame(*(row(p, "error.trace_ratio", v) for p, v in (("kfac", 0.01), ("full", 1.0), ("adam", 10.0))))
    heat, _ = plot.heatmap(rows, metric="error.trace_ratio").data
    assert heat.zmin == pytest.approx(-heat.zmax)
    shares = frame(*(row(p, "error.share", v, "fc1") for p, v in (("kfac", 0.001), ("adam", 0.9))))
    heat, _ = plot.heatmap(shares, metric="error.share").data
    assert heat.zmin == 0 and heat.zmax <= 1, "shares are no decades"


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
    assert figure.layout.yaxis.title.text == "relative error, network<br>lower is better"


def test_cost() -> None:
    figure = plot.cost(ROWS)
    drawn = traces(figure)
    assert list(drawn) == ["gradient", "statistics", "invert", "precondition"]
    at = list(drawn["statistics"].y).index("kfac")
    assert sum(trace.x[at] for trace in drawn.values()) == pytest.approx(8.0)
    assert drawn["gradient"].x[at] == pytest.approx(1.0)
    assert list(drawn["gradient"].y) == ["identity", "sgdm", "kfac", "full"]
    assert figure.layout.barmode == "stack"
    assert figure.layout.xaxis.title.text == "FLOPs, x SGD, lower is better"
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
    assert "seconds [s], lower is better" in figure.layout.xaxis.title.text
    assert traces(figure)["gradient"].x[0] == pytest.approx(1e-3)


def test_peaks_of_memory_are_not_added() -> None:
    figure = plot.cost(ROWS, metric="memory.peak", relative=False)
    assert {trace.type for trace in figure.data} == {"scatter"}
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "peak memory [B], lower is better"
    assert "step" in traces(figure)


def test_status() -> None:
    rows = pd.concat([ROWS, frame(row("kfac", "error.relative", 1.0, problem_args="a=1", method="surrogate"))])
    figure = plot.status(rows)
    (heat,) = figure.data
    assert list(heat.y) == by_family(heat.y)[::-1]
    assert list(heat.x) == ["toy", "toy[a=1] (surrogate)"]
    at = list(heat.y).index("ginger")
    assert heat.text[at][0] == "x"
    assert heat.customdata[at][0] == "timeout<br>not finished in 4 s"
    assert heat.text[at][1] == ""
    assert heat.text[list(heat.y).index("kfac")][0] == "+"


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
    assert figure.layout.xaxis.title.text == "A: relative error, network, lower is better"


def test_history() -> None:
    changed = ROWS["value"].where(ROWS["probe"] != "identity", ROWS["value"] * 1.5)
    drawn = traces(plot.history(pd.concat([ROWS.assign(run_id="r2-abc", value=changed), ROWS]), ERROR))
    assert list(drawn["identity"].x) == ["r1", "r2<br>abc"]
    ring = drawn["a step"]
    assert (list(ring.x), list(ring.y)) == (["r2<br>abc"], [drawn["identity"].y[1]])


def test_matrices() -> None:
    exact, diagonal = np.array([[4.0, 1.0], [1.0, 4.0]]), np.diag([4.0, 4.0])
    figure = matrices_figure(exact, diagonal, "fc1", "diag")
    assert [heat.customdata.tolist() for heat in figure.data] == [
        exact.tolist(),
        diagonal.tolist(),
        (diagonal - exact).tolist(),
    ]
    assert len({(heat.zmin, heat.zmax) for heat in figure.data}) == 1
    assert figure.layout.yaxis2.matches == "y"
    with pytest.raises(ValueError, match="two matrices of one size"):
        matrices_figure(exact, np.eye(3))


def test_units_are_parted_by_lines_and_their_norms_are_shown() -> None:
    exact = np.arange(16.0).reshape(4, 4)
    figure = matrices_figure(exact, exact, "fc1", "full", inputs=2)
    assert [(line.x0, line.x1) for line in figure.layout.shapes if line.x0 == line.x1] == [(1.5, 1.5)] * 3
    norms = units_figure(exact, 2 * exact, 2, "fc1", "kfac")
    assert [text.text for text in norms.layout.annotations] == ["exact Fisher", "kfac", "|difference|"]
    assert norms.data[0].customdata[0][0] == pytest.approx(np.linalg.norm(exact[:2, :2]))
    assert norms.data[1].customdata[1][0] == pytest.approx(2 * np.linalg.norm(exact[2:, :2]))


def test_matrices_that_are_zero_or_not_finite() -> None:
    for matrix in (np.zeros((2, 2)), np.full((2, 2), math.nan), np.full((2, 2), math.inf)):
        with np.errstate(invalid="ignore"):
            figure = matrices_figure(matrix, matrix)
        assert math.isfinite(figure.data[0].zmax)


def test_spectra() -> None:
    table = pd.DataFrame({"index": [1, 2], "exact": [3.0, 1.0], "kfac": [3.0, 2.0], "ginger": [3.0, 0.0]})
    figure = spectra_figure(table, "fc1")
    drawn = traces(figure)
    assert list(drawn["exact Fisher"].y) == [3.0, 1.0]
    assert list(drawn["kfac"].y) == [3.0, 2.0]
    assert figure.layout.yaxis.type == "log"
    assert "ginger" in subtitle(figure)
    assert drawn["ginger"].y[1] == 0.5, "at the edge"
    assert drawn["ginger"].text[1] == "0"
    assert spectra_figure(table.head(0)).layout.title.text


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
    figure = growth_figure(table, "chain[width=1..4]")
    drawn = traces(figure)
    assert set(drawn) == {"invert, counted", "invert, published"}
    assert list(drawn["invert, counted"].x) == [3.0, 3.0]
    assert list(drawn["invert, counted"].error_x.array) == [0.25, 0.25]
    assert list(drawn["invert, published"].y) == ["kfac"]
    assert drawn["invert, published"].marker.symbol.endswith("-open")
    assert "lower is better" in figure.layout.xaxis.title.text
    assert growth_figure(table.head(0), "x").layout.title.text


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
    assert figure.layout.title.text == "seconds to a test accuracy of 0.900"
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
    assert len({trace.marker.symbol for trace in figure.data}) == 2
    assert {trace.line.color for trace in figure.data} == {
        look(name).color for name in ("kfac {lr=0.1}", "kfac {lr=0.3}")
    }


def test_a_figure_with_nothing_to_draw_says_so() -> None:
    rows = frame(*measured("kfac", 0.5, 2.0))
    for figure, what in ((plot.curves(rows), "train.loss per epoch"), (plot.sweep(rows), "epoch or more")):
        text = figure.layout.annotations[0].text.replace("<br>", " ")
        assert what in text and "error.relative" in text
    assert not plot.tradeoff(rows).layout.annotations


def test_matrices_of_a_folder_of_a_run() -> None:
    (run,) = (SAMPLE / "mlp").iterdir()
    assert "kfac" in plot.matrices(run, "kfac").layout.annotations[1].text
    assert plot.spectra(run, "fc1").layout.title.text == "Layer fc1: largest eigenvalues"
    with pytest.raises(ValueError, match=r"no block of 'kfak' is stored: .*kfac"):
        plot.units(run, "kfak")
    with pytest.raises(ValueError, match="no problem 'x'"):
        plot.spectra(run, problem="x")

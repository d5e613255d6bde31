"""Chosen methods in colour and named, the others grey."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from frames import fisher_cell, frame, row

pytest.importorskip("plotly", reason="figures need the extra `dashboard`")

from curvbench import plot
from curvbench.plot.emphasis import FAINT, LINE, _apart, emphasize
from curvbench.plot.look import look


def trained(probe: str, seed: int) -> list[dict[str, object]]:
    return [row(probe, "test.loss", 1.0 / (epoch + seed), seed=seed, epoch=epoch) for epoch in (1, 2, 3)]


def test_lines_of_chosen_methods_are_named_at_their_ends_and_the_others_are_grey() -> None:
    rows = frame(*(r for name in ("kfac", "adam", "sgdm") for seed in (0, 1) for r in trained(name, seed)))
    figure = plot.curves(rows, metric="test.loss")
    height = figure.layout.height
    emphasize(figure, ["kfac", "adam", "sgdm"], ["kfac", "adam"])
    lines = {trace.name: trace for trace in figure.data if not trace.fill}
    assert lines["sgdm"].line.color == FAINT and lines["kfac"].line.color == look("kfac").color
    assert sorted(note.text for note in figure.layout.annotations) == ["adam", "kfac"]
    assert {note.yshift for note in figure.layout.annotations} == {-6.5, 6.5}, "equal ends are moved apart"
    assert 3 < figure.layout.xaxis.range[1] < 3.2, "names stretch no axis"
    assert not any(trace.showlegend for trace in lines.values()) and figure.layout.height < height
    assert next(trace.name for trace in figure.data if trace.name) == "sgdm", "grey ones lie behind"


def test_what_is_no_method_stays_as_it_is() -> None:
    rows = frame(*(row(name, r.metric, r.value, r.scope) for name in ("kfac", "adam") for r in fisher_cell()))
    figure = plot.tradeoff(rows)
    emphasize(figure, ["kfac", "adam"], [])
    points = pd.Series({trace.name: trace.marker.color for trace in figure.data})
    assert points["kfac"] == points["adam"] == FAINT
    assert "Pareto front" in points.index and points["Pareto front"] != FAINT


def test_names_stay_apart_and_within_the_plot() -> None:
    free = _apart([-5.0, 3.0, 4.0, 150.0, 299.0, 300.0], 300)
    assert min(b - a for a, b in itertools.pairwise(free)) >= LINE
    assert free[0] >= 0 and free[-1] <= 300 and free[3] == 150.0

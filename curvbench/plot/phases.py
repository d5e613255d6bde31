"""The cost of a step, phase by phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from curvbench.analysis import views
from curvbench.analysis.summary import digits
from curvbench.plot import axes
from curvbench.plot.accuracy import ROW_HEIGHT
from curvbench.plot.look import BLUE, GREY, ORANGE, RED, SKY
from curvbench.spec import PHASES

if TYPE_CHECKING:
    import plotly.graph_objects as go

ADDITIVE = ("flops.counted", "time.wall")  # peaks of memory do not add up
LETTER = 6  # pixels of a letter of a range behind a bar
CUT = 4  # the longest bar that is drawn whole, in units of the third quartile
PARTS = {views.GRADIENT: GREY, "statistics": BLUE, "invert": ORANGE, "precondition": SKY}
SYMBOLS = dict(zip([*PARTS, "step"], ("line-ns-open", "square", "triangle-up", "circle", "diamond-open"), strict=True))


def cost_figure(
    table: pd.DataFrame, problem: str, metric: str, relative: bool = True, stacked: bool = True
) -> go.Figure:
    """One bar per probe, the longest on top: the gradient and the phases of a step in which nothing is amortized.

    ``table`` as ``analysis.views.phases`` gives it. ``relative``: costs are multiples of a plain gradient step. Peaks
    of memory do not add up: they are points on a logarithmic axis, and so is every cost if ``stacked`` is False. Bars
    far longer than most are cut; labels give their length.
    """
    notes = [*axes.not_drawn(table, "step"), *axes.noisy_clocks(table)]
    drawn = table[np.isfinite(table["step"])].sort_values("step", kind="stable")
    if relative:
        phases = [views.GRADIENT, *PHASES]
        drawn[phases] = drawn[phases].div(drawn[views.GRADIENT], axis=0)
    figure = axes.new_figure(
        axes.problem_title(f"{views.plain(metric)} of a step", problem),
        notes,
        height=110 + ROW_HEIGHT * max(len(drawn), 3),
        names=PARTS,
    )
    names = [axes.escaped(probe) for probe in drawn["probe"]]
    edge = _edge(drawn[list(PARTS)].sum(axis=1)) if stacked and metric in ADDITIVE else None
    if stacked and metric in ADDITIVE:
        _bars(figure, drawn, names, edge)
    else:
        _points(figure, drawn, names)
    unit = f"{views.plain(metric)}, x SGD, lower is better" if relative else axes.metric_title(metric)
    figure.update_xaxes(title=unit + (f"; bars that end in // are cut at {digits(edge)}" if edge is not None else ""))
    rows = {"categoryorder": "array", "categoryarray": names, "range": [-0.6, max(len(names), 1) - 0.4]}
    figure.update_yaxes(automargin=True, dtick=1, title=None, **rows)
    return figure


def _edge(lengths: pd.Series) -> float | None:
    """The end of the axis if a few bars would press the others flat. None means that no bar is cut."""
    longest = CUT * float(lengths.quantile(0.75)) if len(lengths) else 0.0
    return longest if 0 < longest < lengths.max() else None


def _bars(figure: go.Figure, drawn: pd.DataFrame, names: list[str], edge: float | None) -> None:
    ends = drawn[list(PARTS)].sum(axis=1).clip(upper=edge)
    ranges = list(drawn["x SGD range"].str.removesuffix(views.NOISY)) if "x SGD range" in drawn else [""] * len(drawn)
    for part, color in PARTS.items():
        hover = f"%{{y}}, {part}: %{{customdata}}<extra></extra>"
        figure.add_bar(
            x=drawn[part],
            y=names,
            name=part,
            orientation="h",
            marker={"color": color, "line": {"width": 0}},
            customdata=drawn[part].map(digits),
            hovertemplate=hover,
        )
    figure.add_scatter(
        x=ends,
        y=names,
        mode="text",
        text=[
            f"{' //' * (edge is not None and length > edge)} {digits(ratio)} x SGD{f' ({range})' if range else ''}"
            for ratio, length, range in zip(drawn["x SGD"], drawn[list(PARTS)].sum(axis=1), ranges, strict=True)
        ],
        textposition="middle right",
        textfont={"size": 11},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )
    behind = 100 + LETTER * max(map(len, ranges), default=0)
    figure.update_layout(barmode="stack", bargap=0.25, margin_r=behind, legend_traceorder="normal")
    figure.update_xaxes(range=[0, edge or 1.02 * ends.max() if len(ends) else 1])


def _points(figure: go.Figure, drawn: pd.DataFrame, names: list[str]) -> None:
    for part, color in {**PARTS, "step": RED}.items():
        positive = drawn[part].where(drawn[part] > 0)
        figure.add_scatter(
            x=positive,
            y=names,
            mode="markers",
            name=part,
            marker={"color": color, "size": 10, "symbol": SYMBOLS[part], "line": {"width": 2, "color": color}},
            customdata=positive.map(digits),
            hovertemplate=f"%{{y}}, {part}: %{{customdata}}<extra></extra>",
        )
    figure.update_xaxes(type="log", dtick=1, tickformat="~g")

"""How costs grow: exponents, counted and published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from curvbench.analysis.summary import digits
from curvbench.plot import axes
from curvbench.plot.accuracy import ROW_HEIGHT
from curvbench.plot.look import RED, by_family
from curvbench.plot.phases import PARTS, SYMBOLS

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLORS = {**PARTS, "memory": RED}
MARKS = {**SYMBOLS, "memory": "diamond"}


def growth_figure(table: pd.DataFrame, problem: str) -> go.Figure:
    """Exponents of one sweep, as ``analysis.scaling.growing`` gives them.

    Counted exponents are filled and have intervals; published exponents are open. If two of one colour lie apart, the
    cost of the method grows with another power of the size than its paper says.
    """
    rows = table[(table["problem"] == problem) & table["counted"].notna()]
    probes = by_family(rows["probe"].unique())[::-1]
    costs = [cost for cost in COLORS if cost in set(rows["cost"])]
    figure = axes.new_figure(
        f"Exponents of cost over {axes.escaped(problem)}",
        height=130 + ROW_HEIGHT * max(len(probes), 3),
        names=[f"{cost}, {kind}" for cost in costs for kind in ("counted", "published")],
    )
    for cost in costs:
        of_cost = rows[rows["cost"] == cost]
        for kind, ending in (("counted", ""), ("published", "-open")):
            points = of_cost[of_cost[kind].notna()]
            pairs = zip(points[kind], points[f"{kind} +-"], strict=True)
            figure.add_scatter(
                x=points[kind],
                y=[axes.escaped(probe) for probe in points["probe"]],
                error_x={"array": points[f"{kind} +-"], "thickness": 1, "width": 3} if kind == "counted" else None,
                mode="markers",
                marker={"color": COLORS[cost], "symbol": MARKS[cost] + ending, "size": 9 if not ending else 13},
                name=f"{cost}, {kind}",
                text=[f"{digits(value)} ± {digits(half)}" for value, half in pairs],
                hovertemplate=f"%{{y}}, {cost}, {kind}: %{{text}}<extra></extra>",
            )
    figure.update_xaxes(title="exponent of the swept size, lower is better")
    names = [axes.escaped(probe) for probe in probes]
    order = {"categoryorder": "array", "categoryarray": names, "range": [-0.6, max(len(names), 1) - 0.4]}
    figure.update_yaxes(automargin=True, dtick=1, title=None, **order)
    return figure

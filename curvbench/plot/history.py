"""A metric over the runs of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from curvbench.analysis.history import STEP, history_table
from curvbench.analysis.summary import digits, problems
from curvbench.analysis.views import Quantity
from curvbench.plot import axes
from curvbench.plot.look import RED, by_family, look

if TYPE_CHECKING:
    import plotly.graph_objects as go


STEPPED = "a step"


def history(frame: pd.DataFrame, quantity: Quantity, problem: str | None = None, step: float = STEP) -> go.Figure:
    """One line per probe over the runs, oldest first; a change of more than ``step`` is ringed."""
    problem = problem or next(iter(problems(frame)), "")
    table = history_table(frame, problem, quantity, step)
    floor = axes.logarithmic(table["value"])
    latest = table.drop_duplicates("probe", keep="last")
    notes = [*axes.not_drawn(latest, "value"), *axes.at_the_edge(latest, "value", floor)]
    figure = axes.new_figure(
        axes.problem_title(frame, quantity.metric, problem), notes, names=[*table["probe"].unique(), STEPPED]
    )
    for probe in by_family(table["probe"].unique()):
        rows, (color, symbol) = table[table["probe"] == probe], look(probe)
        figure.add_scatter(
            x=rows["run"].map(axes.escaped),
            y=axes.clipped(rows["value"], floor),
            mode="lines+markers",
            line={"color": color, "width": 1.5},
            marker={"symbol": symbol, "size": 9},
            name=axes.escaped(probe),
            text=rows["value"].map(digits),
            customdata=rows["change"],
            hovertemplate=f"<b>{axes.escaped(probe)}</b><br>%{{x}}: %{{text}} (%{{customdata:+.1%}})<extra></extra>",
        )
    stepped = table[table["step"]]
    if len(stepped):
        figure.add_scatter(
            x=stepped["run"].map(axes.escaped),
            y=axes.clipped(stepped["value"], floor),
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "color": RED, "line": {"width": 2}},
            name=STEPPED,
            hoverinfo="skip",
        )
    figure.update_xaxes(title="run", type="category", categoryorder="array", categoryarray=list(table["run"].unique()))
    shown = axes.clipped(table["value"], floor)
    figure.update_yaxes(title=axes.upright(axes.axis_title(quantity)), **axes.scale(shown, floor))
    return figure

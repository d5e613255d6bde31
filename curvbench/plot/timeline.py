"""A metric over the runs of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from curvbench.analysis.summary import digits
from curvbench.analysis.views import Quantity, plain
from curvbench.plot import axes
from curvbench.plot.look import RED, looks

if TYPE_CHECKING:
    import plotly.graph_objects as go


STEPPED = "a step"
LINE = 24  # pixels of the second line of a run's name


def history_figure(table: pd.DataFrame, problem: str, quantity: Quantity) -> go.Figure:
    """One line per probe over the runs, oldest first; steps are ringed.

    ``table`` as ``analysis.history.history_table`` gives it.
    """
    floor = axes.logarithmic(table["value"])
    latest = table.drop_duplicates("probe", keep="last")
    notes = [*axes.not_drawn(latest, "value"), *axes.at_the_edge(latest, "value", floor)]
    figure = axes.new_figure(
        axes.problem_title(plain(quantity.metric), problem), notes, names=[*table["probe"].unique(), STEPPED]
    )
    runs = [_tick(run) for run in table["run"].unique()]
    for probe, look in looks(table["probe"].unique()).items():
        rows = table[table["probe"] == probe]
        figure.add_scatter(
            x=rows["run"].map(_tick),
            y=axes.clipped(rows["value"], floor),
            mode="lines+markers",
            line={"color": look.color, "width": 1.5, "dash": look.dash},
            marker=look.marker(9),
            name=axes.escaped(probe),
            text=rows["value"].map(digits),
            customdata=rows["change"],
            hovertemplate=f"<b>{axes.escaped(probe)}</b><br>%{{x}}: %{{text}} (%{{customdata:+.1%}})<extra></extra>",
        )
    stepped = table[table["step"]]
    if len(stepped):
        figure.add_scatter(
            x=stepped["run"].map(_tick),
            y=axes.clipped(stepped["value"], floor),
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "color": RED, "line": {"width": 2}},
            name=STEPPED,
            hoverinfo="skip",
        )
    order = {"categoryorder": "array", "categoryarray": runs, "range": [-0.5, len(runs) - 0.5]}
    figure.update_xaxes(title="run: when it began, and its code", type="category", **order)
    layout = figure.layout
    layout.update(height=layout.height + LINE, legend_y=1.45 * layout.legend.y, margin_b=layout.margin.b + LINE)
    clipped = axes.clipped(table["value"], floor)
    figure.update_yaxes(title=axes.upright(axes.axis_title(quantity)), **axes.scale(clipped, floor))
    return figure


def _tick(run: str) -> str:
    """A run's name in two lines: when it began, and the code."""
    return axes.escaped(run).replace("-", "<br>", 1)

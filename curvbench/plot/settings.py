"""Quality against a method's damping, with its plateau, and against the dtype of its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from curvbench.analysis import dampings, digits
from curvbench.analysis.summary import digits as shown
from curvbench.analysis.views import Quantity
from curvbench.plot import axes
from curvbench.plot.accuracy import sweep_figure
from curvbench.plot.look import looks

if TYPE_CHECKING:
    import plotly.graph_objects as go

THICK = 9  # pixels


def damping_figure(table: pd.DataFrame, quantity: Quantity) -> go.Figure:
    """A quantity against the damping: one line per probe, its plateau thick.

    ``table`` as ``analysis.dampings.curves`` gives it.
    """
    figure = sweep_figure(table, dampings.AXIS, quantity)
    best = dampings.plateaus(table)
    for probe, look in looks(table["probe"].unique()).items():
        rows = best[best["probe"] == probe]
        figure.add_scatter(
            x=rows[dampings.AXIS],
            y=rows["median"],
            mode="lines",
            opacity=0.35,
            line={"color": look.color, "width": THICK},
            legendgroup=axes.escaped(probe),
            showlegend=False,
            hoverinfo="skip",
        )
    return figure


def dtype_figure(table: pd.DataFrame, quantity: Quantity) -> go.Figure:
    """A quantity against the dtype of the statistics: one line per probe.

    ``table`` as ``analysis.digits.against_dtype`` gives it.
    """
    floor = axes.logarithmic(table["median"])
    figure = axes.new_figure(f"{axes.axis_title(quantity)}", names=table["probe"].unique())
    for probe, look in looks(table["probe"].unique()).items():
        rows = table[table["probe"] == probe]
        figure.add_scatter(
            x=rows[digits.AXIS],
            y=axes.clipped(rows["median"], floor),
            mode="lines+markers",
            line={"color": look.color, "dash": look.dash},
            marker=look.marker(9),
            name=axes.escaped(probe),
            text=rows["median"].map(shown),
            hovertemplate=f"<b>{axes.escaped(probe)}</b><br>%{{x}}: %{{text}}<extra></extra>",
        )
    order = [dtype for dtype in digits.ORDER if dtype in set(table[digits.AXIS])]
    figure.update_xaxes(title="dtype of the statistics", type="category", categoryorder="array", categoryarray=order)
    values = axes.clipped(table["median"], floor)
    figure.update_yaxes(title=axes.upright(axes.axis_title(quantity)), **axes.scale(values, floor))
    return figure

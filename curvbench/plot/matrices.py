"""The exact Fisher of a layer, an approximation of it, and what is between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curvbench.analysis.summary import digits
from curvbench.plot import axes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Matrix = npt.NDArray[np.floating[Any]]
DECADES = 4


def matrices(exact: Matrix, approximation: Matrix, layer: str = "", probe: str = "") -> go.Figure:
    """|F|, |F^| and |F^ - F| of one layer side by side, zoomed together, on one colour scale of four decades."""
    if exact.shape != approximation.shape:
        raise ValueError(f"two matrices of one size expected, got {exact.shape} and {approximation.shape}")
    from plotly.subplots import make_subplots

    panels = {"exact Fisher": exact, probe or "approximation": approximation, "|difference|": approximation - exact}
    figure = axes.new_figure(f"Layer {axes.escaped(layer)}: entries by size", height=400)
    layout = figure.layout
    grid = make_subplots(
        rows=1, cols=3, subplot_titles=[axes.escaped(n) for n in panels], shared_yaxes="all", shared_xaxes="all"
    )
    grid.update_layout(layout.to_plotly_json() | {"annotations": grid.layout.annotations})
    top = float(np.log10(max(abs(exact).max(), np.finfo(float).tiny)))
    for column, matrix in enumerate(panels.values(), 1):
        size = np.log10(np.maximum(abs(matrix), 10 ** (top - 2 * DECADES)))
        heat = {"z": size, "customdata": matrix, "zmin": top - DECADES, "zmax": top, "colorscale": "Viridis"}
        hover = "row %{y}, column %{x}: %{customdata:.3g}<extra></extra>"
        ticks = [top - DECADES + k for k in range(DECADES + 1)]
        bar = {"tickvals": ticks, "ticktext": [digits(10**tick) for tick in ticks], "thickness": 12}
        grid.add_heatmap(**heat, hovertemplate=hover, showscale=column == 3, colorbar=bar, row=1, col=column)
    grid.update_yaxes(autorange="reversed", constrain="domain")
    grid.update_yaxes(scaleanchor="x", row=1, col=1)
    grid.update_xaxes(constrain="domain")
    return grid

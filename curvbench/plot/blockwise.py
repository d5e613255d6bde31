"""The exact Fisher of a layer, an approximation, and their difference: entries, units, eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from curvbench.analysis.matrices import unit_norms
from curvbench.analysis.summary import digits
from curvbench.plot import axes
from curvbench.plot.look import by_family, looks
from curvbench.spec.pictures import Array

if TYPE_CHECKING:
    import plotly.graph_objects as go

DECADES = 4
HEIGHT = 400
SCALE = 80  # pixels below the panels for the scale of colours
FEW = 9  # rows: each has its number
GREY = "#808080"


def matrices_figure(
    exact: Array, approximation: Array, layer: str = "", probe: str = "", inputs: int | None = None
) -> go.Figure:
    """|F|, |F^| and |F^ - F| of one layer side by side, zoomed together, on one colour scale of four decades.

    ``inputs`` (D): lines part the units of the layer.

    Raises:
        ValueError: sizes differ.
    """
    title = f"Layer {axes.escaped(layer)}: entries by size{axes.escaped(probe and f', {probe}')}"
    figure = _side_by_side(_panels(exact, approximation, probe), title, "|entry|")
    if inputs is not None:
        for edge in range(inputs, len(exact), inputs):
            figure.add_vline(x=edge - 0.5, line_width=1, line_color="white", opacity=0.6)
            figure.add_hline(y=edge - 0.5, line_width=1, line_color="white", opacity=0.6)
    return figure


def units_figure(exact: Array, approximation: Array, inputs: int, layer: str = "", probe: str = "") -> go.Figure:
    """Frobenius norms of the blocks between units, of the same three matrices.

    Raises:
        ValueError: sizes differ.
    """
    panels = {name: unit_norms(panel, inputs) for name, panel in _panels(exact, approximation, probe).items()}
    title = f"Layer {axes.escaped(layer)}: norms of the blocks between units"
    return _side_by_side(panels, title, "norm of a block", "unit of ")


def spectra_figure(table: pd.DataFrame, layer: str = "") -> go.Figure:
    """The largest eigenvalues of one layer, exact and of each probe, as ``analysis.matrices.spectra`` gives them."""
    probes = by_family(str(name) for name in table if name not in ("index", "exact"))
    values = pd.Series(table[["exact", *probes]].to_numpy().ravel() if len(table) else [], dtype="float64")
    floor = axes.logarithmic(values)
    below = [probe for probe in probes if floor is not None and (table[probe] < floor).any()]
    notes = [f"at the edge, below the range of the axis: {', '.join(below)}"] if below else []
    title = f"Layer {axes.escaped(layer)}: largest eigenvalues"
    figure = axes.new_figure(title, notes, names=["exact Fisher", *probes])
    if len(table):
        _line(figure, table, "exact", "exact Fisher", {"color": GREY, "width": 6}, {"size": 1}, floor)
    for probe, (color, symbol, dash) in looks(probes).items():
        line = {"color": color, "width": 1, "dash": dash}
        _line(figure, table, probe, probe, line, {"symbol": symbol, "size": 7}, floor)
    figure.update_xaxes(title="index, the largest first", rangemode="normal")
    figure.update_yaxes(title="eigenvalue<br>the exact one is best", **axes.scale(axes.clipped(values, floor), floor))
    return figure


def _line(
    figure: go.Figure,
    table: pd.DataFrame,
    column: str,
    name: str,
    line: Mapping[str, Any],
    marker: Mapping[str, Any],
    floor: float | None,
) -> None:
    figure.add_scatter(
        x=table["index"],
        y=axes.clipped(table[column], floor),
        mode="lines+markers",
        line=line,
        marker=marker,
        name=axes.escaped(name),
        text=table[column].map(digits),
        hovertemplate=f"<b>{axes.escaped(name)}</b><br>%{{x}}: %{{text}}<extra></extra>",
    )


def _panels(exact: Array, approximation: Array, probe: str) -> dict[str, Array]:
    if exact.shape != approximation.shape:
        raise ValueError(f"two matrices of one size expected, got {exact.shape} and {approximation.shape}")
    return {"exact Fisher": exact, probe or "approximation": approximation, "|difference|": approximation - exact}


def _side_by_side(panels: Mapping[str, Array], title: str, what: str, of: str = "") -> go.Figure:
    from plotly.subplots import make_subplots

    layout = axes.new_figure(title, height=HEIGHT).layout
    names = [axes.escaped(name) for name in panels]
    shared = {"shared_yaxes": "all", "shared_xaxes": "all", "horizontal_spacing": 0.02}
    grid = make_subplots(rows=1, cols=3, subplot_titles=names, **shared)
    grid.update_layout(layout.to_plotly_json() | {"annotations": grid.layout.annotations})
    first, second, _ = panels.values()
    largest = max(abs(first).max(initial=0), abs(second).max(initial=0), np.finfo(np.float32).tiny)
    top = float(np.log10(largest)) if np.isfinite(largest) else 0.0
    ticks = [top - DECADES + k for k in range(DECADES + 1)]
    bar = {"tickvals": ticks, "ticktext": [digits(10**tick) for tick in ticks], "thickness": 12, "len": 0.6}
    bar |= {"orientation": "h", "y": 0, "yanchor": "top", "ypad": 28}
    bar |= {"title": {"text": f"{what}, by {of}row and {of}column", "side": "bottom", "font": {"size": 12}}}
    hover = f"{of}row %{{y}}, {of}column %{{x}}: %{{customdata:.3g}}<extra></extra>"
    for column, matrix in enumerate(panels.values(), 1):
        size = np.log10(np.maximum(abs(matrix), 10 ** (top - 2 * DECADES)))
        heat = {"z": size, "customdata": matrix, "zmin": top - DECADES, "zmax": top, "colorscale": "Viridis"}
        grid.add_heatmap(**heat, hovertemplate=hover, showscale=column == 3, colorbar=bar, row=1, col=column)
    ticks_at = {"dtick": 1} if len(first) < FEW else {"nticks": 4}
    grid.update_yaxes(autorange="reversed", constrain="domain", constraintoward="bottom", **ticks_at)
    grid.update_yaxes(scaleanchor="x", row=1, col=1)
    grid.update_xaxes(constrain="domain", **ticks_at)
    grid.update_layout(margin_b=SCALE)
    for annotation in grid.layout.annotations:  # above its panel, which is low in a narrow window
        annotation.update(yref="y domain")
    return grid

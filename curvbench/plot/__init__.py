"""Figures of plotly, from the rows that ``curvbench.load`` gives.

>>> import curvbench as cb
>>> sorted(name for name in cb.plot.__all__ if name.startswith("c"))
['comparison', 'cost', 'curves']

``from_rows`` makes the table of a figure and draws it, ``from_runs`` draws what a run's folder holds; every other file
is pure functions from a table to a figure, whose names end in ``_figure``. Plotly comes with
``pip install 'curvbench[dashboard]'``. A method keeps its colour and its symbol in all figures, every figure names the
probes that it could not draw, and a figure with nothing to draw says so.
"""

from curvbench.plot.from_rows import (
    aging,
    comparison,
    cost,
    curves,
    growth,
    heatmap,
    history,
    profiles,
    sampling,
    status,
    sweep,
    tradeoff,
)
from curvbench.plot.from_runs import matrices, spectra, units

__all__ = [
    "aging",
    "comparison",
    "cost",
    "curves",
    "growth",
    "heatmap",
    "history",
    "matrices",
    "profiles",
    "sampling",
    "spectra",
    "status",
    "sweep",
    "tradeoff",
    "units",
]

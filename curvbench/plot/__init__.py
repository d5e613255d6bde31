"""Figures: pure functions from the rows that ``curvbench.load`` gives to a plotly figure.

>>> import curvbench as cb
>>> sorted(name for name in cb.plot.__all__ if name.startswith("c"))
['comparison', 'cost', 'curves']

The rows should be those of one run: medians are taken over all rows of a probe. Plotly comes with
``pip install 'curvbench[dashboard]'``. Colours and symbols belong to a method for good, and every figure says what it
could not draw.
"""

from curvbench.plot.accuracy import heatmap, sweep
from curvbench.plot.blockwise import matrices, spectra, units
from curvbench.plot.exponents import growth
from curvbench.plot.frontier import tradeoff
from curvbench.plot.overview import status
from curvbench.plot.phases import cost
from curvbench.plot.runs import comparison
from curvbench.plot.timeline import history
from curvbench.plot.training import curves, profiles

__all__ = [
    "comparison",
    "cost",
    "curves",
    "growth",
    "heatmap",
    "history",
    "matrices",
    "profiles",
    "spectra",
    "status",
    "sweep",
    "tradeoff",
    "units",
]

"""Figures: pure functions from the rows that ``curvbench.load`` gives to a plotly figure.

>>> import curvbench as cb
>>> sorted(name for name in cb.plot.__all__ if name.startswith("c"))
['comparison', 'cost', 'curves']

The rows should be those of one run: medians are taken over all rows of a probe. Plotly comes with
``pip install 'curvbench[dashboard]'``. Colours and symbols belong to a method for good, and every figure says what it
could not draw.
"""

from curvbench.plot.accuracy import heatmap, sweep
from curvbench.plot.comparison import comparison
from curvbench.plot.cost import cost
from curvbench.plot.growth import growth
from curvbench.plot.history import history
from curvbench.plot.matrices import matrices, spectra, units
from curvbench.plot.overview import status
from curvbench.plot.tradeoff import tradeoff
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

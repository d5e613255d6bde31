"""What a method costs on a network, from the shapes of its layers alone."""

from curvbench.prediction.asked import cost, shapes
from curvbench.prediction.files import FOLDER, dumped, shipped
from curvbench.prediction.layout import Shape, Shapes
from curvbench.prediction.pricing import Cost
from curvbench.prediction.table import Costs

__all__ = ["FOLDER", "Cost", "Costs", "Shape", "Shapes", "cost", "dumped", "shapes", "shipped"]

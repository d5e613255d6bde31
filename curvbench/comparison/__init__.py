"""A model of the user's, measured in this process: one call, one answer."""

from curvbench.comparison.measuring import BOUNDS, SUITE, measure, suite_of
from curvbench.comparison.result import Comparison

__all__ = ["BOUNDS", "SUITE", "Comparison", "measure", "suite_of"]

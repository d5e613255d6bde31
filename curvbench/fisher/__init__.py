"""The exact Fisher matrix of a batch: score columns in factored form, their Gram matrix, and what follows from it."""

from curvbench.fisher.contraction import gram_cost
from curvbench.fisher.exact import ExactFisher, exact_fisher
from curvbench.fisher.stream import collect

__all__ = ["ExactFisher", "collect", "exact_fisher", "gram_cost"]

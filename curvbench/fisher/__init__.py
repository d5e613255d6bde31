"""The exact Fisher matrix of a batch: score columns in factored form, their Gram matrix, and its products."""

from curvbench.fisher.exact import ExactFisher, batch_fisher, exact_fisher
from curvbench.fisher.stream import collect, groups

__all__ = [
    "ExactFisher",
    "batch_fisher",
    "collect",
    "exact_fisher",
    "groups",
]

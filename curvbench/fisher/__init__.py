"""The exact Fisher matrix of a batch: score columns in factored form, their Gram matrix, and its products."""

from curvbench.fisher.contraction import column_count, gram_cost, product_cost
from curvbench.fisher.exact import ExactFisher, batch_fisher, exact_fisher
from curvbench.fisher.stream import collect, groups

__all__ = [
    "ExactFisher",
    "batch_fisher",
    "collect",
    "column_count",
    "exact_fisher",
    "gram_cost",
    "groups",
    "product_cost",
]

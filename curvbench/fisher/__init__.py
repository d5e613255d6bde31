"""The exact Fisher matrix of a batch: score columns in factored form, their Gram matrix, and its products."""

from curvbench.fisher.compressed import CompressedFisher, compressed_fisher
from curvbench.fisher.exact import ExactFisher, batch_fisher, exact_fisher
from curvbench.fisher.stream import collect, groups

__all__ = [
    "CompressedFisher",
    "ExactFisher",
    "batch_fisher",
    "collect",
    "compressed_fisher",
    "exact_fisher",
    "groups",
]

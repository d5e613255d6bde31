"""Where the error of an operator lies: in the leading eigenspace of the exact Fisher, across its border, or outside.

With orthonormal eigenvectors Y of the largest eigenvalues, E = F^ - F has the parts Y^T E Y (inside), Y^T E Z and its
transpose (cross) and Z^T E Z (outside), Z a basis of the complement. No Z is formed, because F Y = Y diag(values).
"""

from __future__ import annotations

import torch

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.operators import Operator

IMAGE_BYTES = 2**30  # of products with eigenvectors that exist at the same time


def shares(operator: Operator, fisher: ExactFisher, total: float) -> dict[str, float]:
    """The shares of the three parts in |F^ - F|^2, whose value is ``total``."""
    values, vectors = fisher.leading
    step = max(1, IMAGE_BYTES // (operator.size * operator.dtype.itemsize))
    products, length = [], 0.0
    for some in vectors.split(step, dim=1):
        image = operator.matmat(some.to(operator.dtype))
        products.append(vectors.mT.to(image.dtype) @ image)
        length += numerics.sum_squares(image)
    within = torch.cat(products, dim=1).double()
    inside = numerics.sum_squares(within - values.diag()) / total
    cross = 2 * max(length - numerics.sum_squares(within), 0.0) / total
    return {"inside": inside, "cross": cross, "outside": max(1 - inside - cross, 0.0)}

"""Where the error of an operator lies: in the leading eigenspace of the exact Fisher, across its border, or outside.

With orthonormal eigenvectors Y of the largest eigenvalues, E = F^ - F has the parts Y^T E Y (inside), Y^T E Z and its
transpose (cross) and Z^T E Z (outside), Z a basis of the complement. No Z is formed, because F Y = Y diag(values).
"""

from __future__ import annotations

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.operators import Operator


def shares(operator: Operator, fisher: ExactFisher, total: float) -> dict[str, float]:
    """The shares of the three parts in |F^ - F|^2, whose value is ``total``."""
    values, Y = fisher.leading()
    Y = Y.to(operator.dtype)
    image = operator.matmat(Y)
    within = (Y.mT @ image).double()
    inside = numerics.sum_squares(within - values.diag()) / total
    cross = 2 * max(numerics.sum_squares(image) - numerics.sum_squares(within), 0.0) / total
    return {"inside": inside, "cross": cross, "outside": max(1 - inside - cross, 0.0)}

"""The operator algebra: curvature matrices in closed form; only ``Dense`` stores the matrix itself."""

from curvbench.operators.base import Dense, Operator, Shifted
from curvbench.operators.blocks import BlockDiagonal
from curvbench.operators.diagonal import Diagonal, Identity
from curvbench.operators.kronecker import Kronecker, RotatedDiagonal
from curvbench.operators.kronsum import KroneckerSum
from curvbench.operators.lowrank import LowRank
from curvbench.operators.permuted import Permuted
from curvbench.operators.subspace import Subspace

__all__ = [
    "BlockDiagonal",
    "Dense",
    "Diagonal",
    "Identity",
    "Kronecker",
    "KroneckerSum",
    "LowRank",
    "Operator",
    "Permuted",
    "RotatedDiagonal",
    "Shifted",
    "Subspace",
]

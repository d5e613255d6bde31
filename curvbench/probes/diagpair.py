"""Diagonal pair: the outer product s q^T nearest to the diagonal of every block in Frobenius norm.

With the diagonal of a block as a matrix Delta (M, D), s and q are its leading singular pair, which is not negative
(Perron). It is the fixed point of the alternation s = Delta q / |q|^2, q = Delta^T s / |s|^2 of RACS, and the bound of
methods that keep row and column statistics, as Adafactor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import groups
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts.factors import own_matrix
from curvbench.parts.lanczos import nonzero
from curvbench.spec import About, FisherProbe


@dataclass(frozen=True)
class Diagpair(FisherProbe):
    """The best product of two diagonals per layer: no diag(s) (x) diag(q) is nearer to the exact block."""

    is_layerwise = True
    role = "bound"
    about = About(
        represents="diag(s) (x) diag(q) per layer (and group), nearest to the diagonal of F in Frobenius norm",
        damping="(F^ + damping I)^-1, entry by entry",
        notes=(
            "A position or another parameter of several dimensions is a matrix of its own shape, flattened behind the "
            "first dimension; of one dimension it has its exact diagonal.",
        ),
        source="Van Loan and Pitsianis 1993, of diagonals; the fixed point of RACS (Gong et al. 2025)",
        family="exact in part",
        color="blue",
        formulas=(
            r"\hat F_\ell = \mathrm{diag}(s) \otimes \mathrm{diag}(q)",
            r"(s, q) = \mathrm{arg}\,\min_{s,\,q} \|\Delta - s q^\top\|_F",
            r"\Delta = \mathrm{E}[W \circ W]",
        ),
    )

    def update(self, state: list[Kronecker] | None, batch: Instance) -> list[Kronecker]:
        squares = torch.zeros(batch.size, dtype=torch.float64, device=batch.device)
        for columns in groups(batch, self.fisher_type, self.mc_samples, self.seed):
            for c in columns:
                squares[c.layer.slice] += c.squares().flatten()
        parts = ((squares[la.slice] / batch.terms).reshape(own_matrix(la, batch)) for la in batch.layers)
        return [nearest_pair(part, batch.dtype) for part in parts]

    def precondition(self, state: list[Kronecker], gradient: Tensor) -> Tensor:
        return self.operator(state).solve(gradient, self.damping)

    def operator(self, state: list[Kronecker]) -> BlockDiagonal:
        return BlockDiagonal(state)


def nearest_pair(diagonals: Tensor, dtype: torch.dtype) -> Kronecker:
    """The diagonals s (G, M), which have the scale, and q (G, D), of length 1, nearest to matrices (G, M, D) >= 0."""
    if diagonals.shape[1] > diagonals.shape[2]:  # because the smaller side's Gram matrix decides the pair
        turned = nearest_pair(diagonals.mT, torch.float64)
        s, q = turned.right, turned.left
    else:
        scaled = diagonals / nonzero(diagonals.amax((1, 2), keepdim=True))  # because squares could underflow
        s = numerics.eigh(scaled @ scaled.mT)[1][:, :, -1].abs()
        q = (diagonals.mT @ s[:, :, None])[:, :, 0]
    lengths = nonzero(torch.linalg.vector_norm(q, dim=-1, keepdim=True))
    s, q = s * lengths, q / lengths
    return Kronecker(s.to(dtype), q.to(dtype), True, True)

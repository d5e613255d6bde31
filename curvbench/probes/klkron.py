"""KL-Kronecker: the Kronecker product nearest to every damped block in KL divergence, the twin of KPSVD.

For C = F + damping I of a block, B (x) A minimises KL(N(0, C) || N(0, B (x) A)), which is half of
tr((B (x) A)^-1 C) - P - log det((B (x) A)^-1 C). With score matrices W the minimum solves

    B = (E[W A^-1 W^T] + damping tr(A^-1) I) / D,   A = (E[W^T B^-1 W] + damping tr(B^-1) I) / M.

Either equation in turn is the alternation for the covariance of a matrix normal distribution (Dutilleul 1999), which
is accelerated here. The divergence is geodesically convex in (B, A) (Wiesel 2012), so that there is one minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.fisher.formed import for_repeated_contractions
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Dense, Diagonal, Kronecker, Operator
from curvbench.parts.factors import Block, Factored, factor_entries
from curvbench.parts.fixed_point import fixed_point
from curvbench.parts.lanczos import NotReached
from curvbench.parts.others import LARGEST_BLOCK, damped_inverse, other_block
from curvbench.parts.ranges import at_least_one, fraction
from curvbench.parts.roles import represented
from curvbench.parts.storage import too_large
from curvbench.spec import About, FisherProbe


@dataclass(frozen=True)
class Klkron(FisherProbe):
    """The KL-optimal Kronecker product per layer: no B (x) A is nearer to the damped block in KL divergence.

    ``iterations``: the largest number of rounds, each one product with A^-1 and one with B^-1. ``tolerance``: the
    change of the smaller factor's logarithm (Frobenius) in one round at which the rounds stop. The divergence is then
    within the square of this number of the least one.
    """

    iterations: int = 200
    tolerance: float = 1e-9

    is_layerwise = True
    represents_damped = True
    role = "bound"
    about = About(
        represents="the B (x) A nearest to each block of F + damping I in KL divergence; a vector's whole exact block",
        notes=(
            "A bound in KL divergence among Kronecker products, with factored damping or without any; (B (x) A + "
            "damping I)^-1 is outside of the family and may be nearer. In Frobenius norm `kpsvd` is the bound.",
            "The rounds compute in float64, because inverses of both factors enter them.",
            "A vector, as a norm's scale and shift, has its exact block plus the damping; with more than "
            f"{LARGEST_BLOCK} entries it has its exact diagonal.",
        ),
        damping="inside the fit: B (x) A estimates F + damping I, and the step is (B (x) A)^-1 g; must be above zero",
        source="Dutilleul 1999, the alternation for the maximum likelihood of a matrix normal distribution",
        family="Kronecker bounds",
        color="blue",
        formulas=(
            r"\hat F_\ell = B \otimes A",
            r"(B, A) = \mathrm{arg}\,\min_{B,\,A \succ 0} \mathrm{KL}(\mathcal{N}_{C}\,\|\,\mathcal{N}_{B \otimes A})",
            r"\mathcal{N}_X = \mathcal{N}(0, X)",
            r"C = F_\ell + \lambda I",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping > 0:
            raise ValueError(f"damping must be above zero, got {self.damping}: without it there may be no minimum")
        at_least_one(self, "iterations")
        fraction(self, "tolerance")

    def unsupported(self, instance: Instance) -> str | None:
        return too_large("factors and inverses", 2 * factor_entries(instance), instance.dtype)

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        blocks, inverses = zip(*[self._block(c, batch.terms) for c in columns], strict=True)
        return Factored([*blocks], [*inverses])

    def _block(self, columns: Columns, terms: int) -> tuple[Block, Operator]:
        """The represented block of a layer and its inverse."""
        if columns.layer.kind != "vector":
            return self._nearest(columns, terms)
        block = other_block(columns.layer, columns.slopes, terms, "block")
        inverse = damped_inverse(block, self.damping)
        if isinstance(block, Diagonal):
            return Diagonal(block.entries + self.damping), inverse
        return Dense(numerics.damped(block.matrix, self.damping)), inverse

    def _nearest(self, columns: Columns, terms: int) -> tuple[Kronecker, Kronecker]:
        G, M, D = columns.layer.shape
        wide = for_repeated_contractions(columns.to(torch.float64))

        def left(A: Tensor) -> Tensor:
            return self._factor(wide.contract_inputs, _inverse(A), terms)

        def right(B: Tensor) -> Tensor:
            return self._factor(wide.contract_outputs, _inverse(B), terms)

        start = torch.eye(min(M, D), dtype=torch.float64, device=wide.slopes.device).expand(G, -1, -1)
        try:
            if M <= D:  # because logarithms of smaller factors cost less
                B = fixed_point(lambda B: left(right(B)), start, self.iterations, self.tolerance)
                A = right(B)
            else:
                A = fixed_point(lambda A: right(left(A)), start, self.iterations, self.tolerance)
                B = left(A)
        except NotReached as error:
            name = columns.layer.name
            raise ValueError(f"klkron of layer {name!r}: {error}: raise iterations or tolerance") from None
        balance = (_mean_eigenvalue(A) / _mean_eigenvalue(B)).sqrt()[:, None, None]
        B, A = balance * B, A / balance
        dtype = columns.slopes.dtype
        return Kronecker(B.to(dtype), A.to(dtype)), Kronecker(_inverse(B).to(dtype), _inverse(A).to(dtype))

    def _factor(self, contract: Callable[[Tensor], Tensor], inverse: Tensor, terms: int) -> Tensor:
        """The factor (G, n, n) that is best for the inverse X of the other one: (E[W X W^T] + damping tr(X) I) / m."""
        moment = contract(inverse) / (terms * inverse.shape[-1])
        return numerics.damped(moment, self.damping * _mean_eigenvalue(inverse))

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return BlockDiagonal(state.inverses).matvec(gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(represented(state.factors))


def _inverse(factor: Tensor) -> Tensor:
    return torch.cholesky_inverse(numerics.cholesky(factor))


def _mean_eigenvalue(factor: Tensor) -> Tensor:
    """The mean eigenvalue of each group's matrix, (G,)."""
    return factor.diagonal(dim1=-2, dim2=-1).mean(-1)

"""KPSVD: the best Kronecker product of every block in Frobenius norm (Van Loan and Pitsianis 1993).

It is the leading singular pair of the map A -> E[W A W^T] of score matrices W, found by Lanczos iteration from the
input factor of K-FAC. The map and its adjoint act on factored score columns: the rearranged block is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker, Operator
from curvbench.parts.factors import Block, Factored, KroneckerDamping, factor_entries
from curvbench.parts.lanczos import NotReached, leading, nonzero, normalized, norms
from curvbench.parts.others import LARGEST_BLOCK, other_block
from curvbench.parts.patch_sums import patch_moment
from curvbench.parts.polar import TakesPolar
from curvbench.parts.ranges import at_least_one, fraction
from curvbench.parts.roles import represented
from curvbench.parts.storage import too_large
from curvbench.spec import About, FisherProbe


@dataclass(frozen=True)
class Kpsvd(TakesPolar, FisherProbe):
    """The best Kronecker product per layer: no B (x) A is nearer to the exact block.

    ``iterations``: the largest number of rounds, each one product with the map and one with its adjoint. ``tolerance``:
    the residual of the pair, relative to the square of its singular value (Frobenius), at which the rounds stop.
    """

    iterations: int = 200
    tolerance: float = 1e-6

    is_layerwise = True
    role = "bound"
    about = About(
        represents="the B (x) A nearest to each block of F in Frobenius norm; a vector's whole exact block",
        notes=(
            "A vector, as a norm's scale and shift, has its exact block, so that no K-FAC is nearer there either; with "
            f"more than {LARGEST_BLOCK} entries it has its exact diagonal.",
        ),
        damping="(B (x) A + damping I)^-1 in the eigenbasis",
        source="Van Loan and Pitsianis 1993: the leading singular pair of the rearranged block",
        family="Kronecker bounds",
        color="green",
        formulas=(r"\hat F_\ell = B \otimes A = \mathrm{arg}\,\min_{B,\,A} \|F_\ell - B \otimes A\|_F",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "iterations")
        fraction(self, "tolerance")

    def unsupported(self, instance: Instance) -> str | None:
        return too_large("factors", factor_entries(instance), instance.dtype)

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return Factored([self._block(c, batch.terms) for c in columns])

    def _block(self, columns: Columns, terms: int) -> Block:
        if columns.layer.kind == "vector":
            return other_block(columns.layer, columns.slopes, terms, "block")
        return self._nearest(columns, terms)

    def _nearest(self, columns: Columns, terms: int) -> Kronecker:
        _, outputs, inputs = columns.layer.shape
        right = normalized(_start(columns))
        left = columns.contract_inputs(right)
        scale = nonzero(norms(left))  # because the square of a small singular value underflows in float32

        def around_inputs(A: Tensor) -> Tensor:
            return columns.contract_outputs(columns.contract_inputs(A) / scale) / scale

        def around_outputs(B: Tensor) -> Tensor:
            return columns.contract_inputs(columns.contract_outputs(B) / scale) / scale

        try:
            if outputs <= inputs:  # because the basis has a factor per round, and smaller factors cost less
                left = leading(around_outputs, left, self.iterations, self.tolerance)
                right = normalized(columns.contract_outputs(left))
            else:
                right = leading(around_inputs, right, self.iterations, self.tolerance)
        except NotReached as error:
            raise ValueError(f"kpsvd of layer {columns.layer.name!r}: {error}: raise iterations or tolerance") from None
        return Kronecker(columns.contract_inputs(right) / terms, right)

    def refresh(self, state: Factored) -> Factored:
        return self._solver.refresh(state)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return self._solver.precondition(state, gradient)

    @property
    def _solver(self) -> KroneckerDamping:
        return KroneckerDamping(self.damping, polar=self.polar)

    @property
    def has_damped_factors(self) -> bool:
        return False

    def damped(self, state: Factored) -> Operator | None:
        return None if self.sets_lengths else super().damped(state)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(represented(state.factors))


def _start(columns: Columns) -> Tensor:
    """K-FAC's input factor; of a tied block, which has no single input, the trace over outputs. (G, D, D)."""
    if columns.layer.kind == "tied":
        return columns.contract_outputs()
    return (patch_moment(columns.layer, columns.inputs) / len(columns.inputs)).to(columns.slopes.dtype)

"""KPSVD: the best Kronecker product of every block in Frobenius norm (Van Loan and Pitsianis 1993).

It is the leading singular pair of the map A -> E[W A W^T] of score matrices W, found by power iteration from the
input factor of K-FAC. The map and its adjoint act on factored score columns: the rearranged block is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts.factors import Factored, KroneckerDamping, input_factor
from curvbench.spec import About, FisherProbe


@dataclass(frozen=True)
class Kpsvd(FisherProbe):
    """The best Kronecker product per layer: no B (x) A is nearer to the exact block.

    ``iterations``: rounds of the power iteration at most; each comes nearer to the block, and the first is already
    K-FAC's or better. ``tolerance``: it stops when a round moves no normalized input factor by more (Frobenius).
    """

    iterations: int = 200
    tolerance: float = 1e-6

    about = About(
        represents="the B (x) A nearest to each block of F in Frobenius norm",
        damping="(B (x) A + damping I)^-1 in the eigenbasis",
        source="Van Loan and Pitsianis 1993: the leading singular pair of the rearranged block",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, got {self.tolerance}")

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return Factored([self._nearest(c, batch.terms) for c in columns])

    def _nearest(self, columns: Columns, terms: int) -> Kronecker:
        inputs = _normalized(input_factor(columns.layer, columns.inputs, "expand"))
        for _ in range(self.iterations):
            outputs = _normalized(columns.contract_inputs(inputs))
            before, inputs = inputs, _normalized(columns.contract_outputs(outputs))
            if bool((_norms(inputs - before) <= self.tolerance).all()):
                return Kronecker(columns.contract_inputs(inputs) / terms, inputs)
        # Short of the best product it would be no lower bound for its family.
        reason = f"{self.iterations} rounds did not reach the tolerance {self.tolerance:g}"
        raise ValueError(f"kpsvd of layer {columns.layer.name!r}: {reason}: raise iterations or tolerance")

    def refresh(self, state: Factored) -> Factored:
        return KroneckerDamping(self.damping).refresh(state)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return KroneckerDamping(self.damping).precondition(state, gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(state.factors)


def _norms(factors: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(factors)[:, None, None]


def _normalized(factors: Tensor) -> Tensor:
    """Per group of Frobenius norm 1; zero where nothing flows."""
    norms = _norms(factors)
    return factors / torch.where(norms > 0, norms, 1.0)

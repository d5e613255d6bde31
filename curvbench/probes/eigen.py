"""The best matrix of a given rank: the largest eigenpairs of the exact Fisher of all layers together.

By Eckart and Young (1936) its error sqrt(sum of the squared eigenvalues that are left out) is the least that any
matrix of that rank can have in Frobenius norm. With the Gram matrix V^T V = Q diag(s) Q^T of the score columns the
eigenvectors are V q / sqrt(s) and the eigenvalues s / terms: no P x P matrix is formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher, collect
from curvbench.instance import Instance
from curvbench.operators import LowRank
from curvbench.parts import brand
from curvbench.parts.ranges import at_least_one
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """Orthonormal eigenvectors (P, K) and their eigenvalues (K,); K is at most the rank, because zeros are left out."""

    basis: Tensor
    values: Tensor


@dataclass(frozen=True)
class Eigen(FisherProbe):
    """The largest eigenpairs of the exact Fisher: no matrix of their rank is nearer to it.

    ``rank``: the number of eigenpairs.
    """

    rank: int = 16

    role = "bound"
    about = About(
        represents="sum of lambda u u^T over the rank largest eigenpairs of the whole Fisher: a bound, not a method",
        damping="added to the matrix",
        source="Eckart and Young 1936",
        family="low rank",
        color="grey",
        formulas=(
            r"\hat F = \sum_{k=1}^{K} \lambda_k v_k v_k^\top",
            r"F v_k = \lambda_k v_k",
            r"\lambda_1 \ge \lambda_2 \ge \ldots",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rank")

    def unsupported(self, instance: Instance) -> str | None:
        columns = instance.samples * instance.columns_per_sample(self.fisher_type, self.mc_samples)
        if self.rank <= min(instance.size, columns):
            return None
        return f"rank {self.rank} is more than {instance.size} parameters and {columns} score columns allow"

    def update(self, state: State | None, batch: Instance) -> State:
        fisher = ExactFisher(collect(batch, self.fisher_type, self.mc_samples, self.seed), batch.terms)
        squares, weights = numerics.eigh(fisher.gram())
        largest = squares.flip(0)[: self.rank]
        # An eigenvalue that is zero but for rounding adds nothing, and its eigenvector would be rounding alone.
        largest = largest[largest > len(squares) * torch.finfo(batch.dtype).eps * squares[-1]]
        weights = weights.flip(1)[:, : len(largest)] / largest.sqrt()
        slopes = fisher.columns[0].slopes
        basis = fisher.combine(weights.reshape(*slopes.shape[:2], -1).to(slopes.dtype))
        return State(basis, (largest / batch.terms).to(basis.dtype))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        if self.damping == 0:
            return self.operator(state).solve(gradient, 0.0)
        return brand.damped_inverse(state.basis, state.values, gradient, self.damping)

    def operator(self, state: State) -> LowRank:
        return LowRank(state.basis, state.values)

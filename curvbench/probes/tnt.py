"""TNT: the covariance of a tensor normal distribution from its own contractions (Ren and Goldfarb 2021), matrix case.

Scores are summed over positions first, so that both partial traces of every block are exact. TKFAC counts positions
as samples; on a layer that is applied once both are the same matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from curvbench.fisher import groups
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker, Operator
from curvbench.parts.factors import DampingRule, Factored, KroneckerDamping, has_diagonal_inputs, is_cut
from curvbench.parts.others import NOTE, OtherMoment, Others
from curvbench.parts.roles import trace_scaled
from curvbench.spec import About, FisherProbe, Layer


@dataclass(frozen=True)
class Tnt(FisherProbe):
    """The Kronecker product of E[W W^T] and E[W^T W] over the block's trace, which keeps both partial traces.

    ``damping_rule``: how the damping enters the solve. ``pi`` divides it between the factors by their mean eigenvalues,
    ``factored`` adds sqrt(damping) to both, ``exact`` is (B (x) A + damping I)^-1. ``others``: what a vector has (a
    norm's scale and shift, positions, and any other parameter without a product). ``diagonal`` is its exact diagonal,
    ``unit`` an exact block per channel (of scale and shift), ``block`` its whole exact block.
    """

    damping_rule: DampingRule = "pi"
    others: Others = "diagonal"

    supports_ema: ClassVar[bool] = True
    is_layerwise = True
    combines_by: ClassVar[Literal["mean"]] = "mean"

    about = About(
        represents="E[W W^T] (x) E[W^T W] / t per layer (and group): W summed over positions, t the block's trace",
        damping="pi balances two dampings of the factors over sqrt(t); factored: their root each; exact: the product",
        cost={
            "statistics": "G N min(S (D^2 + R M^2) + 2 S^2 (D + R M), R M D (2 S + M + D))",
            "invert": "G (D^3 + M^3) ([damping_rule = exact] 9 + [damping_rule != exact]) / 2",
            "precondition": "([damping_rule = exact] + 1) G M D (M + D)",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Ren and Goldfarb 2021 (arXiv 2106.02925); averages and damping as they are understood here",
        notes=(
            NOTE,
            "A tied weight is one matrix here, whose scores are sums over its uses.",
        ),
        family="Kronecker",
        color="brown",
        formulas=(r"\hat F_\ell = \frac{1}{\mathrm{tr}\, F_\ell}\, \mathrm{E}[W W^\top] \otimes \mathrm{E}[W^\top W]",),
    )

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        sums = [OtherMoment(la, self.others) if la.kind == "vector" else Contractions(la) for la in batch.layers]
        for columns in groups(batch, self.fisher_type, self.mc_samples, self.seed):
            for total, c in zip(sums, columns, strict=True):
                if isinstance(total, Contractions):
                    total.add(c)
                else:
                    for slopes in c.slopes:
                        total.add(slopes)
        return Factored([total.mean(batch.terms) for total in sums])

    @property
    def _solver(self) -> KroneckerDamping:
        return KroneckerDamping(self.damping, self.damping_rule)

    def refresh(self, state: Factored) -> Factored:
        return state._replace(inverses=self._solver.refresh(Factored(trace_scaled(state.factors))).inverses)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return self._solver.precondition(state, gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(trace_scaled(state.factors))

    def damped(self, state: Factored) -> Operator:
        return self._solver.damped(trace_scaled(state.factors))


class Contractions:
    """The partial traces of a block, sums of W W^T and W^T W over the score columns, group of columns by group."""

    def __init__(self, layer: Layer) -> None:
        self._left_is_cut, self._right_is_cut = is_cut(layer.outputs), has_diagonal_inputs(layer)
        self._left = self._right = torch.zeros((), device="cpu")

    def add(self, columns: Columns) -> None:
        """Add the columns of some samples or cotangents."""
        G, _, D = columns.layer.shape
        slopes = columns.slopes
        squares = columns.squares().to(slopes.dtype) if self._left_is_cut or self._right_is_cut else slopes
        left = squares.sum(2) if self._left_is_cut else columns.contract_inputs(slopes.new_ones(G, D))
        right = squares.sum(1) if self._right_is_cut else columns.contract_outputs()
        self._left, self._right = left + self._left.to(left), right + self._right.to(right)

    def mean(self, terms: int) -> Kronecker:
        """E[W W^T] (x) E[W^T W] for a batch of ``terms`` loss terms; a large side, or a lookup's, is its diagonal."""
        return Kronecker.batched(self._left / terms, self._right / terms)

"""CW-NGD: component-wise natural gradient (Tran Van Sang et al. 2022, arXiv 2210.05268).

One exact block per output unit of a dense layer and per output channel of a convolution, F_o = sum_p u_po u_po^T with
u_po = sum_s g_pso a_ps (Eqs. 1, 6 and 7; Algorithm 1 for all layers, the first included). The paper takes the SUM over
the batch, the empirical Fisher, the mean gradient, and damping gamma on the sum: (F + gamma I)^-1 g is 1/N times
(F/N + gamma/N I)^-1 g. The bias's entry comes last in its unit's block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.fisher.units import UnitFisher, is_root
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Dense
from curvbench.parts.storage import fits
from curvbench.parts.unitwise import UnitBlocks, UnitFactors, damped_factors, damped_solve
from curvbench.spec import About, FisherProbe, FisherType

Scaling = Literal["sum", "mean"]
ScoreScale = Literal["per_sample", "divided_by_N"]


class State(NamedTuple):
    """Per layer its blocks (G M, D, D), or U (G M, rows, D) with U^T U the blocks if rows < D; Cholesky factors.

    Neither is stored where both are too large: the blocks are formed in tiles then.
    """

    matrices: Sequence[UnitBlocks]
    factors: Sequence[UnitFactors] = ()


@dataclass(frozen=True)
class Cwngd(FisherProbe):
    """One exact Fisher block per output unit or channel, summed over the batch, each solved on its own.

    ``scaling``: what the matrix is. ``sum`` is N times the mean Fisher, as in the paper; ``mean`` is the mean Fisher.
    ``score_scale``: the loss whose per-sample gradients are taken. ``divided_by_N`` takes the mean loss, which divides
    the matrix by N^2. ``damping``: the damping that is added to the matrix, in the matrix's own scale.

    A block with fewer rows than inputs is solved by Woodbury, any other by Cholesky.
    """

    fisher_type: FisherType = "empirical"
    damping: float = 1e-4
    scaling: Scaling = "sum"
    score_scale: ScoreScale = "per_sample"

    is_layerwise = True
    about = About(
        represents="per output unit or channel (of a group) sum u u^T of order D: N times the mean's block",
        damping="damping I is added to every block of the sum, which is damping / N to the mean; Cholesky or Woodbury",
        cost={
            "statistics": "G M (B S D + [B >= D] B D^2)",
            "invert": "G M ([B >= D] D^3 / 6 + [B < D] (B^2 D + B^3 / 6))",
            "precondition": "G M ([B >= D] D^2 + [B < D] 2 B D)",
            "memory": "G M D min(B, D)",
        },
        where={"B": "N ([S > 1] R + [S = 1])"},
        source="Tran Van Sang et al. 2022: Eqs. 1 and 4 to 7; Algorithm 1, lines 9 to 23",
        errata=("E-C",),
        family="rescaled layers",
        color="orange",
        formulas=(
            r"\hat F_\ell = N \bigoplus_{o=1}^{M} \mathrm{E}[w_o w_o^\top]",
            r"w_o = \sum_s g_{so}\, a_s",
        ),
    )

    def damping_unit(self, terms: int) -> float:
        return (terms if self.scaling == "sum" else 1) / (terms**2 if self.score_scale == "divided_by_N" else 1)

    def update(self, state: State | None, batch: Instance) -> State:
        scale = self.damping_unit(batch.terms) / batch.terms
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        if fits(sum(c.layer.size * min(c.unit_row_count, c.layer.inputs) for c in columns), batch.dtype):
            return State([_matrices(c, scale, roots=self.damping > 0) for c in columns])
        return State([UnitFisher(c, 1 / scale) for c in columns])

    def refresh(self, state: State) -> State:
        return state._replace(factors=damped_factors(state.matrices, self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return damped_solve(state.matrices, state.factors, gradient, self.damping)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([m if isinstance(m, UnitFisher) else Dense(_whole(m)) for m in state.matrices])


def _matrices(columns: Columns, scale: float, roots: bool) -> Tensor:
    """The blocks times ``scale``, or where that is smaller and ``roots`` allows it their roots."""
    rows = columns.unit_row_count
    return columns.unit_rows() * scale**0.5 if roots and rows < columns.layer.inputs else columns.unit_blocks() * scale


def _whole(matrix: Tensor) -> Tensor:
    return matrix.mT @ matrix if is_root(matrix) else matrix

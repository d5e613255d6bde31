"""Unit-wise natural gradient: one exact block per output unit (Kurita 1993; Ollivier 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.units import UnitFisher
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Dense
from curvbench.parts.storage import fits
from curvbench.parts.unitwise import UnitBlocks, UnitFactors, damped_factors, damped_solve
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """Per layer the blocks, stored (G M, D, D) or formed in tiles, and Cholesky factors of the damped blocks."""

    blocks: Sequence[Dense | UnitFisher]
    factors: Sequence[UnitFactors] = ()


@dataclass(frozen=True)
class Unit(FisherProbe):
    """One exact Fisher block per output unit (channel, for a convolution).

    Blocks that are too many to be stored are formed in tiles whenever they are needed.
    """

    supports_ema: ClassVar[bool] = True
    is_layerwise = True

    about = About(
        represents="per output unit (of a group) the block (1/N) sum u u^T of order D, u its rows of the score columns",
        damping="(F^ + damping I)^-1, by a Cholesky factor per block",
        cost={
            "statistics": "G M (N R D^2 + [S > 1] N R S D)",
            "invert": "G M D^3 / 6",
            "precondition": "G M D^2",
            "memory": "G M D^2",
        },
        source="Kurita 1993; Ollivier 2015",
        family="exact in part",
        color="sky",
        formulas=(r"\hat F_\ell = \bigoplus_{o=1}^{M} \mathrm{E}[w_o w_o^\top]",),
    )

    def update(self, state: State | None, batch: Instance) -> State:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        stored = fits(sum(s.entries * s.inputs for s in batch.sizes.values()), batch.dtype)
        if stored:
            return State([Dense(c.unit_blocks() / batch.terms) for c in columns])
        return State([UnitFisher(c, batch.terms) for c in columns])

    def refresh(self, state: State) -> State:
        return state._replace(factors=damped_factors(_blocks(state), self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return damped_solve(_blocks(state), state.factors, gradient, self.damping)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(list(state.blocks))


def _blocks(state: State) -> list[UnitBlocks]:
    return [block.matrix if isinstance(block, Dense) else block for block in state.blocks]

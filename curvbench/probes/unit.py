"""Unit-wise natural gradient: one exact block per output unit (Kurita 1993; Ollivier 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import collect
from curvbench.fisher.units import UnitFisher
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Dense
from curvbench.parts.storage import fits
from curvbench.parts.unitwise import factors_of, solved
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """Per layer the blocks, stored (G M, D, D) or formed in tiles, and Cholesky factors of the damped blocks."""

    blocks: Sequence[Dense | UnitFisher]
    factors: Sequence[Tensor | Sequence[Tensor] | None] = ()


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
    )

    def update(self, state: State | None, batch: Instance) -> State:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        stored = fits(sum(s.entries * s.inputs for s in batch.sizes.values()), batch.dtype)
        if stored:
            return State([Dense(c.unit_blocks() / batch.terms) for c in columns])
        return State([UnitFisher(c, batch.terms) for c in columns])

    def refresh(self, state: State) -> State:
        formed = [block for block in state.blocks if isinstance(block, UnitFisher)]
        stored = [block.matrix for block in state.blocks if isinstance(block, Dense)]
        dense = [numerics.damped_cholesky(matrix, self.damping) for matrix in stored]
        return state._replace(factors=dense or factors_of(formed, self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([block.size for block in state.blocks])
        triples = zip(state.blocks, parts, state.factors, strict=True)
        return torch.cat([self._solve(block, part, factor) for block, part, factor in triples])

    def _solve(self, block: Dense | UnitFisher, part: Tensor, factor: Tensor | Sequence[Tensor] | None) -> Tensor:
        if not isinstance(factor, Tensor):
            assert isinstance(block, UnitFisher), "refresh comes before precondition"
            return solved(block, part, self.damping, factor)
        right = part.reshape(*factor.shape[:2], 1).to(factor.dtype)
        return numerics.cholesky_solve(right, factor).flatten().to(part.dtype)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(list(state.blocks))

"""Unit-wise natural gradient: one exact block per output unit (Kurita 1993; Ollivier 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import collect
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Dense
from curvbench.parts.storage import too_large
from curvbench.spec import About, FisherProbe, LayerSize


class State(NamedTuple):
    """Per layer the blocks (G M, D, D), and the Cholesky factors of the damped blocks."""

    blocks: list[Tensor]
    factors: list[Tensor]


@dataclass(frozen=True)
class Unit(FisherProbe):
    """One exact Fisher block per output unit (channel, for a convolution)."""

    about = About(
        represents="per output unit (of a group) the block (1/N) sum u u^T of order D, u its rows of the score columns",
        damping="(F^ + damping I)^-1, by a Cholesky factor per block",
        cost={"statistics": "G M (N R D^2 + [S > 1] N R S D)", "invert": "G M D^3", "precondition": "G M D^2"},
        source="Kurita 1993; Ollivier 2015",
    )

    def unsupported(self, instance: Instance) -> str | None:
        numbers = sum(s.groups * s.outputs * s.inputs**2 for s in instance.sizes.values())
        return too_large("unit blocks", numbers, instance.dtype)

    def update(self, state: State | None, batch: Instance) -> State:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return State([c.unit_blocks() / batch.terms for c in columns], [])

    def refresh(self, state: State) -> State:
        return state._replace(factors=[numerics.damped_cholesky(b, self.damping) for b in state.blocks])

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([b.shape[0] * b.shape[1] for b in state.blocks])
        solved = [
            numerics.cholesky_solve(part.reshape(*factor.shape[:2], 1).to(factor.dtype), factor).flatten()
            for part, factor in zip(parts, state.factors, strict=True)
        ]
        return torch.cat(solved).to(gradient.dtype)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([Dense(block) for block in state.blocks])

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        b = samples * columns
        units = [(s.groups * s.outputs, s.inputs, s.positions) for s in sizes]
        return {
            "statistics": sum(b * m * d**2 + (b * S * m * d if S > 1 else 0) for m, d, S in units),
            "invert": sum(m * d**3 for m, d, _ in units),
            "precondition": sum(m * d**2 for m, d, _ in units),
            "memory": sum(m * d**2 for m, d, _ in units),
        }

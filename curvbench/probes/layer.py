"""Layer-wise natural gradient with the exact block of every layer: what block-diagonal methods approximate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.fisher import ExactFisher, collect, gram_cost
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal
from curvbench.spec import FisherProbe, LayerSize


class State(NamedTuple):
    """Per layer its exact block, and the Cholesky factor of its damped Gram matrix (R N, R N)."""

    blocks: list[ExactFisher]
    factors: list[Tensor]


@dataclass(frozen=True)
class LayerProbe(FisherProbe):
    """The exact diagonal blocks of all layers, never formed: Woodbury on their Gram matrices."""

    def update(self, state: State | None, batch: Instance) -> State:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        blocks = [ExactFisher((c,), batch.terms) for c in columns]
        for block in blocks:
            block.gram()  # cached: the Gram matrix belongs to the statistics
        return State(blocks, [])

    def refresh(self, state: State) -> State:
        return state._replace(factors=[block.factorize(self.damping) for block in state.blocks])

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient[:, None].split([block.size for block in state.blocks])
        triples = zip(state.blocks, parts, state.factors, strict=True)
        return torch.cat([block.solve_factorized(part, self.damping, factor) for block, part, factor in triples])[:, 0]

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(state.blocks)

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        b = samples * columns
        return {
            "statistics": sum(gram_cost(s, b) for s in sizes),
            "invert": len(sizes) * b**3,
            "precondition": sum(b * s.groups * s.outputs * s.inputs + b**2 for s in sizes),
        }

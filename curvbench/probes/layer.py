"""Layer-wise natural gradient with the exact block of every layer: what block-diagonal methods approximate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.fisher import ExactFisher, batch_fisher
from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """Per layer its exact block, and the Cholesky factor of its damped Gram matrix (R N, R N)."""

    blocks: list[ExactFisher]
    factors: list[Tensor]


@dataclass(frozen=True)
class LayerProbe(FisherProbe):
    """The exact diagonal blocks of all layers, never formed: Woodbury on their Gram matrices."""

    is_layerwise = True
    role = "reference"
    about = About(
        represents="the diagonal blocks of F, one per layer, as their Gram matrices",
        damping="(F^ + damping I)^-1 by a Cholesky factor of each layer's U^T U / N + damping I: U (.)^-1 a of the"
        " batch's own gradient U a, Woodbury of what else a gradient has",
        cost={
            "statistics": "[S = 1] (N R)^2 G (M + D)"
            " + [S > 1] G N min(R M D (N R + 2 S), (N + 1) S (S (D + R M) + R^2 M)) / 2",
            "invert": "L (N R)^3 / 6",
            "precondition": "4 N S G M (D + R) + 2 L (N R)^2",
            "memory": "N S G (D + R M) + 2 L (N R)^2",
        },
        source="F_l = U_l U_l^T / N, solved through U_l^T U_l: Ou et al. 2024, Eqs. 5 to 8; "
        "cost as here: columns in factored form, where papers store them and count N R P a product",
        family="exact in part",
        color="brown",
        formulas=(
            r"\hat F = \bigoplus_{\ell=1}^{L} F_\ell",
            r"F_\ell = \mathrm{E}[w_\ell w_\ell^\top]",
        ),
    )

    def update(self, state: State | None, batch: Instance) -> State:
        fisher = batch_fisher(batch, self.fisher_type, self.mc_samples, self.seed)
        blocks = [fisher.layer(layer.name) for layer in fisher.layers]
        for block in blocks:
            block.gram()  # cached: the Gram matrix belongs to the statistics
        return State(blocks, [])

    def refresh(self, state: State) -> State:
        factors = checked_together(lambda: [block.factorize(self.damping) for block in state.blocks])
        return state._replace(factors=factors)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([block.size for block in state.blocks])
        triples = zip(state.blocks, parts, state.factors, strict=True)
        return torch.cat([block.natural_gradient(part, self.damping, factor) for block, part, factor in triples])

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(state.blocks)

"""Exact natural gradient with the whole Fisher of the batch (Woodbury on the Gram matrix of all layers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from curvbench.fisher import ExactFisher, batch_fisher
from curvbench.instance import Instance
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """The batch's Fisher, and the Cholesky factor of its damped Gram matrix (R N, R N)."""

    fisher: ExactFisher
    factor: Tensor | None


@dataclass(frozen=True)
class Full(FisherProbe):
    """The exact Fisher of all layers together: the reference every other probe is compared with."""

    role = "reference"
    about = About(
        represents="F itself, the blocks between layers included, as its Gram matrix",
        damping="(F^ + damping I)^-1 by a Cholesky factor of U^T U / N + damping I, U over all layers: U (.)^-1 a of"
        " the batch's own gradient U a, Woodbury of what else a gradient has",
        cost={
            "statistics": "[S = 1] (N R)^2 G (M + D)"
            " + [S > 1] G N min(R M D (N R + 2 S), (N + 1) S (S (D + R M) + R^2 M)) / 2",
            "invert": "(N R)^3 / 6",
            "precondition": "4 N S G M (D + R) + 2 (N R)^2",
            "memory": "N S G (D + R M) + 2 (N R)^2",
        },
        source="F = U U^T / N, solved through U^T U: Ou et al. 2024, Eqs. 3, 4 and 6; "
        "cost as here: columns in factored form, where papers store them and count N R P a product",
        family="exact in part",
        color="grey",
        formulas=(r"\hat F = F = \mathrm{E}[w w^\top]",),
    )

    def update(self, state: State | None, batch: Instance) -> State:
        fisher = batch_fisher(batch, self.fisher_type, self.mc_samples, self.seed)
        fisher.gram()  # cached: the Gram matrix belongs to the statistics
        return State(fisher, None)

    def refresh(self, state: State) -> State:
        return state._replace(factor=state.fisher.factorize(self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        assert state.factor is not None, "refresh comes before precondition"
        return state.fisher.natural_gradient(gradient, self.damping, state.factor)

    def operator(self, state: State) -> ExactFisher:
        return state.fisher

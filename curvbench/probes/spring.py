"""SPRING (Goldshlager, Abrahamsen and Lin 2024): the natural gradient that begins at the last step.

Of all p with V^T p = a, up to the damping, it takes the one nearest to mu times the last step: p_t = (F + lambda I)^-1
(g_t + lambda mu p_t-1). Without mu it is the step of ``full``, which is MinSR. At frozen weights it goes to (F + lambda
(1 - mu) I)^-1 g, the step of ``full`` with a smaller damping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from curvbench.fisher import ExactFisher, batch_fisher
from curvbench.instance import Instance
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About, FisherProbe


class State(NamedTuple):
    """The last batch's Fisher, and the step p after it (P,)."""

    fisher: ExactFisher
    step: Tensor


@dataclass(frozen=True)
class Spring(FisherProbe):
    """The exact natural gradient of each batch, begun at a multiple of the step before.

    ``momentum``: the multiple of the last step at which the next one begins.
    """

    momentum: float = 0.99
    updates: int = 32
    batch_size: int | None = None

    has_own_momentum: ClassVar[bool] = True
    is_ranked_by_error: ClassVar[bool] = False

    about = About(
        represents="F itself, so that its error is 0 and ranks nothing: what is measured is the step",
        damping="(F + damping I)^-1 (g + damping momentum p), p the last step; of many updates on one batch the step is"
        " (F + damping (1 - momentum) I)^-1 g",
        cost={
            "statistics": "[S = 1] (N R)^2 G (M + D)"
            " + [S > 1] G N min(R M D (N R + 2 S), (N + 1) S (S (D + R M) + R^2 M)) / 2"
            " + (N R)^3 / 6 + 4 N S G M (D + R) + 2 (N R)^2",
            "invert": "0",
            "precondition": "0",
            "memory": "N S G (D / max(k, 1) + R M) + (N R)^2 + P",
        },
        source="Goldshlager, Abrahamsen and Lin 2024 (arXiv 2401.10190), and its public code",
        notes=(
            "Every update solves for its own gradient, so that all of the cost stands in statistics.",
            "The public code bounds the step's length and subtracts means over walkers, which belong to energies.",
        ),
        family="solvers",
        color="green",
        formulas=(
            r"\hat F = F",
            r"p_t = (F + \lambda I)^{-1} (\bar g_t + \lambda \mu\, p_{t-1})",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "momentum", zero=True)
        at_least_one(self, "updates", "batch_size")
        finite(self, "damping", zero=False)

    def update(self, state: State | None, batch: Instance) -> State:
        fisher, right = batch_fisher(batch, self.fisher_type, self.mc_samples, self.seed), batch.gradient()
        if state is not None:
            right = right + self.damping * self.momentum * state.step
        return State(fisher, fisher.natural_gradient(right, self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return state.step.clone()

    def operator(self, state: State) -> ExactFisher:
        return state.fisher

    def damped(self, state: State) -> None:
        """None, because the step holds past gradients."""
        return None

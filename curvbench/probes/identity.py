"""Plain gradient descent: the trivial baseline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Identity, Shifted
from curvbench.spec import About, Probe


@dataclass(frozen=True)
class IdentityProbe(Probe):
    """The identity: no curvature, the step is the gradient."""

    combines_by = "gradient"

    about = About(
        represents="I",
        damping="none: the step is the gradient",
        cost={"statistics": "0", "invert": "0", "precondition": "0", "memory": "0"},
        family="first order",
        color="grey",
        formulas=(r"\hat F = I",),
    )

    def update(self, state: Identity | None, batch: Instance) -> Identity:
        return Identity(batch.size, batch.dtype, batch.device)

    def precondition(self, state: Identity, gradient: Tensor) -> Tensor:
        return gradient

    def operator(self, state: Identity) -> Identity:
        return state

    def damped(self, state: Identity) -> Shifted:
        return state.damped(0.0)

"""Plain gradient descent: the trivial baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Identity
from curvbench.spec import About, LayerSize, Probe


@dataclass(frozen=True)
class IdentityProbe(Probe):
    """The identity: no curvature, the step is the gradient."""

    joins = "gradient"

    about = About(
        represents="I",
        damping="none: the step is the gradient",
        cost={"statistics": "0", "invert": "0", "precondition": "0", "memory": "0"},
    )

    @property
    def solves_with(self) -> float:
        return 0.0

    def update(self, state: Identity | None, batch: Instance) -> Identity:
        return Identity(batch.size, batch.dtype, batch.device)

    def precondition(self, state: Identity, gradient: Tensor) -> Tensor:
        return gradient

    def operator(self, state: Identity) -> Identity:
        return state

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        return {"statistics": 0, "invert": 0, "precondition": 0, "memory": 0}

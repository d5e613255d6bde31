from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curvbench import FisherProbe
from curvbench.operators import Identity


@dataclass(frozen=True)
class Scaled(FisherProbe):
    """A multiple of the identity."""

    scale: float = 1.0

    def update(self, state: Any, batch: Any) -> Identity:
        return Identity(batch.size, batch.dtype, batch.device)

    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        return gradient / (self.scale + self.damping)

    def operator(self, state: Any) -> Identity:
        return state

"""Adam (Kingma, Ba 2015): running moments of the batch gradient, data labels.

The curvature is the diagonal of batch-gradient outer products; the step divides by the root of this diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.moments import Moments, MomentsProbe
from curvbench.spec import About


@dataclass(frozen=True)
class Adam(MomentsProbe):
    """The second moment of the batch gradient, times the batch size; the step is that of the optimizer."""

    updates: int = 32
    batch_size: int | None = None

    about = About(
        represents="diag(N v), v the corrected running average of the squared mean gradient",
        damping="epsilon is added to sqrt(v); the step divides by that root, not by v",
        cost={"statistics": "4 P", "invert": "0", "precondition": "2 P", "memory": "2 P"},
        source="Kingma and Ba 2015, Algorithm 1",
        family="first order",
        color="orange",
        formulas=(
            r"\hat F = N\,\mathrm{diag}(\hat v)",
            r"v \leftarrow \beta_2 v + (1 - \beta_2)\,\bar g \circ \bar g",
            r"\hat v = \frac{v}{1 - \beta_2^t}",
        ),
    )

    def init(self, instance: Instance) -> Moments:
        return self.rates.start(instance)

    def update(self, state: Moments, batch: Instance) -> Moments:
        return self.rates.take_in(state, batch)

    def precondition(self, state: Moments, gradient: Tensor) -> Tensor:
        return self.rates.step(state)

    def operator(self, state: Moments) -> Diagonal:
        return self.rates.curvature(state)

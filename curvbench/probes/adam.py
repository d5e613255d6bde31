"""Adam (Kingma, Ba 2015): running moments of the batch gradient, data labels.

The curvature is the diagonal of batch-gradient outer products; the step divides by the root of this diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.moments import Moments, Rates
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About, Probe


@dataclass(frozen=True)
class Adam(Probe):
    """The second moment of the batch gradient, times the batch size; the step is that of the optimizer.

    ``beta1``: the weight of the old first moment. ``beta2``: the weight of the old second moment. ``epsilon``: a number
    added to the root of the corrected second moment.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    updates: int = 32
    batch_size: int | None = None

    statistic = "bg_data"
    has_own_momentum: ClassVar[bool] = True
    combines_by = "gradient"
    is_layerwise = True
    is_mean_over_samples: ClassVar[bool] = False

    about = About(
        represents="diag(N v), v the corrected running average of the squared mean gradient",
        damping="epsilon is added to sqrt(v); the step divides by that root, not by v",
        cost={"statistics": "4 P", "invert": "0", "precondition": "2 P", "memory": "2 P"},
        source="Kingma and Ba 2015, Algorithm 1",
        family="first order",
        color="orange",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "beta1", "beta2", zero=True)
        finite(self, "epsilon", zero=False)
        at_least_one(self, "updates", "batch_size")

    @property
    def rates(self) -> Rates:
        return Rates(self.beta1, self.beta2, self.epsilon)

    def init(self, instance: Instance) -> Moments:
        return self.rates.start(instance)

    def update(self, state: Moments, batch: Instance) -> Moments:
        return self.rates.take_in(state, batch)

    def precondition(self, state: Moments, gradient: Tensor) -> Tensor:
        return self.rates.step(state)

    def operator(self, state: Moments) -> Diagonal:
        return self.rates.curvature(state)

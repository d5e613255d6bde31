"""AdamW (Loshchilov, Hutter 2019): Adam's step plus a multiple of the parameters, which no moment sees.

The step eta (p + weight_decay theta) equals the optimizer's two steps: theta shrinks by the factor
1 - eta weight_decay, then Adam's eta p is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.moments import Moments, MomentsProbe
from curvbench.parts.ranges import finite
from curvbench.spec import About


class State(NamedTuple):
    """The moments, and the parameters (P,) at which the last gradient was taken."""

    moments: Moments
    parameters: Tensor


@dataclass(frozen=True)
class AdamW(MomentsProbe):
    """Adam's second moment as curvature; the step has decoupled weight decay.

    ``weight_decay``: the multiple of the parameters that is added to the step.
    """

    weight_decay: float = 1e-2
    updates: int = 32
    batch_size: int | None = None

    about = About(
        represents="diag(N v), v the corrected running average of the squared mean gradient",
        damping="epsilon is added to sqrt(v); the step divides by that root, not by v",
        cost={"statistics": "4 P", "invert": "0", "precondition": "3 P", "memory": "3 P"},
        source="Loshchilov and Hutter 2019, Algorithm 2",
        family="first order",
        color="blue",
        formulas=(
            r"\hat F = N\,\mathrm{diag}(\hat v)",
            r"v \leftarrow \beta_2 v + (1 - \beta_2)\,\bar g \circ \bar g",
            r"\hat v = \frac{v}{1 - \beta_2^t}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "weight_decay")

    def init(self, instance: Instance) -> State:
        return State(self.rates.start(instance), instance.pack(instance.parameters))

    def update(self, state: State, batch: Instance) -> State:
        return State(self.rates.take_in(state.moments, batch), batch.pack(batch.parameters))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return self.rates.step(state.moments) + self.weight_decay * state.parameters

    def operator(self, state: State) -> Diagonal:
        return self.rates.curvature(state.moments)

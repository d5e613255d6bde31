"""SGD with momentum, as ``torch.optim.SGD`` has it: m <- momentum m + g, the first m being the first gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Identity
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About, Probe


@dataclass(frozen=True)
class Sgdm(Probe):
    """The identity as curvature; the step sums the gradients of all updates with falling weights.

    ``momentum``: the weight of the old buffer. ``weight_decay``: the multiple of the parameters that is added to each
    gradient.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0
    updates: int = 32
    batch_size: int | None = None

    has_own_momentum: ClassVar[bool] = True
    combines_by = "gradient"
    is_layerwise = True

    about = About(
        represents="I",
        damping="none: the step is the momentum buffer",
        cost={"statistics": "P", "invert": "0", "precondition": "0", "memory": "P"},
        source="torch.optim.SGD, the first buffer being the first gradient",
        family="first order",
        color="brown",
        formulas=(
            r"\hat F = I",
            r"m \leftarrow \mu m + \bar g",
            r"p = m",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "momentum", zero=True)
        finite(self, "weight_decay")
        at_least_one(self, "updates", "batch_size")

    def init(self, instance: Instance) -> Tensor:
        return torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)

    def update(self, state: Tensor, batch: Instance) -> Tensor:
        gradient = batch.gradient()
        if self.weight_decay:
            gradient = gradient + self.weight_decay * batch.pack(batch.parameters)
        return self.momentum * state + gradient

    def precondition(self, state: Tensor, gradient: Tensor) -> Tensor:
        return state.clone()

    def operator(self, state: Tensor) -> Identity:
        return Identity(len(state), state.dtype, state.device)

"""The diagonal of the Fisher by Hutchinson's estimator: the mean of z * (F z) over vectors z of random signs.

A draw takes one product with F, by one forward-mode and one reverse-mode derivative, whatever the number of classes.
The variance of the entry i is the sum of F_ij^2 over all other j: it is the rest of its row, not of the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.hutchinson import diagonal_draw, no_product
from curvbench.parts.ranges import at_least_one, finite
from curvbench.spec import About, Probe


@dataclass(frozen=True)
class Hutchinson(Probe):
    """The diagonal of the type-2 Fisher from products with random signs; entries below zero are set to zero.

    ``draws``: the number of random vectors in an update. ``damping``: the damping, in units of the mean Fisher.
    ``seed``: the seed of the random vectors.
    """

    draws: int = 1
    damping: float = 1e-3
    seed: int = 0

    supports_ema: ClassVar[bool] = True
    is_layerwise: ClassVar[bool] = True

    about = About(
        represents="the diagonal of the mean of z * (F z) over random signs z, entries below zero set to zero",
        damping="(F^ + damping I)^-1, entry by entry",
        cost={"statistics": "draws P", "invert": "0", "precondition": "P", "memory": "P"},
        source="Hutchinson 1990; Bekas, Kokiopoulou and Saad 2007 for the diagonal",
        notes=(
            "A mean of few draws has entries below zero, up to a third of them in one draw on small networks. The "
            "represented matrix and the step set these entries to zero, which biases the trace upwards; the state "
            "keeps them, so that a running average stays unbiased.",
            "The variance of an entry is the sum of the squares of its row of F outside the diagonal, over the draws. "
            "diag has the same entries without any, for as many backward passes as there are classes.",
        ),
        family="exact in part",
        color="orange",
        formulas=(
            r"\hat F = \mathrm{diag}\left(\max\left(0,\ \frac{1}{K} \sum_{k=1}^{K} z_k \circ F z_k\right)\right)",
            r"z_k \in \{-1, 1\}^P",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "draws")
        finite(self, "damping")

    def unsupported(self, instance: Instance) -> str | None:
        return no_product(instance, "fisher")

    def update(self, state: Tensor | None, batch: Instance) -> Tensor:
        made = [diagonal_draw(batch, "fisher", self.seed, number) for number in range(self.draws)]
        return torch.stack(made).mean(0)

    def precondition(self, state: Tensor, gradient: Tensor) -> Tensor:
        return self.operator(state).solve(gradient, self.damping)

    def operator(self, state: Tensor) -> Diagonal:
        return Diagonal(state.clamp_min(0))

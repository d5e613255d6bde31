"""Running first and second moments of the mean gradient, corrected for the start at zero (Kingma, Ba 2015)."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import Probe


class Moments(NamedTuple):
    """Uncorrected first and second moment (P,), the number ``taken`` of gradients, and the last batch's loss terms."""

    first: Tensor
    second: Tensor
    taken: int
    terms: int


@dataclass(frozen=True)
class Rates:
    """Weights of the old moments, and ``epsilon``, which is added to the root of the second moment."""

    first: float
    second: float
    epsilon: float

    def start(self, instance: Instance) -> Moments:
        """The moments before the first gradient."""
        zeros = torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)
        return Moments(zeros, zeros, 0, instance.terms)

    def take_in(self, moments: Moments, batch: Instance, squares: Tensor | None = None) -> Moments:
        """The moments after one more gradient of the mean loss with data labels; ``squares`` as in ``after``."""
        return self.after(moments, batch.gradient(), batch.terms, squares)

    def after(self, moments: Moments, gradient: Tensor, terms: int, squares: Tensor | None = None) -> Moments:
        """The moments after the mean gradient of one more batch of ``terms`` loss terms.

        ``squares``: what the second moment averages, (P,). None means the squares of the gradient.
        """
        first = self.first * moments.first + (1 - self.first) * gradient
        second = (1 - self.second) * (gradient.square() if squares is None else squares) + self.second * moments.second
        return Moments(first, second, moments.taken + 1, terms)

    def step(self, moments: Moments) -> Tensor:
        """The corrected first moment over the root of the corrected second, (P,)."""
        first = moments.first / (1 - self.first**moments.taken)
        return first / (self.corrected_second(moments).sqrt() + self.epsilon)

    def curvature(self, moments: Moments) -> Diagonal:
        """The corrected second moment times the number of terms, which has the scale of a Fisher of single samples."""
        return Diagonal(moments.terms * self.corrected_second(moments))

    def corrected_second(self, moments: Moments) -> Tensor:
        """The second moment, corrected for its start at zero."""
        return moments.second / (1 - self.second**moments.taken)


@dataclass(frozen=True)
class MomentsProbe(Probe, ABC):
    """A probe of the family of Adam: its step comes from the moments, which the optimizer must not average again.

    ``beta1``: the weight of the old first moment. ``beta2``: the weight of the old second moment. ``epsilon``: a number
    added to the root of the corrected second moment.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    statistic = "bg_data"
    has_own_momentum: ClassVar[bool] = True
    combines_by: ClassVar[Literal["mean", "gradient"] | None] = "gradient"
    is_layerwise = True
    is_mean_over_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "beta1", "beta2", zero=True)
        finite(self, "epsilon", zero=False)
        at_least_one(self, "updates", "batch_size")

    @property
    def rates(self) -> Rates:
        """The weights of the moments."""
        return Rates(self.beta1, self.beta2, self.epsilon)

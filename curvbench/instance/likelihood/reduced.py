"""A likelihood whose loss is another one's times a number that depends on the batch: torch's reductions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from curvbench.instance.likelihood.base import Likelihood
from curvbench.instance.likelihood.hessians import Hessians


class Reduced(Likelihood):
    """The mean over terms of ``inner``, times a weight that all terms of a batch share.

    Args:
        inner: the likelihood that gives each term its loss.
        unit: what the loss is a mean or a sum over.
        weigh: a function from a batch's targets to the weight.
        weight: the weight, if it is known already; None means that it follows from the targets at hand.
    """

    def __init__(
        self, inner: Likelihood, unit: str, weigh: Callable[[Tensor], float], weight: float | None = None
    ) -> None:
        self.inner, self.unit, self.weigh, self.weight = inner, unit, weigh, weight
        self.name, self.is_fisher, self.reads = inner.name, inner.is_fisher, inner.reads
        self.classes_first, self.targets_like_outputs = inner.classes_first, inner.targets_like_outputs

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        self.inner.check(outputs, targets)
        self.for_batch(targets)

    def valid(self, targets: Tensor) -> Tensor:
        return self.inner.valid(targets)

    def rank(self, classes: int) -> int:
        return self.inner.rank(classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._of(targets) * self.inner.loss(outputs, targets)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._of(targets) * self.inner.residual(outputs, targets)

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._of(targets) ** 0.5 * self.inner.factor(outputs, targets)

    def factor_parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        root = self._of(targets) ** 0.5
        return (root * part for part in self.inner.factor_parts(outputs, targets))

    def hessians(self, outputs: Tensor, targets: Tensor) -> Hessians | None:
        hessians = self.inner.hessians(outputs, targets)
        return hessians and hessians.weighted(outputs.new_tensor([self._of(targets)]))

    def sample(self, outputs: Tensor, targets: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        return self._of(targets) ** 0.5 * self.inner.sample(outputs, targets, draws, generator)

    def coefficients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._of(targets) ** 0.5 * self.inner.coefficients(outputs, targets)

    def at_token(self, token: int) -> Likelihood:
        return Reduced(self.inner.at_token(token), self.unit, self.weigh, self.weight)

    def for_batch(self, targets: Tensor) -> Likelihood:
        return self if self.weight is not None else Reduced(self.inner, self.unit, self.weigh, self._of(targets))

    def _of(self, targets: Tensor) -> float:
        return self.weigh(targets) if self.weight is None else self.weight

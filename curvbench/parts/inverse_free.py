"""Roots of inverses that follow a flow without inversion: K with K K^T = A^-1 (Lin et al. 2023, arXiv 2312.05705).

A root and its momentum are matrices (G, n, n), or diagonals (G, n), by the structure of the statistics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import Kronecker, sides


class Root(NamedTuple):
    """The root K of an inverse K K^T, and the momentum of its steps."""

    matrix: Tensor
    momentum: Tensor

    def squared(self, V: Tensor, on_left: bool) -> Tensor:
        """K K^T V, or V K K^T, for matrices V (G, M, D)."""
        K, turned = self.matrix, sides.transposed(self.matrix)
        if on_left:
            return sides.from_left(K, sides.from_left(turned, V))
        return sides.from_right(sides.from_right(V, K), turned)

    def inverted(self) -> Tensor:
        """(K K^T)^-1."""
        if self.matrix.ndim == 2:
            return self.matrix.square().reciprocal()
        return numerics.self_product(torch.linalg.inv(self.matrix).mT)


class Roots(NamedTuple):
    """The roots C of the outputs' inverse and K of the inputs' inverse in a layer."""

    outputs: Root
    inputs: Root

    @property
    def size(self) -> int:
        """G M D."""
        return math.prod(self._shape)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (*self.outputs.matrix.shape[:2], self.inputs.matrix.shape[1])

    def step(self, part: Tensor) -> Tensor:
        """C C^T V K K^T for a layer's vector (G M D,)."""
        V = self.outputs.squared(part.reshape(self._shape), on_left=True)
        return self.inputs.squared(V, on_left=False).flatten()

    def inverted(self) -> Kronecker:
        """(C C^T)^-1 (x) (K K^T)^-1."""
        return Kronecker.batched(self.outputs.inverted(), self.inputs.inverted())


class Pull(NamedTuple):
    """A statistic A as a root K sees it: A K, and the means over the diagonals of K^T A K and of K^T K, (G,) each."""

    image: Tensor
    mean: Tensor
    mean_square: Tensor


def start(statistic: Tensor) -> Root:
    """The identity, without momentum, in the structure of a statistic."""
    if statistic.ndim == 2:
        return Root(torch.ones_like(statistic), torch.zeros_like(statistic))
    return Root(
        torch.eye(statistic.shape[1], dtype=statistic.dtype, device=statistic.device).repeat(len(statistic), 1, 1),
        torch.zeros_like(statistic),
    )


def pull(root: Root, statistic: Tensor) -> Pull:
    """The statistic at a root."""
    K = root.matrix
    image, n = (statistic * K if K.ndim == 2 else statistic @ K), K.shape[1]
    inside = tuple(range(1, K.ndim))
    return Pull(image, (K * image).sum(inside) / n, K.square().sum(inside) / n)


class Flow(NamedTuple):
    """The lengths of steps: ``rate``, and the weight ``momentum`` of the old step.

    ``normalized``: whether a step is divided by its largest row sum if that is above 1. A row sum bounds the
    eigenvalues, so that I - rate step stays positive; its largest entry, as in the public code, does not bound them.
    """

    rate: float
    momentum: float
    normalized: bool

    def follow(self, root: Root, pulled: Pull, weight: Tensor | float, damping: Tensor | float) -> Root:
        """The root after one step; ``weight`` and ``damping``: the multiples of A and of I, numbers or (G,)."""
        K = root.matrix
        inner = _times(weight, pulled.image) + _times(damping, K)
        inner = K * inner if K.ndim == 2 else K.mT @ inner
        share = (1 - self.momentum if self.normalized else 1.0) / 2
        step = share * sides.damped(inner, -1.0) + self.momentum * root.momentum
        rate = self.rate / _row_sum(step).clamp_min(1.0) if self.normalized else self.rate
        return Root(K - rate * (K * step if K.ndim == 2 else K @ step), step)


def _times(factor: Tensor | float, side: Tensor) -> Tensor:
    return (sides.per_group(factor, side) if isinstance(factor, Tensor) else factor) * side


def _row_sum(side: Tensor) -> Tensor:
    """The largest sum of absolute values in a row, over all groups."""
    return (side.abs() if side.ndim == 2 else side.abs().sum(2)).max()

"""Low rank plus a multiple of the identity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators.base import Operator, largest
from curvbench.operators.subspace import Subspace


@dataclass(frozen=True, eq=False)
class LowRank(Operator):
    """The matrix shift I + U diag(weights) U^T.

    ``columns`` is U (P, K), which need not be orthogonal; ``weights`` (K,) and ``shift`` are not negative.
    """

    columns: Tensor
    weights: Tensor
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0 or bool((self.weights < 0).any()):
            raise ValueError("a low-rank operator needs weights and a shift that are not negative")

    @property
    def size(self) -> int:
        return self.columns.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.columns.dtype

    @property
    def device(self) -> torch.device:
        return self.columns.device

    @cached_property
    def _scaled(self) -> Tensor:
        """U diag(sqrt(weights)), (P, K)."""
        return self.columns * self.weights.sqrt()

    @cached_property
    def _gram(self) -> Tensor:
        """The Gram matrix of U diag(sqrt(weights)) in float64, (K, K), because norms cancel in a small error."""
        U, scales = self.columns.double(), self.weights.double().sqrt()
        return scales[:, None] * (U.T @ U) * scales

    def _matmat(self, V: Tensor) -> Tensor:
        return self.shift * V + self._scaled @ (self._scaled.T @ V)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        floor = self.shift + damping
        if not floor > 0:
            raise ValueError("a low-rank operator without shift is singular: give a damping above zero")
        factor = numerics.damped_cholesky(self._gram, floor)
        small = numerics.cholesky_solve((self._scaled.T @ V).double(), factor).to(self.dtype)
        return (V - self._scaled @ small) / floor

    def _inverse(self, damping: float) -> Operator:
        basis, triangle = torch.linalg.qr(self._scaled)
        values, rotation = numerics.eigh(triangle.double() @ triangle.double().mT)
        inside = basis @ rotation.to(self.dtype)
        return Subspace(inside, self.shift + values.to(self.dtype), self.shift).inverse(damping)

    def trace(self) -> float:
        return self.shift * self.size + float(self._gram.trace())

    def frobenius_norm(self) -> float:
        cross = 2 * self.shift * float(self._gram.trace())
        return (self.shift**2 * self.size + cross + numerics.sum_squares(self._gram)) ** 0.5

    def diagonal(self) -> Tensor:
        return self.shift + self._scaled.square().sum(1)

    def eigenvalues(self, k: int) -> Tensor:
        values = self.shift + numerics.eigvalsh(self._gram)
        rest = max(min(k, self.size) - len(values), 0)
        return largest(torch.cat([values, values.new_full((rest,), self.shift)]), min(k, self.size))

    def smallest_eigenvalue(self) -> float:
        full_rank = len(self.weights) >= self.size
        return self.shift + (float(numerics.eigvalsh(self._gram)[-self.size]) if full_rank else 0.0)

    def _block(self, start: int, stop: int) -> Operator:
        return LowRank(self.columns[start:stop], self.weights, self.shift)

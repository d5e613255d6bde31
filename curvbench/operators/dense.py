"""Stored matrices: one matrix, or several of equal size on the diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators.base import Operator, largest


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """A stored PSD matrix (P, P), or B stored matrices (B, n, n) on the diagonal of a matrix of order P = B n."""

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim == 2:
            object.__setattr__(self, "matrix", self.matrix[None])

    @property
    def size(self) -> int:
        return self.matrix.shape[0] * self.matrix.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def _stack(self, V: Tensor) -> Tensor:
        """(P, K) -> (B, n, K)."""
        return V.reshape(*self.matrix.shape[:2], V.shape[1])

    def _matmat(self, V: Tensor) -> Tensor:
        return (self.matrix @ self._stack(V)).reshape(V.shape)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        factor = numerics.damped_cholesky(self.matrix, damping)
        return numerics.cholesky_solve(self._stack(V).to(factor.dtype), factor).reshape(V.shape).to(V.dtype)

    def trace(self) -> float:
        return float(self.diagonal().sum(dtype=torch.float64))

    def frobenius_norm(self) -> float:
        return numerics.sum_squares(self.matrix) ** 0.5

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1).flatten()

    @cached_property
    def _eigenvalues(self) -> Tensor:
        return numerics.eigvalsh(self.matrix)

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self._eigenvalues, k)

    def smallest_eigenvalue(self) -> float:
        return float(self._eigenvalues.min())

    def _block(self, start: int, stop: int) -> Operator:
        order = self.matrix.shape[-1]
        if len(self.matrix) == 1:
            return Dense(self.matrix[:, start:stop, start:stop])
        if start % order == 0 and stop % order == 0:
            return Dense(self.matrix[start // order : stop // order])
        return super()._block(start, stop)

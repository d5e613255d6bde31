"""A matrix that is given on a subspace, and is a multiple of the identity on the complement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators.base import Operator, largest


@dataclass(frozen=True, eq=False)
class Subspace(Operator):
    """The matrix U diag(values) U^T + rest (I - U U^T) with orthonormal U (P, K), called ``basis``.

    ``values`` (K,) and ``rest`` are not negative. Values may lie below the rest, as a low-rank operator cannot.
    """

    basis: Tensor
    values: Tensor
    rest: float

    def __post_init__(self) -> None:
        if self.rest < 0 or bool((self.values < 0).any()):
            raise ValueError("a subspace operator needs values and a rest that are not negative")
        if self.basis.shape[1] > self.basis.shape[0] or self.values.shape != self.basis.shape[1:]:
            shapes = f"{tuple(self.basis.shape)} and {tuple(self.values.shape)}"
            raise ValueError(f"a subspace operator needs at most P columns, and one value for each, got {shapes}")

    @property
    def size(self) -> int:
        return self.basis.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.basis.dtype

    @property
    def device(self) -> torch.device:
        return self.basis.device

    @property
    def excess(self) -> Tensor:
        """The differences values - rest, of either sign, (K,)."""
        return self.values - self.rest

    def _matmat(self, V: Tensor) -> Tensor:
        return self.rest * V + self.basis @ (self.excess[:, None] * (self.basis.T @ V))

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        inside = self.basis.T @ V
        solved = self.basis @ (inside / numerics.positive(self.values + damping)[:, None])
        if self._codimension == 0:
            return solved
        return solved + (V - self.basis @ inside) / self._damped_rest(damping)

    def _inverse(self, damping: float) -> Operator:
        values = 1 / numerics.positive(self.values + damping)
        return Subspace(self.basis, values, 1 / self._damped_rest(damping) if self._codimension else 0.0)

    def log_determinant(self) -> float:
        inside = float(numerics.positive(self.values).double().log().sum())
        return inside + (self._codimension * math.log(self._damped_rest(0.0)) if self._codimension else 0.0)

    def _damped_rest(self, damping: float) -> float:
        """The damped rest, after the check that it is above zero."""
        if not self.rest + damping > 0:
            raise ValueError("the operator is singular without damping: give a damping above zero")
        return self.rest + damping

    @property
    def _codimension(self) -> int:
        """The dimension of the complement of the subspace, P - K."""
        return self.size - len(self.values)

    def trace(self) -> float:
        return self.rest * self._codimension + float(self.values.sum(dtype=torch.float64))

    def frobenius_norm(self) -> float:
        return (self.rest**2 * self._codimension + numerics.sum_squares(self.values)) ** 0.5

    def diagonal(self) -> Tensor:
        return self.rest + self.basis.square() @ self.excess

    def eigenvalues(self, k: int) -> Tensor:
        values = self.values.double()
        return largest(torch.cat([values, values.new_full((min(k, self._codimension),), self.rest)]), k)

    def smallest_eigenvalue(self) -> float:
        return min([*self.values.tolist(), *([self.rest] if self._codimension else [])])

    def _block(self, start: int, stop: int) -> Operator:
        basis, triangle = torch.linalg.qr(self.basis[start:stop].double())
        small = triangle * self.excess.double() @ triangle.T
        values, rotation = numerics.eigh(
            small + self.rest * torch.eye(len(small), dtype=small.dtype, device=self.device)
        )
        return Subspace((basis @ rotation).to(self.dtype), values.to(self.dtype), self.rest)

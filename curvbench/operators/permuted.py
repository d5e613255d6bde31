"""Operators in another order of the entries, for blocks that are not contiguous in the parameter vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvbench.operators.base import Operator


@dataclass(frozen=True, eq=False)
class Permuted(Operator):
    """``inner`` with its entry i at the place ``order[i]``; ``order`` (P,) int64 is a permutation of 0..P-1."""

    inner: Operator
    order: Tensor

    def __post_init__(self) -> None:
        places = torch.arange(self.inner.size, device=self.order.device)
        if self.order.shape != places.shape or not torch.equal(self.order.sort().values, places):
            raise ValueError(f"order must be a permutation of 0..{self.inner.size - 1}")

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @cached_property
    def _inverse_order(self) -> Tensor:
        return self.order.argsort()

    def _matmat(self, V: Tensor) -> Tensor:
        return self.inner.matmat(V[self.order])[self._inverse_order]

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.inner.solve(V[self.order], damping)[self._inverse_order]

    def _inverse(self, damping: float) -> Operator:
        return Permuted(self.inner.inverse(damping), self.order)

    def log_determinant(self) -> float:
        return self.inner.log_determinant()

    def trace(self) -> float:
        return self.inner.trace()

    def frobenius_norm(self) -> float:
        return self.inner.frobenius_norm()

    def diagonal(self) -> Tensor:
        return self.inner.diagonal()[self._inverse_order]

    def eigenvalues(self, k: int) -> Tensor:
        return self.inner.eigenvalues(k)

    def smallest_eigenvalue(self) -> float:
        return self.inner.smallest_eigenvalue()

"""The contract of every symmetric positive semi-definite matrix that curvbench handles without storing it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Operator(ABC):
    """A symmetric P x P matrix, undamped. Vectors are (P,), stacks of them (P, K), scalars Python floats."""

    @property
    @abstractmethod
    def size(self) -> int:
        """P."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the tensors that represent the matrix."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of the tensors that represent the matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @abstractmethod
    def matmat(self, V: Tensor) -> Tensor:
        """The product with a stack of vectors, (P, K) -> (P, K)."""

    def matvec(self, v: Tensor) -> Tensor:
        """The product with one vector, (P,) -> (P,)."""
        return self.matmat(v[:, None])[:, 0]

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(self + damping I)^-1 v for v of shape (P,) or (P, K).

        Raises:
            ValueError: negative damping, or the damped matrix is singular.
        """
        if not damping >= 0:
            raise ValueError(f"damping must not be negative, got {damping}")
        return self._solve(v, damping) if v.ndim == 2 else self._solve(v[:, None], damping)[:, 0]

    @abstractmethod
    def _solve(self, V: Tensor, damping: float) -> Tensor:
        """``solve`` for a stack (P, K) and a damping that was checked."""

    @abstractmethod
    def trace(self) -> float:
        """The sum of the diagonal."""

    @abstractmethod
    def frobenius_norm(self) -> float:
        """The root of the sum of all squared entries."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal, (P,)."""

    @abstractmethod
    def eigenvalues(self, k: int) -> Tensor:
        """The min(k, P) largest eigenvalues in float64, descending."""

    @abstractmethod
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue."""

    def block(self, start: int, stop: int) -> Operator:
        """The diagonal block of rows and columns start..stop as an operator of its own.

        Raises:
            ValueError: this operator has no such block in closed form.
        """
        if (start, stop) == (0, self.size):
            return self
        raise ValueError(f"{type(self).__name__} of size {self.size} has no closed form for its block {start}:{stop}")

    def to_dense(self) -> Tensor:
        """The matrix itself, (P, P); for tests and pictures."""
        return self.matmat(torch.eye(self.size, dtype=self.dtype, device=self.device))


def largest(values: Tensor, k: int) -> Tensor:
    """The k largest of any number of values, descending, in float64."""
    flat = values.flatten().double()
    return flat.topk(min(k, flat.numel())).values

"""The contract of every symmetric matrix that curvbench represents, and its damped form.

All are positive semi-definite but for ``KroneckerSum``, which may have negative eigenvalues.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Operator(ABC):
    """A symmetric P x P matrix. Vectors are (P,), stacks of them (P, K), scalars Python floats."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The order of the matrix, P."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that represent the matrix."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the tensors that represent the matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def matmat(self, V: Tensor) -> Tensor:
        """The product with a stack of vectors, (P, K) -> (P, K). Raises ValueError for another P."""
        self._check_length(V)
        return self._matmat(V)

    def matvec(self, v: Tensor) -> Tensor:
        """The product with one vector, (P,) -> (P,). Raises ValueError for another P."""
        self._check_length(v)
        return self._matvec(v)

    @abstractmethod
    def _matmat(self, V: Tensor) -> Tensor:
        """``matmat`` without the check of P."""

    def _matvec(self, v: Tensor) -> Tensor:
        """``matvec`` without the check of P."""
        return self._matmat(v[:, None])[:, 0]

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(self + damping I)^-1 v for v of shape (P,) or (P, K).

        Raises:
            ValueError: the damping is negative, the damped matrix is singular, or v has another P.
        """
        self._check_length(v)
        if not damping >= 0:
            raise ValueError(f"damping must not be negative, got {damping}")
        return self._solve(v, damping) if v.ndim == 2 else self._solve(v[:, None], damping)[:, 0]

    @abstractmethod
    def _solve(self, V: Tensor, damping: float) -> Tensor:
        """``solve`` for a stack (P, K), without the checks of P and of the damping."""

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
        """The diagonal block of rows and columns start..stop as an operator.

        Raises:
            ValueError: this operator has no such block in closed form.
        """
        if not 0 <= start < stop <= self.size:
            raise ValueError(f"{type(self).__name__} has size {self.size}: there is no block {start}:{stop}")
        return self if (start, stop) == (0, self.size) else self._block(start, stop)

    def _block(self, start: int, stop: int) -> Operator:
        """``block`` for a block that is smaller than the matrix."""
        raise ValueError(f"{type(self).__name__} of size {self.size} has no closed form for its block {start}:{stop}")

    def damped(self, damping: float) -> Shifted:
        """The matrix self + damping I. Raises ValueError for a negative damping."""
        return Shifted(self, damping)

    def _check_length(self, v: Tensor) -> None:
        if v.shape[0] != self.size:
            raise ValueError(f"{type(self).__name__} has size {self.size}: it takes no vector of length {v.shape[0]}")

    def to_dense(self) -> Tensor:
        """The matrix itself, (P, P); for tests and pictures."""
        return self.matmat(torch.eye(self.size, dtype=self.dtype, device=self.device))


@dataclass(frozen=True, eq=False)
class Shifted(Operator):
    """The matrix inner + shift I, for a shift that is not negative."""

    inner: Operator
    shift: float

    def __post_init__(self) -> None:
        if not self.shift >= 0:
            raise ValueError(f"a shifted operator needs a shift that is not negative, got {self.shift}")

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def _matmat(self, V: Tensor) -> Tensor:
        return self.inner._matmat(V) + self.shift * V

    def _matvec(self, v: Tensor) -> Tensor:
        return self.inner._matvec(v) + self.shift * v

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.inner.solve(V, self.shift + damping)

    def trace(self) -> float:
        return self.inner.trace() + self.shift * self.size

    def frobenius_norm(self) -> float:
        cross = 2 * self.shift * self.inner.trace()
        return (self.inner.frobenius_norm() ** 2 + cross + self.shift**2 * self.size) ** 0.5

    def diagonal(self) -> Tensor:
        return self.inner.diagonal() + self.shift

    def eigenvalues(self, k: int) -> Tensor:
        return self.inner.eigenvalues(k) + self.shift

    def smallest_eigenvalue(self) -> float:
        return self.inner.smallest_eigenvalue() + self.shift

    def _block(self, start: int, stop: int) -> Operator:
        return self.inner.block(start, stop).damped(self.shift)


def largest(values: Tensor, k: int) -> Tensor:
    """The k largest values, descending, in float64; fewer if there are fewer values."""
    flat = values.flatten().double()
    return flat.topk(min(k, flat.numel())).values

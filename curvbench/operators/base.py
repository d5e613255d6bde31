"""The contract of every symmetric matrix that curvbench represents.

All are positive semi-definite but for ``KroneckerSum``, which may have negative eigenvalues. With the contract come the
two forms that every matrix can take: plus a multiple of the identity, and stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvbench import numerics

LARGEST_FORMED = 2048  # rows of a matrix that is formed where its family has no closed form: 32 MiB in float64


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

    def inverse(self, damping: float) -> Operator:
        """(self + damping I)^-1, whose trace, log-determinant and products take no further factorization of self.

        Raises:
            ValueError: the damping is negative, the damped matrix is singular, or the family of the operator has no
                inverse in closed form and the operator is too large to be formed.
        """
        if not damping >= 0:
            raise ValueError(f"damping must not be negative, got {damping}")
        return self._inverse(damping)

    def _inverse(self, damping: float) -> Operator:
        """``inverse`` without the check of the damping; by default of the matrix that is formed, if it is small."""
        if self.size > LARGEST_FORMED:
            name = type(self).__name__
            raise ValueError(f"{name} of size {self.size} has no inverse in closed form, and is too large to be formed")
        return Dense(self.to_dense()).inverse(damping)

    def log_determinant(self) -> float:
        """The logarithm of the determinant; raises ValueError for a singular matrix, and as ``inverse`` does."""
        return -self.inverse(0.0).log_determinant()

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

    def _inverse(self, damping: float) -> Operator:
        return self.inner.inverse(self.shift + damping)

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

    def _inverse(self, damping: float) -> Operator:
        factor = numerics.damped_cholesky(self.matrix, damping)
        inverse = Dense(torch.cholesky_inverse(factor.mT, upper=True).to(self.dtype))  # faster than with the lower one
        inverse.__dict__["_log_determinant"] = -numerics.log_determinant(factor)
        return inverse

    @cached_property
    def _log_determinant(self) -> float:
        return numerics.log_determinant(numerics.cholesky(self.matrix))

    def log_determinant(self) -> float:
        return self._log_determinant

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


def largest(values: Tensor, k: int) -> Tensor:
    """The k largest values, descending, in float64; fewer if there are fewer values."""
    flat = values.flatten().double()
    return flat.topk(min(k, flat.numel())).values

"""Kronecker products and matrices diagonal in a Kronecker basis, batched over the groups of a convolution."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators.base import Operator, largest


def _batched(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 3 else factor[None]


def _alone(*tensors: Tensor) -> tuple[Tensor, ...] | None:
    """The matrices of a single group, else None; cached, because views take a third of a small product's time."""
    return tuple(tensor[0] for tensor in tensors) if len(tensors[0]) == 1 else None


def _between(left: Tensor, V: Tensor, right: Tensor) -> Tensor:
    """The products left V right for a stack (P, K) of matrices (G, M, D)."""
    matrices = V.T.reshape(-1, len(left), left.shape[-1], right.shape[-1])
    return (left @ matrices @ right).flatten(1).T


@dataclass(frozen=True, eq=False)
class RotatedDiagonal(Operator):
    """(Q_l (x) Q_r) diag(entries) (Q_l (x) Q_r)^T with orthogonal bases, block-diagonal over groups.

    ``left_basis`` (G, M, M) or (M, M), ``right_basis`` (G, D, D) or (D, D), ``entries`` (G, M, D) or (M, D).
    """

    left_basis: Tensor
    right_basis: Tensor
    entries: Tensor
    _alone: tuple[Tensor, Tensor, Tensor] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("left_basis", "right_basis", "entries"):
            object.__setattr__(self, name, _batched(getattr(self, name)))
        fitting = (*self.left_basis.shape[:2], self.right_basis.shape[-1])
        if self.entries.shape != fitting:
            raise ValueError(f"entries of these bases have shape {fitting}, got {tuple(self.entries.shape)}")
        object.__setattr__(self, "_alone", _alone(self.left_basis, self.right_basis, self.entries))

    @property
    def size(self) -> int:
        return self.entries.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.entries.dtype

    @property
    def device(self) -> torch.device:
        return self.entries.device

    def _matmat(self, V: Tensor) -> Tensor:
        rotated = _between(self.left_basis.mT, V, self.right_basis)
        return _between(self.left_basis, rotated * self.entries.reshape(-1, 1), self.right_basis.mT)

    def _matvec(self, v: Tensor) -> Tensor:
        if self._alone is None:
            return super()._matvec(v)
        left, right, entries = self._alone
        rotated = torch.linalg.multi_dot((left.mT, v.reshape(entries.shape), right))
        return torch.linalg.multi_dot((left, rotated * entries, right.mT)).view(-1)

    def entries_in(self, left_basis: Tensor, right_basis: Tensor) -> Tensor:
        """The diagonal in other orthogonal bases, (G, M, D), which is that of the nearest matrix diagonal there."""
        left, right = left_basis.mT @ self.left_basis, self.right_basis.mT @ right_basis
        return left.square() @ self.entries @ right.square()

    def inverse(self, damping: float) -> RotatedDiagonal:
        """(self + damping I)^-1; raises ValueError if self + damping I is singular."""
        least = 0.0 if damping else self._rounding
        return replace(self, entries=1 / numerics.positive(self.entries + damping, least))

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.inverse(damping).matmat(V)

    @property
    def _rounding(self) -> Tensor:
        """The largest value per group to which rounding takes an eigenvalue of zero, (G, 1, 1)."""
        order = max(self.entries.shape[1:])
        return order * torch.finfo(self.dtype).eps * self.entries.amax((1, 2), keepdim=True)

    def trace(self) -> float:
        return float(self.entries.sum(dtype=torch.float64))

    def frobenius_norm(self) -> float:
        return numerics.sum_squares(self.entries) ** 0.5

    def diagonal(self) -> Tensor:
        return (self.left_basis.square() @ self.entries @ self.right_basis.square().mT).flatten()

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self.entries, k)

    def smallest_eigenvalue(self) -> float:
        return float(self.entries.min())


@dataclass(frozen=True, eq=False)
class Kronecker(Operator):
    """The product left (x) right in row-major order, V -> left V right^T, block-diagonal over groups.

    ``left`` (G, M, M) or (M, M) is the output factor, ``right`` (G, D, D) or (D, D) the input factor; both PSD.
    """

    left: Tensor
    right: Tensor
    _alone: tuple[Tensor, Tensor] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", _batched(self.left))
        object.__setattr__(self, "right", _batched(self.right))
        if any(f.shape[-1] != f.shape[-2] for f in (self.left, self.right)) or len(self.left) != len(self.right):
            shapes = f"{tuple(self.left.shape)} and {tuple(self.right.shape)}"
            raise ValueError(f"Kronecker factors must be square, one pair per group, got {shapes}")
        object.__setattr__(self, "_alone", _alone(self.left, self.right.mT))

    @property
    def size(self) -> int:
        return self.left.shape[0] * self.left.shape[-1] * self.right.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def rotated(self) -> RotatedDiagonal:
        """The same matrix in its eigenbasis; computed at each use and not cached, so that meters see its cost."""
        left_values, left_basis = numerics.eigh(self.left)
        right_values, right_basis = numerics.eigh(self.right)
        return RotatedDiagonal(left_basis, right_basis, left_values[:, :, None] * right_values[:, None, :])

    def damped_factors(self, left: Tensor | float, right: Tensor | float) -> Kronecker:
        """(self.left + left I) (x) (self.right + right I), for dampings that are numbers or one per group, (G,)."""
        return Kronecker(numerics.damped(self.left, left), numerics.damped(self.right, right))

    def _matmat(self, V: Tensor) -> Tensor:
        return _between(self.left, V, self.right.mT)

    def _matvec(self, v: Tensor) -> Tensor:
        if self._alone is None:
            return super()._matvec(v)
        left, right = self._alone
        return torch.linalg.multi_dot((left, v.reshape(left.shape[0], -1), right)).view(-1)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.rotated.solve(V, damping)

    def _trace_per_group(self, factor: Tensor) -> Tensor:
        return factor.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)

    def trace(self) -> float:
        return float((self._trace_per_group(self.left) * self._trace_per_group(self.right)).sum())

    def frobenius_norm(self) -> float:
        left, right = (torch.linalg.vector_norm(f, dim=(-2, -1), dtype=torch.float64) for f in (self.left, self.right))
        return numerics.sum_squares(left * right) ** 0.5

    def diagonal(self) -> Tensor:
        left, right = (f.diagonal(dim1=-2, dim2=-1) for f in (self.left, self.right))
        return (left[:, :, None] * right[:, None, :]).flatten()

    @cached_property
    def _eigenvalues(self) -> Tensor:
        left, right = numerics.eigvalsh(self.left), numerics.eigvalsh(self.right)
        return left[:, :, None] * right[:, None, :]

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self._eigenvalues, k)

    def smallest_eigenvalue(self) -> float:
        return float(self._eigenvalues.min())

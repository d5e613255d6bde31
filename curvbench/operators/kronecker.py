"""Kronecker products and matrices diagonal in a Kronecker basis, batched over the groups of a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import sides
from curvbench.operators.base import Operator, largest


def _alone(*tensors: Tensor | None) -> tuple[Tensor, ...] | None:
    """The matrices of a single group, else None; cached, because views take a third of a small product's time.

    A side that is diagonal or the identity has no matrix, so that the result is None as well.
    """
    matrices = tuple(tensor[0] for tensor in tensors if tensor is not None and tensor.ndim == 3 and len(tensor) == 1)
    return matrices if len(matrices) == len(tensors) else None


def _between(left: Tensor | None, V: Tensor, right: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
    """The products left V right for a stack (P, K) of matrices of ``shape`` (G, M, D)."""
    return sides.from_right(sides.from_left(left, V.T.reshape(-1, *shape)), right).flatten(1).T


@dataclass(frozen=True, eq=False)
class RotatedDiagonal(Operator):
    """(Q_l (x) Q_r) diag(entries) (Q_l (x) Q_r)^T with orthogonal bases, block-diagonal over groups.

    ``left_basis`` (G, M, M) or (M, M), ``right_basis`` (G, D, D) or (D, D), ``entries`` (G, M, D) or (M, D). A basis
    of None is the identity.
    """

    left_basis: Tensor | None
    right_basis: Tensor | None
    entries: Tensor
    _alone: tuple[Tensor, Tensor, Tensor] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        entries = self.entries if self.entries.ndim == 3 else self.entries[None]
        G, M, D = entries.shape
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "left_basis", sides.basis(self.left_basis, (G, M, M)))
        object.__setattr__(self, "right_basis", sides.basis(self.right_basis, (G, D, D)))
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
        left, right, (G, M, D) = self.left_basis, self.right_basis, self.entries.shape
        rotated = _between(sides.transposed(left), V, right, (G, M, D))
        return _between(left, rotated * self.entries.reshape(-1, 1), sides.transposed(right), (G, M, D))

    def _matvec(self, v: Tensor) -> Tensor:
        if self._alone is None:
            return super()._matvec(v)
        left, right, entries = self._alone
        rotated = torch.linalg.multi_dot((left.mT, v.reshape(entries.shape), right))
        return torch.linalg.multi_dot((left, rotated * entries, right.mT)).view(-1)

    def entries_in(self, left_basis: Tensor | None, right_basis: Tensor | None) -> Tensor:
        """The diagonal in other orthogonal bases, (G, M, D), which is that of the nearest matrix diagonal there."""
        left, right = sides.overlap(left_basis, self.left_basis), sides.overlap(self.right_basis, right_basis)
        return sides.from_right(sides.from_left(sides.squared(left), self.entries), sides.squared(right))

    def _inverse(self, damping: float) -> RotatedDiagonal:
        least = 0.0 if damping else self._rounding
        return replace(self, entries=1 / numerics.positive(self.entries + damping, least))

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self._inverse(damping).matmat(V)

    def solve_at(self, v: Tensor, dampings: Sequence[float]) -> Tensor:
        """(self + damping I)^-1 v for a vector (P,) at several dampings above zero, (P, K), from one rotation of v."""
        self._check_length(v)
        left, right, (G, M, D) = self.left_basis, self.right_basis, self.entries.shape
        rotated = _between(sides.transposed(left), v[:, None], right, (G, M, D))
        damped = torch.stack([numerics.positive(self.entries + damping).flatten() for damping in dampings], dim=1)
        return _between(left, rotated / damped, sides.transposed(right), (G, M, D))

    def log_determinant(self) -> float:
        return float(numerics.positive(self.entries).double().log().sum())

    @property
    def _rounding(self) -> Tensor:
        """The largest value per group to which rounding takes an eigenvalue of zero, (G, 1, 1); 0 without a basis."""
        order = max((basis.shape[-1] for basis in (self.left_basis, self.right_basis) if basis is not None), default=0)
        return order * torch.finfo(self.dtype).eps * self.entries.amax((1, 2), keepdim=True)

    def trace(self) -> float:
        return float(self.entries.sum(dtype=torch.float64))

    def frobenius_norm(self) -> float:
        return numerics.sum_squares(self.entries) ** 0.5

    def diagonal(self) -> Tensor:
        return self.entries_in(None, None).flatten()

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self.entries, k)

    def smallest_eigenvalue(self) -> float:
        return float(self.entries.min())


@dataclass(frozen=True, eq=False)
class Kronecker(Operator):
    """The product left (x) right in row-major order, V -> left V right^T, block-diagonal over groups.

    ``left`` (G, M, M) or (M, M) is the output factor, ``right`` (G, D, D) or (D, D) the input factor; both PSD. Of a
    side that ``is_diagonal`` only the diagonal is given, (G, M) or (M,), and (G, D) or (D,).

    Raises:
        ValueError: a factor has another shape, or the numbers of groups differ.
    """

    left: Tensor
    right: Tensor
    left_is_diagonal: bool = False
    right_is_diagonal: bool = False
    _alone: tuple[Tensor, Tensor] | None = field(init=False, repr=False)

    @classmethod
    def batched(cls, left: Tensor, right: Tensor) -> Kronecker:
        """The product of sides that have their group axis, so that (G, n, n) is dense and (G, n) diagonal."""
        return cls(left, right, left.ndim == 2, right.ndim == 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", sides.batched(self.left, self.left_is_diagonal))
        object.__setattr__(self, "right", sides.batched(self.right, self.right_is_diagonal))
        if len(self.left) != len(self.right):
            groups = f"{len(self.left)} and {len(self.right)}"
            raise ValueError(f"Kronecker factors have equally many groups, got {groups}: give one pair per group")
        object.__setattr__(self, "_alone", _alone(self.left, sides.transposed(self.right)))

    @property
    def layout(self) -> tuple[int, int, int]:
        """G, M and D: the shape of the matrices that the product multiplies."""
        return len(self.left), self.left.shape[-1], self.right.shape[-1]

    @property
    def size(self) -> int:
        return math.prod(self.layout)

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def rotated(self) -> RotatedDiagonal:
        """The same matrix in its eigenbasis; computed at each use and not cached, so that meters see its cost."""
        left_values, left_basis = sides.eigh(self.left)
        right_values, right_basis = sides.eigh(self.right)
        return RotatedDiagonal(left_basis, right_basis, left_values[:, :, None] * right_values[:, None, :])

    def damped_factors(self, left: Tensor | float, right: Tensor | float) -> Kronecker:
        """(self.left + left I) (x) (self.right + right I), for dampings that are numbers or one per group, (G,)."""
        return Kronecker.batched(sides.damped(self.left, left), sides.damped(self.right, right))

    def _matmat(self, V: Tensor) -> Tensor:
        return _between(self.left, V, sides.transposed(self.right), self.layout)

    def _matvec(self, v: Tensor) -> Tensor:
        if self._alone is None:
            return super()._matvec(v)
        left, right = self._alone
        return torch.linalg.multi_dot((left, v.reshape(left.shape[0], -1), right)).view(-1)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.rotated.solve(V, damping)

    def _inverse(self, damping: float) -> Operator:
        if damping:
            return self.rotated.inverse(damping)
        # In float64, where no factor with a damping of its own comes near the rounding of a singular one.
        inverses = (sides.damped_inverse(side.double(), 0.0).to(self.dtype) for side in (self.left, self.right))
        return Kronecker.batched(*inverses)

    def log_determinant(self) -> float:
        _, M, D = self.layout
        return D * sides.log_determinant(self.left) + M * sides.log_determinant(self.right)

    def trace(self) -> float:
        left, right = (sides.main_diagonal(f).sum(-1, dtype=torch.float64) for f in (self.left, self.right))
        return float((left * right).sum())

    def frobenius_norm(self) -> float:
        return numerics.sum_squares(sides.vector_norm(self.left) * sides.vector_norm(self.right)) ** 0.5

    def diagonal(self) -> Tensor:
        left, right = (sides.main_diagonal(f) for f in (self.left, self.right))
        return (left[:, :, None] * right[:, None, :]).flatten()

    @cached_property
    def _eigenvalues(self) -> Tensor:
        left, right = sides.eigvalsh(self.left), sides.eigvalsh(self.right)
        return left[:, :, None] * right[:, None, :]

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self._eigenvalues, k)

    def smallest_eigenvalue(self) -> float:
        return float(self._eigenvalues.min())

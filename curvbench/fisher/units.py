"""The exact blocks of a layer's output units, never stored: a tile of units is formed whenever it is read.

The block of unit o is F_o = (1/terms) U^T U with one row of U per score column. If there are fewer rows than inputs,
the small matrix U U^T replaces the block: norm and nonzero eigenvalues are equal, and Woodbury solves with it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.columns import TILE_BYTES, Columns
from curvbench.operators import Operator
from curvbench.operators.base import largest


@dataclass(frozen=True, eq=False)
class UnitFisher(Operator):
    """Block-diagonal over the G M output units of a layer, D x D each."""

    averages: ClassVar[bool] = False  # columns are not statistics: their average has no meaning

    columns: Columns
    terms: float

    @property
    def size(self) -> int:
        return self.columns.layer.size

    @property
    def dtype(self) -> torch.dtype:
        return self.columns.dtype

    @property
    def device(self) -> torch.device:
        return self.columns.slopes.device

    @property
    def small(self) -> int:
        """The order of the matrix that is factorized per unit: the number of rows or of inputs."""
        return min(self.columns.unit_row_count, self.columns.layer.inputs)

    @property
    def tile(self) -> int:
        """The number of units whose rows are formed at the same time."""
        return max(1, TILE_BYTES // (self.columns.count * self.columns.layer.inputs * self.dtype.itemsize))

    def rows(self, tile: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Tile by tile a slice of the G M units and their rows U / sqrt(terms), (units, rows, D)."""
        for part, rows in self.columns.unit_tiles(tile or self.tile):
            yield part, rows / self.terms**0.5

    def matrices(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """``rows`` and the smaller of U U^T and U^T U in float64, (units, n, n)."""
        for part, U in self.rows():
            yield part, U, smaller(U)

    def factorize(self, damping: float) -> Iterator[Tensor]:
        """Tile by tile the Cholesky factors of the damped matrices of ``matrices``.

        Raises:
            ValueError: damping not above zero.
        """
        if not damping > 0:
            raise ValueError("the unit blocks of a batch may be singular: give a damping above zero")
        for _, U in self.rows():
            yield damped_factor(U, damping)

    def solve_factorized(self, V: Tensor, damping: float, factors: Sequence[Tensor] | Iterator[Tensor]) -> Tensor:
        """(F + damping I)^-1 V for a stack (P, K)."""
        stack, result = self._stack(V), torch.empty_like(self._stack(V))
        for (part, U), factor in zip(self.rows(), factors, strict=True):
            result[part] = solve_units(U, stack[part], damping, factor.to(torch.float64)).to(V.dtype)
        return result.reshape(V.shape)

    def _stack(self, V: Tensor) -> Tensor:
        """(P, K) -> (G M, D, K)."""
        return V.reshape(-1, self.columns.layer.inputs, V.shape[1])

    def _matmat(self, V: Tensor) -> Tensor:
        stack, result = self._stack(V), torch.empty_like(self._stack(V))
        for part, U in self.rows():
            result[part] = U.mT @ (U @ stack[part])
        return result.reshape(V.shape)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self.solve_factorized(V, damping, self.factorize(damping))

    def _inverse(self, damping: float) -> UnitInverse:
        if not damping > 0:
            raise ValueError("the unit blocks of a batch may be singular: give a damping above zero")
        return UnitInverse(self, damping)

    @cached_property
    def norms(self) -> Tensor:
        """The Frobenius norm of every block, (G M,) in float64."""
        return torch.cat([matrix.flatten(1).norm(dim=1) for _, _, matrix in self.matrices()])

    def trace(self) -> float:
        return float(self.diagonal().sum(dtype=torch.float64))

    def frobenius_norm(self) -> float:
        return numerics.sum_squares(self.norms) ** 0.5

    def diagonal(self) -> Tensor:
        return self._diagonal

    @cached_property
    def _diagonal(self) -> Tensor:
        return self.columns.squares().flatten().div(self.terms).to(self.dtype)

    def eigenvalues(self, k: int) -> Tensor:
        """The k largest eigenvalues; a block whose norm is at most the k-th value so far is not decomposed."""
        if k > len(self._largest):
            self._largest[:] = self._decomposed(k)
        return torch.tensor(self._largest[: min(k, self.size)], dtype=torch.float64, device=self.device)

    @cached_property
    def _largest(self) -> list[float]:
        """The largest eigenvalues that callers have asked for so far, descending."""
        return []

    def _decomposed(self, k: int) -> list[float]:
        best: list[float] = []
        for part, _, matrix in self.matrices():
            for norm, one in zip(self.norms[part].tolist(), matrix, strict=True):
                if len(best) == k and norm <= best[0]:
                    continue
                for value in numerics.eigvalsh(one).flip(0)[:k].tolist():
                    best = heapq.nlargest(k, [*best, value])[::-1]
        return best[::-1] + [0.0] * (k - len(best))

    def smallest_eigenvalue(self) -> float:
        if self.columns.unit_row_count < self.columns.layer.inputs:
            return 0.0
        return min(float(numerics.eigvalsh(matrix).min()) for _, _, matrix in self.matrices())


@dataclass(frozen=True, eq=False)
class UnitInverse(Operator):
    """The inverses of the blocks F + damping I of ``units``, formed in tiles: each product factorizes them again."""

    units: UnitFisher
    damping: float

    @property
    def size(self) -> int:
        return self.units.size

    @property
    def dtype(self) -> torch.dtype:
        return self.units.dtype

    @property
    def device(self) -> torch.device:
        return self.units.device

    def _matmat(self, V: Tensor) -> Tensor:
        return self.units.solve(V, self.damping)

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        """With C = F + self.damping I: C V, and (1 - (I + damping C)^-1) V / damping."""
        if damping == 0:
            return self.units.matmat(V) + self.damping * V
        return (V - self.units.solve(V, self.damping + 1 / damping) / damping) / damping

    @cached_property
    def _numbers(self) -> Tensor:
        """Trace, log-determinant and squared norm, from one pass over the blocks."""
        total = torch.zeros(3, dtype=torch.float64, device="cpu")
        for factor in self.units.factorize(self.damping):
            small = torch.cholesky_inverse(factor)
            numbers = small.diagonal(dim1=-2, dim2=-1).sum(), -numerics.log_determinant(factor), small.square().sum()
            total += torch.tensor([float(number) for number in numbers], dtype=torch.float64, device="cpu")
        rest = self.size - self.size // self.units.columns.layer.inputs * self.units.small
        alone = [1 / self.damping, -math.log(self.damping), 1 / self.damping**2]
        return total + rest * torch.tensor(alone, dtype=torch.float64, device="cpu")

    def trace(self) -> float:
        return float(self._numbers[0])

    def log_determinant(self) -> float:
        return float(self._numbers[1])

    def frobenius_norm(self) -> float:
        return float(self._numbers[2]) ** 0.5

    def diagonal(self) -> Tensor:
        parts = []
        for (_, U), factor in zip(self.units.rows(), self.units.factorize(self.damping), strict=True):
            if is_root(U):
                halves = torch.linalg.solve_triangular(factor, U.double(), upper=False)
                parts.append((1 - halves.square().sum(1)) / self.damping)
            else:
                parts.append(torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1))
        return torch.cat(parts).flatten().to(self.dtype)

    def eigenvalues(self, k: int) -> Tensor:
        return largest(1 / (self.units.eigenvalues(self.size) + self.damping), k)

    def smallest_eigenvalue(self) -> float:
        return 1 / (float(self.units.eigenvalues(1)[0]) + self.damping)


def is_root(blocks: Tensor) -> bool:
    """Whether tensors (units, rows, D) with fewer rows than inputs stand for the blocks U^T U."""
    return blocks.shape[1] < blocks.shape[2]


def smaller(U: Tensor) -> Tensor:
    """The smaller ones of U U^T and U^T U in float64, (units, n, n)."""
    return numerics.self_product(U if is_root(U) else U.mT).double()


def damped_factor(U: Tensor, damping: float) -> Tensor:
    """The Cholesky factors of the damped matrices of ``smaller``, for ``solve_units``."""
    return numerics.damped_cholesky(smaller(U), damping)


def solve_units(U: Tensor, v: Tensor, damping: float, factor: Tensor) -> Tensor:
    """(F + damping I)^-1 v per unit, for v (units, D, K), in the dtype of ``factor``.

    For a root U (units, rows, D) ``factor`` belongs to U U^T + damping I and the solve is Woodbury's; for any other U
    ``factor`` (units, D, D) belongs to the damped blocks themselves.
    """
    v = v.to(factor.dtype)
    if not is_root(U):
        return numerics.cholesky_solve(v, factor)
    U = U.to(factor.dtype)
    return (v - U.mT @ numerics.cholesky_solve(U @ v, factor)) / damping

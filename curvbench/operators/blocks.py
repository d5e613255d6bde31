"""Operators side by side on the diagonal: one per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from curvbench.numerics import checked_together
from curvbench.operators.base import Operator, largest


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Operator):
    """The direct sum of its blocks, in the order of the parameter vector."""

    blocks: Sequence[Operator]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("a block-diagonal operator needs at least one block, got none")

    @property
    def size(self) -> int:
        return sum(block.size for block in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].dtype

    @property
    def device(self) -> torch.device:
        return self.blocks[0].device

    def _each(self, V: Tensor, act: Callable[[Operator, Tensor], Tensor]) -> Tensor:
        pairs = [*zip(self.blocks, V.split([block.size for block in self.blocks]), strict=True)]
        return torch.cat(checked_together(lambda: [act(block, part) for block, part in pairs]))

    def _matmat(self, V: Tensor) -> Tensor:
        return self._each(V, lambda block, part: block._matmat(part))  # the split gives each block its own length

    def _matvec(self, v: Tensor) -> Tensor:
        return self._each(v, lambda block, part: block._matvec(part))

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return self._each(V, lambda block, part: block.solve(part, damping))

    def _inverse(self, damping: float) -> Operator:
        return BlockDiagonal(checked_together(lambda: [block.inverse(damping) for block in self.blocks]))

    def log_determinant(self) -> float:
        return sum(block.log_determinant() for block in self.blocks)

    def trace(self) -> float:
        return sum(block.trace() for block in self.blocks)

    def frobenius_norm(self) -> float:
        return sum(block.frobenius_norm() ** 2 for block in self.blocks) ** 0.5

    def diagonal(self) -> Tensor:
        return torch.cat([block.diagonal() for block in self.blocks])

    def eigenvalues(self, k: int) -> Tensor:
        return largest(torch.cat([block.eigenvalues(k) for block in self.blocks]), k)

    def smallest_eigenvalue(self) -> float:
        return min(block.smallest_eigenvalue() for block in self.blocks)

    def _block(self, start: int, stop: int) -> Operator:
        ends = list(accumulate(block.size for block in self.blocks))
        for block, end in zip(self.blocks, ends, strict=True):
            first = end - block.size
            if first <= start and stop <= end:
                return block.block(start - first, stop - first)
        return super()._block(start, stop)

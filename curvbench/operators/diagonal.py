"""Identity and diagonal matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators.base import Operator, largest


@dataclass(frozen=True)
class Identity(Operator):
    """The identity of order P."""

    order: int
    number_type: torch.dtype = torch.float32
    place: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def size(self) -> int:
        return self.order

    @property
    def dtype(self) -> torch.dtype:
        return self.number_type

    @property
    def device(self) -> torch.device:
        return self.place

    def _matmat(self, V: Tensor) -> Tensor:
        return V.clone()

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return V / (1 + damping)

    def _inverse(self, damping: float) -> Operator:
        return Diagonal(self.diagonal() / (1 + damping))

    def trace(self) -> float:
        return float(self.order)

    def frobenius_norm(self) -> float:
        return float(self.order) ** 0.5

    def diagonal(self) -> Tensor:
        return torch.ones(self.order, dtype=self.dtype, device=self.device)

    def eigenvalues(self, k: int) -> Tensor:
        return torch.ones(min(k, self.order), dtype=torch.float64, device=self.device)

    def smallest_eigenvalue(self) -> float:
        return 1.0

    def _block(self, start: int, stop: int) -> Operator:
        return Identity(stop - start, self.number_type, self.place)


@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """The matrix diag(entries) with entries (P,) that are not negative."""

    entries: Tensor

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
        return self.entries[:, None] * V

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return V / numerics.positive(self.entries + damping)[:, None]

    def _inverse(self, damping: float) -> Operator:
        return Diagonal(1 / numerics.positive(self.entries + damping))

    def log_determinant(self) -> float:
        return float(numerics.positive(self.entries).double().log().sum())

    def trace(self) -> float:
        return float(self.entries.sum(dtype=torch.float64))

    def frobenius_norm(self) -> float:
        return numerics.sum_squares(self.entries) ** 0.5

    def diagonal(self) -> Tensor:
        return self.entries

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self.entries, k)

    def smallest_eigenvalue(self) -> float:
        return float(self.entries.min())

    def _block(self, start: int, stop: int) -> Operator:
        return Diagonal(self.entries[start:stop])

"""The members of a Fisher matrix in score columns that inner products with operators need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from curvbench.fisher.columns import Columns
from curvbench.spec.geometry import Layer


class Scores(Protocol):
    """F = (1/terms) sum of v v^T over the score columns v of some layers, (P, P)."""

    @property
    def columns(self) -> Sequence[Columns]:
        """The score columns, one entry per layer."""

    @property
    def terms(self) -> int:
        """The number of loss terms, over which F is a mean."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the columns."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers in the order of ``columns``."""

    def layer(self, name: str) -> Scores:
        """The diagonal block of one layer."""

    def stacks(self) -> Iterator[Tensor]:
        """The score columns of one sample after the other, each (P, R)."""

    def project(self, V: Tensor) -> Tensor:
        """Inner products of the columns with vectors (P, K), (R, N, K)."""

    def trace(self) -> float:
        """The trace of F."""

    def diagonal(self) -> Tensor:
        """The diagonal of F, (P,)."""

"""Kronecker factors U U^T + diag(d) that are never formed (SKFAC), and their damped inverses by Woodbury."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import Kronecker
from curvbench.parts.nearest import weights


@dataclass(frozen=True, eq=False)
class Root:
    """The factor U U^T + diag(d), for a root U (G, n, K), and a diagonal (G, n) or None for zero."""

    columns: Tensor
    diagonal: Tensor | None = None

    def factor(self) -> Tensor:
        """The factor as a matrix (G, n, n), or its diagonal (G, n) if it has no root."""
        if self.diagonal is not None and not self.columns.shape[2]:
            return self.diagonal
        product = self.columns @ self.columns.mT
        return product if self.diagonal is None else product + self.diagonal.diag_embed()

    def inverse(self, shift: float) -> RootInverse:
        """What solves with the factor + shift I need."""
        if self.diagonal is None:
            return RootInverse(self.columns, numerics.damped_cholesky(self.columns.mT @ self.columns, shift), shift)
        scale = (self.diagonal + shift).rsqrt()
        columns = scale[..., None] * self.columns
        return RootInverse(columns, numerics.damped_cholesky(columns.mT @ columns, 1.0), 1.0, scale)


@dataclass(frozen=True, eq=False)
class RootInverse:
    """(S^-1 (U U^T + shift I) S^-1)^-1 for a diagonal ``scale`` S (G, n), None for I.

    ``gram_factor``: the Cholesky factor of shift I + U^T U, (G, K, K).
    """

    columns: Tensor
    gram_factor: Tensor
    shift: float
    scale: Tensor | None = None

    def apply(self, V: Tensor) -> Tensor:
        """The product with V of shape (G, n, K)."""
        if self.scale is None:
            return self._solved(V)
        return self.scale[..., None] * self._solved(self.scale[..., None] * V)

    def _solved(self, V: Tensor) -> Tensor:
        small = numerics.cholesky_solve((self.columns.mT @ V).to(self.gram_factor.dtype), self.gram_factor)
        return (V - self.columns @ small.to(V.dtype)) / self.shift


@dataclass(frozen=True, eq=False)
class Roots:
    """The Kronecker product outputs (x) inputs of such factors."""

    outputs: Root
    inputs: Root

    def turned(self) -> Roots:
        """The product that acts on transposed matrices."""
        return Roots(self.inputs, self.outputs)

    def product(self) -> Kronecker:
        """The product with its factors formed."""
        return Kronecker.batched(self.outputs.factor(), self.inputs.factor())

    def inverse(self, shift: float) -> RootsInverse:
        """The product of the inverses of both factors + shift I."""
        return RootsInverse(self.outputs.inverse(shift), self.inputs.inverse(shift))


@dataclass(frozen=True, eq=False)
class RootsInverse:
    """The Kronecker product of two inverses."""

    outputs: RootInverse
    inputs: RootInverse

    @property
    def size(self) -> int:
        """G M D."""
        return len(self.outputs.columns) * self.outputs.columns.shape[1] * self.inputs.columns.shape[1]

    def matvec(self, vector: Tensor) -> Tensor:
        """The product with a vector (P,)."""
        V = vector.reshape(len(self.outputs.columns), self.outputs.columns.shape[1], -1)
        return self.inputs.apply(self.outputs.apply(V).mT).mT.flatten()


def root_of(rows: Tensor, count: int, is_diagonal: bool) -> Root:
    """The sum of outer products of rows (rows, G, n) over ``count``, or the diagonal of that sum."""
    if is_diagonal:
        return Root(rows.new_zeros(*rows.shape[1:], 0), rows.square().sum(0) / count)
    return Root(rows.permute(1, 2, 0) / count**0.5)


def nearest_roots(products: Sequence[Roots]) -> Roots:
    """The product of two factors nearest to the sum of such products, whose roots stand side by side."""
    lefts, rights = [p.outputs for p in products], [p.inputs for p in products]
    for_left, for_right = weights(_gram(lefts), _gram(rights))
    return Roots(_combined(lefts, for_left), _combined(rights, for_right))


def _gram(roots: Sequence[Root]) -> Tensor:
    """Inner products (G, U, U) of U factors in float64."""
    rows = [torch.stack([_inner(a, b) for b in roots], dim=-1) for a in roots]
    return torch.stack(rows, dim=1)


def _inner(a: Root, b: Root) -> Tensor:
    """The inner product of two factors, (G,)."""
    A, B = a.columns.double(), b.columns.double()
    total = (A.mT @ B).square().sum((1, 2))
    for root, diagonal in ((A, b.diagonal), (B, a.diagonal)):
        if diagonal is not None:
            total = total + (root.square().sum(2) * diagonal).sum(1)
    if a.diagonal is not None and b.diagonal is not None:
        total = total + (a.diagonal.double() * b.diagonal).sum(1)
    return total


def _combined(roots: Sequence[Root], numbers: Tensor) -> Root:
    """The sum of factors with weights (G, U)."""
    pairs = list(zip(roots, numbers.to(roots[0].columns.dtype).unbind(1), strict=True))
    columns = torch.cat([weight.sqrt()[:, None, None] * root.columns for root, weight in pairs], dim=2)
    diagonals = [weight[:, None] * root.diagonal for root, weight in pairs if root.diagonal is not None]
    return Root(columns, sum(diagonals[1:], diagonals[0]) if diagonals else None)

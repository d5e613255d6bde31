"""Leading eigenvectors of positive maps of symmetric matrices, and their singular pairs, by Lanczos iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvbench import numerics


class NotReached(Exception):
    """The rounds did not reach the tolerance, and only the best pair bounds the errors of other Kronecker products."""


def leading(image: Callable[[Tensor], Tensor], start: Tensor, rounds: int, tolerance: float) -> Tensor:
    """The leading eigenvector of a positive map of symmetric matrices (G, m, m), itself positive semi-definite.

    Where ``start`` is zero the result is zero.

    Raises:
        NotReached: after all ``rounds`` a residual, relative to its eigenvalue, is above ``tolerance``.
    """
    return _semidefinite(leading_vector(image, start, rounds, tolerance))


def leading_vector(
    image: Callable[[Tensor], Tensor], start: Tensor, rounds: int, tolerance: float, rounding: float = 0.0
) -> Tensor:
    """The leading eigenvector of a symmetric map of matrices (G, m, m) without negative eigenvalues, of norm 1.

    Lanczos iteration with full orthogonalization finds it, group by group, in the space of all images of ``start``.
    Where ``start`` is zero the result is zero. A residual up to ``rounding`` is none.

    Raises:
        NotReached: after all ``rounds`` a residual, relative to its eigenvalue, is above ``tolerance``.
    """
    basis = normalized(start)[:, None]
    projected = torch.zeros(len(start), 0, 0, dtype=torch.float64, device=start.device)
    for _ in range(rounds):
        projected = nn.functional.pad(projected, (0, 1, 0, 1))
        direction = image(basis[:, -1])
        for _ in range(2):  # one pass leaves its own rounding
            weights = torch.einsum("gkab,gab->gk", basis, direction)
            direction = direction - torch.einsum("gk,gkab->gab", weights, basis)
            projected[:, -1] += weights  # the row is enough: eigh reads the lower triangle
        values, vectors = torch.linalg.eigh(projected)
        limit, rest = (tolerance * values[:, -1]).clamp_min(rounding), norms(direction)
        if bool((rest[:, 0, 0] * vectors[:, -1, -1].abs() <= limit).all()):
            return torch.einsum("gk,gkab->gab", vectors[:, :, -1].to(basis.dtype), basis)
        # In a group whose directions are exhausted only rounding is left.
        following = torch.where(rest > limit[:, None, None], direction / nonzero(rest), 0.0)
        basis = torch.cat([basis, following[:, None]], 1)
    raise NotReached(f"{rounds} rounds did not reach the tolerance {tolerance:g}")


Map = Callable[[Tensor], Tensor]


class Search(NamedTuple):
    """The search for singular pairs of a map ``across`` with the adjoint ``back``; limits as in ``leading_vector``."""

    across: Map
    back: Map
    rounds: int
    tolerance: float

    def symmetric(self, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` leading pairs in the space of symmetric matrices (G, m, m), the first one from ``start``.

        Returns the vectors of norm 1, (count, G, m, m), and their images, whose norms are the singular values, in
        descending order up to the tolerance. The first vector is positive semi-definite. A vector is zero where the
        space has no more directions.
        """
        unit = nonzero(norms(self.across(normalized(start))))  # because a small square underflows in float32
        first = normalized(leading(self._round(unit, [], 1), start, self.rounds, self.tolerance))
        vectors, images = [first], [self.across(first)]
        for k in range(1, count):
            vector = self._next(nonzero(norms(images[0])), _random(start, k, 1), vectors, 1)
            vectors.append(vector)
            images.append(self.across(vector))
        return torch.stack(vectors), torch.stack(images)

    def skew(self, values: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The leading pairs in the space of skew matrices that may be among the first of all pairs.

        ``values`` (count, G): the leading singular values of the symmetric pairs. ``like`` (G, m, m): any matrices.
        """
        vectors: list[Tensor] = []
        images: list[Tensor] = []
        for k, rival in enumerate(values.flip(0)):
            vector = self._next(nonzero(values[0])[:, None, None], _random(like, k, -1), vectors, -1)
            vectors.append(vector)
            images.append(self.across(vector))
            if bool((torch.linalg.matrix_norm(images[-1]) <= rival).all()):
                break
        return torch.stack(vectors), torch.stack(images)

    def _next(self, unit: Tensor, start: Tensor, found: Sequence[Tensor], sign: int) -> Tensor:
        """The leading vector in the space of ``start`` that is orthogonal to those that are found."""
        start, rounding = _outside(start, found), 64 * torch.finfo(start.dtype).eps  # of the largest square, 1
        vector = leading_vector(self._round(unit, found, sign), start, self.rounds, self.tolerance, rounding)
        return normalized(_outside(vector, found))

    def _round(self, unit: Tensor, found: Sequence[Tensor], sign: int) -> Map:
        """One product with the map and one with its adjoint, without rounding outside of the space of a kind."""

        def image(X: Tensor) -> Tensor:
            product = self.back(self.across(X) / unit) / unit
            return _outside((product + sign * product.mT) / 2, found)

        return image


def _random(like: Tensor, seed: int, sign: int) -> Tensor:
    """Normal matrices (G, m, m), symmetric for the sign 1, skew for -1."""
    draws = torch.randn(
        like.shape, device="cpu", generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(like)
    return draws + sign * draws.mT


def _outside(X: Tensor, found: Sequence[Tensor]) -> Tensor:
    """The part of X (G, m, m) that is orthogonal to some orthonormal matrices; zero where this is rounding alone."""
    rest = X
    for _ in range(2 * bool(found)):  # one pass leaves its own rounding
        for vector in found:
            rest = rest - (vector * rest).sum((1, 2), keepdim=True) * vector
    return torch.where(norms(rest) > X[0].numel() * torch.finfo(X.dtype).eps * norms(X), rest, 0.0)


def _semidefinite(factors: Tensor) -> Tensor:
    """The factors with the sign that makes their trace positive, without negative eigenvalues of rounding."""
    sign = factors.diagonal(dim1=-2, dim2=-1).sum(-1).sign()[:, None, None]
    values, vectors = numerics.eigh(sign * factors)
    return (vectors * values[:, None]) @ vectors.mT


def norms(factors: Tensor) -> Tensor:
    """The Frobenius norms of factors (G, n, n), (G, 1, 1)."""
    return torch.linalg.matrix_norm(factors)[:, None, None]


def nonzero(norms: Tensor) -> Tensor:
    """The norms with 1 in place of zero."""
    return torch.where(norms > 0, norms, 1.0)


def normalized(factors: Tensor) -> Tensor:
    """Factors (G, n, n) of Frobenius norm 1; a zero factor stays zero."""
    return factors / nonzero(norms(factors))

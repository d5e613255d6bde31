"""The leading eigenvector of a positive map of symmetric matrices, by Lanczos iteration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from curvbench import numerics


class NotReached(Exception):
    """The rounds did not reach the tolerance, and only the best pair bounds the errors of other Kronecker products."""


def leading(image: Callable[[Tensor], Tensor], start: Tensor, rounds: int, tolerance: float) -> Tensor:
    """The leading eigenvector of a positive map of symmetric matrices (G, m, m), itself positive semi-definite.

    Lanczos iteration with full orthogonalization finds it, group by group. Where ``start`` is zero the result is zero.

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
        limit, rest = tolerance * values[:, -1], norms(direction)
        if bool((rest[:, 0, 0] * vectors[:, -1, -1].abs() <= limit).all()):
            return _semidefinite(torch.einsum("gk,gkab->gab", vectors[:, :, -1].to(basis.dtype), basis))
        # In a group whose directions are exhausted only rounding is left.
        following = torch.where(rest > limit[:, None, None], direction / nonzero(rest), 0.0)
        basis = torch.cat([basis, following[:, None]], 1)
    raise NotReached(f"{rounds} rounds did not reach the tolerance {tolerance:g}")


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

"""Multiplicative steps of a whitening matrix P = (Q_L^T Q_L) (x) (Q_R^T Q_R), as PSGD fits it (Li 2018, Li 2024).

A side Q is (G, n, n), or the diagonal (G, n) of a diagonal one. The terms of a side are a pair E, E': its step
multiplies Q by I - rate (E - E') / |E + E'|, and Q rests where their expectations agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench.operators import sides

Pair = tuple[Tensor, Tensor]


def eq_terms(roots: Pair, V: Tensor, Z: Tensor) -> tuple[Pair, Pair]:
    """Terms of Q_L and of Q_R for a gradient V and a normal draw Z, (G, M, D) each.

    With A = Q_L V Q_R^T and B = Q_L^-T Z Q_R^-1 they are A A^T, B B^T and A^T A, B^T B. The expectations agree at the
    least E[v^T P v] + tr P^-1.
    """
    left, right = roots
    A = sides.from_right(sides.from_left(left, V), sides.transposed(right))
    B = _over(right, _over(left, Z).mT).mT
    return tuple((_moment(A_, Q), _moment(B_, Q)) for Q, A_, B_ in ((left, A, B), (right, A.mT, B.mT)))  # type: ignore


def qeq_terms(roots: Pair, V: Tensor) -> tuple[Pair, Pair]:
    """Terms of Q_L and of Q_R for a gradient V (G, M, D): A A^T and D I, A^T A and M I with A = P_L V P_R.

    The expectations agree where P^-2 is the Kronecker product nearest to E[v v^T] in KL divergence.
    """
    A = whitened(roots, V)
    return tuple((_moment(A_, Q), A_.shape[-1] * _identity(Q)) for Q, A_ in zip(roots, (A, A.mT), strict=True))  # type: ignore


def whitened(roots: Pair, V: Tensor) -> Tensor:
    """P_L V P_R for matrices V (G, M, D)."""
    left, right = roots
    V = sides.from_left(sides.transposed(left), sides.from_left(left, V))
    return sides.from_right(sides.from_right(V, sides.transposed(right)), right)


def eq_step(Q: Tensor, terms: Pair, rate: float) -> Tensor:
    """The next side, upper triangular as Q is: (I - rate triu(E - E') / |E + E'|) Q."""
    share = _share(terms, rate)
    return Q * (1 - share) if Q.ndim == 2 else Q - share.triu() @ Q


def qeq_step(Q: Tensor, terms: Pair, rate: float) -> Tensor:
    """The next side Q (I - rate (E - E') / |E + E'|)."""
    share = _share(terms, rate)
    return Q * (1 - share) if Q.ndim == 2 else Q - Q @ share


def inverse(Q: Tensor) -> Tensor:
    """(Q^T Q)^-1, (G, n, n), or its diagonal (G, n)."""
    if Q.ndim == 2:
        return Q.square().reciprocal()
    root = torch.linalg.inv(Q)
    return root @ root.mT


def _share(terms: Pair, rate: float) -> Tensor:
    plus, minus = terms
    return (plus - minus) * sides.per_group(rate / _norm(plus + minus), plus)


def _norm(matrix: Tensor) -> Tensor:
    """The spectral norm of PSD matrices (G, n, n), or of diagonals (G, n), from below: |S v| for its largest row v."""
    if matrix.ndim == 2:
        return matrix.amax(-1)
    lengths = torch.linalg.vector_norm(matrix, dim=-1)
    largest = lengths.argmax(-1)
    places = torch.arange(len(matrix), device=matrix.device)
    row = matrix[places, largest] / lengths[places, largest][:, None]
    return torch.linalg.vector_norm(matrix @ row[..., None], dim=(1, 2))


def _over(Q: Tensor, Z: Tensor) -> Tensor:
    """Q^-T Z for an upper triangular Q."""
    return Z / Q[..., None] if Q.ndim == 2 else torch.linalg.solve_triangular(Q.mT, Z, upper=False)


def _moment(A: Tensor, like: Tensor) -> Tensor:
    """A A^T for A (G, M, D), or its diagonal (G, M) where ``like`` is one."""
    return A.square().sum(-1) if like.ndim == 2 else A @ A.mT


def _identity(like: Tensor) -> Tensor:
    """The identity with the shape of a side, broadcast over groups."""
    n = like.shape[-1]
    return like.new_ones(n) if like.ndim == 2 else torch.eye(n, dtype=like.dtype, device=like.device)

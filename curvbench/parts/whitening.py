"""Multiplicative steps of a whitening matrix P = (Q_L^T Q_L) (x) (Q_R^T Q_R), as PSGD fits it (Li 2018, Li 2024).

A side Q is (G, n, n), or the diagonal (G, n) of a diagonal one. The terms of a side are the pair E - E', E + E': its
step multiplies Q by I - rate (E - E') / |E + E'|, and Q rests where the expectations of E and E' agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench.operators import sides

Pair = tuple[Tensor, Tensor]


def eq_terms(roots: Pair, V: Tensor, Z: Tensor) -> tuple[Pair, Pair]:
    """Terms of Q_L and of Q_R for a gradient V and a normal draw Z, (G, M, D) each.

    With A = Q_L V Q_R^T and B = Q_L^-T Z Q_R^-1, E and E' are A A^T, B B^T and A^T A, B^T B. The expectations agree at
    the least E[v^T P v] + tr P^-1.
    """
    left, right = roots
    A = sides.from_right(sides.from_left(left, V), sides.transposed(right))
    B = _over(right, _over(left, Z).mT).mT
    return _eq_terms(A, B, left), _eq_terms(A.mT, B.mT, right)


def _eq_terms(A: Tensor, B: Tensor, like: Tensor) -> Pair:
    E, other = _moment(A, like), _moment(B, like)
    total = E + other
    return E.sub_(other), total  # in place, because a new matrix of this size costs more than its entries


def qeq_terms(roots: Pair, V: Tensor) -> tuple[Pair, Pair]:
    """Terms of Q_L and of Q_R for a gradient V (G, M, D): E and E' are A A^T, D I and A^T A, M I with A = P_L V P_R.

    The expectations agree where P^-2 is the Kronecker product nearest to E[v v^T] in KL divergence.
    """
    A = whitened(roots, V)
    return _qeq_terms(A, roots[0]), _qeq_terms(A.mT, roots[1])


def _qeq_terms(A: Tensor, like: Tensor) -> Pair:
    E, number = _moment(A, like), A.shape[-1]
    return sides.damped(E, -number), sides.damped(E, number)


def whitened(roots: Pair, V: Tensor) -> Tensor:
    """P_L V P_R for matrices V (G, M, D)."""
    left, right = roots
    V = sides.from_left(sides.transposed(left), sides.from_left(left, V))
    return sides.from_right(sides.from_right(V, sides.transposed(right)), right)


def eq_step(Q: Tensor, terms: Pair, rate: float) -> Tensor:
    """The next side, upper triangular as Q is: (I - rate triu(E - E') / |E + E'|) Q."""
    share = _share(terms, rate)
    return Q * (1 - share) if Q.ndim == 2 else _less(Q, share.triu_() @ Q)


def qeq_step(Q: Tensor, terms: Pair, rate: float) -> Tensor:
    """The next side Q (I - rate (E - E') / |E + E'|)."""
    share = _share(terms, rate)
    return Q * (1 - share) if Q.ndim == 2 else _less(Q, Q @ share)


def inverse(Q: Tensor) -> Tensor:
    """(Q^T Q)^-1, (G, n, n), or its diagonal (G, n)."""
    if Q.ndim == 2:
        return Q.square().reciprocal()
    root = torch.linalg.inv(Q)
    return root @ root.mT


def _share(terms: Pair, rate: float) -> Tensor:
    """The share rate (E - E') / |E + E'| of Q that a step removes, which takes the place of E - E'."""
    difference, total = terms
    return difference.mul_(sides.per_group(rate / _norm(total), total))


def _less(Q: Tensor, product: Tensor) -> Tensor:
    """Q - product, which takes the place of the product."""
    return torch.sub(Q, product, out=product)


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

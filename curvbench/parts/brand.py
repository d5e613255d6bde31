"""Rank-one updates of a truncated eigendecomposition (Brand 2006): U diag(values) U^T + weight d d^T.

``ema`` tracks an exponential moving average of outer products. The other three forms of Ginger's recursion update the
inverse, by kappa(sigma) = sigma / (gamma^2 + gamma sigma), and serve comparisons.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["direct", "fix_a", "fix_b", "printed"]
Eigen = tuple[Tensor, Tensor]
"""Orthonormal vectors (P, K) and their eigenvalues (K,)."""

_ROUNDING = 16  # units in the last place of a vector: a shorter component outside the subspace is rounding


def rank_one(basis: Tensor, values: Tensor, vector: Tensor, weight: Tensor | float, rank: int) -> Eigen:
    """The ``rank`` largest eigenpairs of U diag(values) U^T + weight d d^T, for U (P, K) and d (P,)."""
    inside = basis.T @ vector
    outside = vector - basis @ inside
    remainder = basis.T @ outside  # one projection leaves rounding of the size of the vector in the subspace
    inside, outside = inside + remainder, outside - basis @ remainder
    length = torch.linalg.vector_norm(outside)
    negligible = _ROUNDING * torch.finfo(vector.dtype).eps * torch.linalg.vector_norm(vector)
    if bool(length > negligible):
        basis = torch.cat([basis, (outside / length)[:, None]], dim=1)
        values, inside = torch.cat([values, values.new_zeros(1)]), torch.cat([inside, length[None]])
    small = torch.diag(values.double()) + weight * torch.outer(inside.double(), inside.double())
    ascending, rotation = torch.linalg.eigh(small)
    largest, vectors = ascending.flip(0)[:rank].to(values.dtype), rotation.flip(1)[:, :rank].to(basis.dtype)
    return basis @ vectors, largest


def ema(basis: Tensor, values: Tensor, vector: Tensor, decay: float, rank: int) -> Eigen:
    """The ``rank`` largest eigenpairs of decay U diag(values) U^T + (1 - decay) d d^T, for U (P, K) and d (P,)."""
    return rank_one(basis, decay * values, vector, 1 - decay, rank)


def ema_by_inverse(
    basis: Tensor, values: Tensor, vector: Tensor, decay: float, rank: int, damping: float, form: Form
) -> Eigen:
    """One step of the recursion on the inverse, for U (P, K), ``values`` (K,) and d (P,): a new U and new values.

    In exact arithmetic ``fix_a`` and ``fix_b`` equal ``ema``. ``fix_a`` repairs Algorithm 1 of Ginger in the variables
    of the paper, ``fix_b`` in those of its public code. ``printed`` is Algorithm 1 as the paper prints it, whose values
    may be negative.
    """
    if form == "fix_a":
        inner, scale = damping / decay, 1 / decay
        solved = damped_inverse(basis, values, vector, inner)
        curvature = kappa(values, inner) * scale
        weight = (1 / decay - 1) / (decay + (1 - decay) * (solved @ vector))
    else:
        solved = damped_inverse(basis, decay * values, vector, damping)
        product = solved @ vector
        if form == "fix_b":
            curvature = kappa(decay * values, damping)
            weight = (1 - decay) / (1 + (1 - decay) * product)
        else:
            curvature = kappa(values, damping / decay)
            weight = (1 / decay - 1) / (decay + (1 - decay) * product)
    basis, kappas = rank_one(basis, curvature, solved, weight, rank)
    rest = 1 - damping * kappas
    # If rounding takes 1 - gamma kappa to 0, the eigenvalue is lost and the direction is dropped.
    return basis, torch.where(rest == 0, 0.0, damping**2 * kappas / torch.where(rest == 0, 1.0, rest))


def kappa(values: Tensor, damping: float) -> Tensor:
    """1/damping - 1/(damping + values)."""
    return values / (damping**2 + damping * values)


def damped_inverse(basis: Tensor, values: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(damping I + U diag(values) U^T)^-1 d for orthonormal U (P, K) and d (P,), (P,)."""
    return vector / damping - basis @ (kappa(values, damping) * (basis.T @ vector))

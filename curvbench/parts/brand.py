"""Rank-one updates of a truncated eigendecomposition (Brand 2006): U diag(values) U^T + weight d d^T.

``ema`` tracks an exponential moving average of outer products; the other three forms of Ginger's recursion go
through the inverse, by kappa(sigma) = sigma / (gamma^2 + gamma sigma), and are kept for comparison.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["direct", "fix_a", "fix_b", "printed"]
Eigen = tuple[Tensor, Tensor]
"""Orthonormal columns (P, K) and their values (K,)."""


def rank_one(basis: Tensor, values: Tensor, vector: Tensor, weight: Tensor | float, rank: int) -> Eigen:
    """The ``rank`` largest eigenpairs of U diag(values) U^T + weight d d^T, for orthonormal U (P, K)."""
    inside = basis.T @ vector
    outside = vector - basis @ inside
    again = basis.T @ outside  # one pass leaves rounding of the size of the vector inside
    inside, outside = inside + again, outside - basis @ again
    length = torch.linalg.vector_norm(outside)
    negligible = 16 * torch.finfo(vector.dtype).eps * torch.linalg.vector_norm(vector)
    if bool(length > negligible):
        basis = torch.cat([basis, (outside / length)[:, None]], dim=1)
        values, inside = torch.cat([values, values.new_zeros(1)]), torch.cat([inside, length[None]])
    small = torch.diag(values.double()) + weight * torch.outer(inside.double(), inside.double())
    found, rotation = torch.linalg.eigh(small)
    kept = found.flip(0)[:rank].to(values.dtype), rotation.flip(1)[:, :rank].to(basis.dtype)
    return basis @ kept[1], kept[0]


def ema(basis: Tensor, values: Tensor, vector: Tensor, decay: float, rank: int) -> Eigen:
    """The ``rank`` largest eigenpairs of decay U diag(values) U^T + (1 - decay) d d^T."""
    return rank_one(basis, decay * values, vector, 1 - decay, rank)


def ema_by_inverse(
    basis: Tensor, values: Tensor, vector: Tensor, decay: float, rank: int, damping: float, form: Form
) -> Eigen:
    """One step of the recursion on the inverse; equal to ``ema`` in exact arithmetic but for ``printed``.

    ``fix_a`` and ``fix_b`` repair Algorithm 1 of Ginger in its own variables and in those of its public code;
    ``printed`` is Algorithm 1 as it stands, whose values may be negative.
    """
    if form == "fix_a":
        inner, scale = damping / decay, 1 / decay
        pulled = damped_inverse(basis, values, vector, inner)
        curvature = kappa(values, inner) * scale
        weight = (1 / decay - 1) / (decay + (1 - decay) * (pulled @ vector))
    else:
        pulled = damped_inverse(basis, decay * values, vector, damping)
        reached = pulled @ vector
        if form == "fix_b":
            curvature = kappa(decay * values, damping)
            weight = (1 - decay) / (1 + (1 - decay) * reached)
        else:
            curvature = kappa(values, damping / decay)
            weight = (1 / decay - 1) / (decay + (1 - decay) * reached)
    basis, found = rank_one(basis, curvature, pulled, weight, rank)
    rest = 1 - damping * found
    # Where rounding has left nothing of 1 - gamma kappa the value is lost: the direction is dropped.
    return basis, torch.where(rest == 0, 0.0, damping**2 * found / torch.where(rest == 0, 1.0, rest))


def kappa(values: Tensor, damping: float) -> Tensor:
    """1/damping - 1/(damping + values)."""
    return values / (damping**2 + damping * values)


def damped_inverse(basis: Tensor, values: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(damping I + U diag(values) U^T)^-1 d for orthonormal U, (P,)."""
    return vector / damping - basis @ (kappa(values, damping) * (basis.T @ vector))

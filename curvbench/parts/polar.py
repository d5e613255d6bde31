"""The polar factor of a matrix: the orthonormal factor Q of U = Q H with H PSD, exact or by Newton-Schulz rounds.

All singular values of U become 1, and its singular vectors stay. Of all matrices with spectral norm 1 the polar factor
has the largest inner product with U, which is the sum of U's singular values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench import numerics

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's public code: steep at zero, 0.68 to 1.20 on [0.003, 1]
LEAST_NORM = 1e-7  # is added to the norm before the rounds, as in the public code


def polar_factor(U: Tensor) -> Tensor:
    """U (U^T U)^(-1/2) of every matrix (..., M, D); directions in which U is zero but for rounding stay near zero.

    The eigenvalues of the smaller Gram matrix come from float64, because the squares of small singular values would
    vanish in float32.

    Raises:
        ValueError: an entry, or the square of one, is not finite.
    """
    M, D = U.shape[-2:]
    if M > D:
        return polar_factor(U.mT).mT
    values, basis = numerics.eigh(numerics.self_product(U.double()))
    largest = values.amax(-1, keepdim=True)
    rounding = max(M * torch.finfo(values.dtype).eps, (D * torch.finfo(U.dtype).eps) ** 2)
    powers = torch.where(largest > 0, torch.maximum(values, rounding * largest), 1.0).rsqrt()
    return ((basis * powers[..., None, :]) @ basis.mT).to(U.dtype) @ U


def newton_schulz(U: Tensor, rounds: int) -> Tensor:
    """Muon's approximation of the polar factor of every matrix (..., M, D), whose singular values do not tend to 1.

    X <- a X + (b Y + c Y^2) X with Y = X X^T, from X = U / (|U| + ``LEAST_NORM``).
    """
    if U.shape[-2] > U.shape[-1]:
        return newton_schulz(U.mT, rounds).mT
    a, b, c = COEFFICIENTS
    shape = U.shape
    X = U.reshape(-1, *shape[-2:])
    X = X / (torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True) + LEAST_NORM)
    for _ in range(rounds):
        Y = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(Y, Y, Y, beta=b, alpha=c), X, beta=a)
    return X.reshape(shape)

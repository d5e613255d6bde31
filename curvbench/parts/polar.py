"""The polar factor of a matrix: the orthonormal factor Q of U = Q H with H PSD, exact or by Newton-Schulz rounds.

All singular values of U become 1, and its singular vectors stay. Of all matrices with spectral norm 1 the polar factor
has the largest inner product with U, which is the sum of U's singular values.

A method with a Kronecker product per layer can step by polar factors (``TakesPolar``). Let B (x) A be the damped
product, whose inverse gives the method's own step B^-1 V A^-1. ``after`` takes the polar factor of that step.
``whitened`` takes B^(-1/2) Q A^(-1/2) for the polar factor Q of B^(-1/2) V A^(-1/2), with the length of Q: no step with
the same spectral norm of B^(1/2) p A^(1/2) has a larger inner product with V.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import Kronecker, Operator, RotatedDiagonal
from curvbench.spec import Probe, StepRule

Polar = Literal["none", "after", "whitened"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's public code: steep at zero, 0.68 to 1.20 on [0.003, 1]
LEAST_NORM = 1e-7  # is added to the norm before the rounds, as in the public code
COST = " + [polar != none] G min(M, D) (2 M D + 11 min(M, D)^2 / 2) + [polar = whitened] G M D (M + D)"
"""Multiply-adds that a step by polar factors adds to those of the solve."""


def polar_factor(U: Tensor) -> Tensor:
    """U (U^T U)^(-1/2) of every matrix (..., M, D), with zero in the directions in which U is zero but for rounding.

    The eigenvalues of the smaller Gram matrix come from float64, because the squares of small singular values would
    vanish in float32.

    Raises:
        ValueError: an entry, or the square of one, is not finite.
    """
    M, D = U.shape[-2:]
    if M > D:
        return polar_factor(U.mT).mT
    values, basis = numerics.eigh(numerics.self_product(U.double()))
    of_gram, of_entries = torch.finfo(values.dtype).eps, torch.finfo(U.dtype).eps
    rounding = max(M * of_gram, 4 * D * of_entries**2) * values.amax(-1, keepdim=True)
    roots = torch.where(values > rounding, values, torch.inf).rsqrt()
    return ((basis * roots[..., None, :]) @ basis.mT).to(U.dtype) @ U


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


@dataclass(frozen=True)
class TakesPolar(Probe, ABC):
    """A probe with a Kronecker product per layer, whose step can be made of polar factors.

    ``polar``: how polar factors of the layers' matrices make the step. ``none`` makes it without them. ``after`` takes
    the polar factor of the solve B^-1 V A^-1, ``whitened`` that of B^(-1/2) V A^(-1/2) between the same roots again,
    with the length of the polar factor. Both have the same length for every gradient; a vector without factors keeps
    its solve. In training the momentum is that of the gradients, and AdamW takes what is no weight of a linear layer or
    a convolution.
    """

    polar: Polar = "none"

    plain_rule: ClassVar[StepRule] = StepRule()
    """How an optimizer steps without polar factors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.polar == "whitened" and not self.has_damped_factors:
            raise ValueError(
                "polar=whitened takes roots of two damped factors, and exact damping is added to their product: "
                "give polar=after, or another damping_rule where there is one"
            )

    @property
    def has_damped_factors(self) -> bool:
        """Whether the damped matrix of a layer is a Kronecker product too; the field ``damping_rule`` may forbid it."""
        return self.hyperparameters.get("damping_rule") != "exact"

    @property
    def rule(self) -> StepRule:
        return self.plain_rule if self.polar == "none" else StepRule(momentum="gradient", others="adamw")

    @property
    def sets_lengths(self) -> bool:
        return self.polar != "none"


def polar_steps(blocks: Sequence[Operator], gradient: Tensor, polar: Polar) -> Tensor:
    """The step (P,) by polar factors for a gradient (P,).

    ``blocks``: a layer's damped inverse, for ``whitened`` its root. Of a vector's own block it is the inverse.
    """
    parts = gradient.split([block.size for block in blocks])
    return torch.cat([polar_step(block, part, polar) for block, part in zip(blocks, parts, strict=True)])


def polar_step(block: Operator, part: Tensor, polar: Polar) -> Tensor:
    """The part (P_l,) of one layer in ``polar_steps``, whose inverse is ``block``."""
    solved = block.matvec(part)
    if polar == "none" or not isinstance(block, Kronecker | RotatedDiagonal):
        return solved
    shape = block.layout if isinstance(block, Kronecker) else block.entries.shape
    factor = polar_factor(solved.reshape(shape))
    if polar == "after":
        return factor.flatten()
    step = block.matvec(factor.flatten()).reshape(shape)
    wanted, found = (torch.linalg.vector_norm(matrix, dim=(1, 2), keepdim=True) for matrix in (factor, step))
    return (step * torch.where(found > 0, wanted / found, 0.0)).flatten()

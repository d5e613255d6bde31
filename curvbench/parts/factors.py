"""Kronecker products per layer: their factors from inputs and slopes, and the damped solve that their methods share.

Martens and Grosse 2015; Grosse and Martens 2016 for convolutions; Eschenhagen et al. 2023 for shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.columns import Columns
from curvbench.operators import Kronecker, RotatedDiagonal

KfacApprox = Literal["expand", "reduce"]
DampingRule = Literal["exact", "factored", "pi"]


def second_moment(T: Tensor) -> Tensor:
    """Sum over samples and positions of t t^T, (N, G, n, S) -> (G, n, n)."""
    rows = T.permute(1, 2, 0, 3).flatten(2)
    return rows @ rows.mT


def input_factor(X_NGDS: Tensor, approx: KfacApprox) -> Tensor:
    """A of K-FAC, a mean over samples: sum over positions of a a^T (``expand``), or of their mean (``reduce``)."""
    if approx == "reduce":
        X_NGDS = X_NGDS.mean(-1, keepdim=True)
    return second_moment(X_NGDS) / len(X_NGDS)


def output_factor(B_NGMS: Tensor, approx: KfacApprox) -> Tensor:
    """B of K-FAC times the number of terms: mean over positions of g g^T, or g g^T of their sum."""
    if approx == "reduce":
        return second_moment(B_NGMS.sum(-1, keepdim=True))
    return second_moment(B_NGMS) / B_NGMS.shape[-1]


def added(sums: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """Per layer the sum over pulled-back cotangents so far; an empty ``sums`` begins it."""
    return [a + b for a, b in zip(sums, found, strict=True)] if sums else list(found)


def kfac_factors(columns: Columns, terms: int, approx: KfacApprox = "expand") -> Kronecker:
    """The Kronecker product of K-FAC for a layer whose columns are at hand."""
    outputs = torch.stack([output_factor(B_NGMS, approx) for B_NGMS in columns.slopes]).sum(0)
    return Kronecker(outputs / terms, input_factor(columns.patches(), approx))


class Factored(NamedTuple):
    """Per layer B (x) A, and what the damped solve needs of it: its eigenbasis, or its two inverses."""

    factors: list[Kronecker]
    rotated: Sequence[RotatedDiagonal] = ()
    inverses: Sequence[Kronecker] = ()


@dataclass(frozen=True)
class KroneckerDamping:
    """The damped solve of a rule.

    ``exact`` is (B (x) A + damping I)^-1 by eigendecompositions; ``factored`` adds sqrt(damping) to both factors,
    ``pi`` balances the two by their mean eigenvalues.
    """

    damping: float
    rule: DampingRule = "exact"

    def refresh(self, state: Factored) -> Factored:
        """The state with what ``precondition`` needs."""
        if self.rule == "exact":
            return state._replace(rotated=[factor.rotated for factor in state.factors])
        return state._replace(inverses=[self._inverse(factor) for factor in state.factors])

    def _inverse(self, factor: Kronecker) -> Kronecker:
        pi = _trace_balance(factor) if self.rule == "pi" and self.damping else 1.0
        root = self.damping**0.5
        left = numerics.damped_inverse(factor.left, root / pi)
        return Kronecker(left, numerics.damped_inverse(factor.right, root * pi))

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        """The damped inverse applied to a parameter vector (P,)."""
        parts = gradient.split([factor.size for factor in state.factors])
        if self.rule == "exact":
            return torch.cat([r.solve(part, self.damping) for r, part in zip(state.rotated, parts, strict=True)])
        return torch.cat([inverse.matvec(part) for inverse, part in zip(state.inverses, parts, strict=True)])

    @property
    def rounds(self) -> int:
        """Pairs of products that a solve takes."""
        return 2 if self.rule == "exact" else 1

    @property
    def factorizations(self) -> int:
        """Cost of a decomposition of order n in n^3 multiply-adds: symmetric QR with vectors, or Cholesky."""
        return 9 if self.rule == "exact" else 1


def _trace_balance(factor: Kronecker) -> Tensor:
    """Pi = sqrt of (tr A / D) / (tr B / M) per group, (G,); 1 where a trace vanishes (a dead layer)."""
    right, left = (f.diagonal(dim1=-2, dim2=-1).mean(-1) for f in (factor.right, factor.left))
    return torch.where((right > 0) & (left > 0), right / left, torch.ones_like(left)).sqrt()

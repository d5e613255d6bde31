"""EKFAC: K-FAC's eigenbasis with the exact second moments in it (George et al. 2018, Algorithm 1).

The second moments need the basis of the same batch, so the eigendecompositions belong to the statistics here. The
basis is that of ``expand``: the reduced factors of a shared layer have a null space in which scores still lie, and
the basis of a null space is arbitrary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, RotatedDiagonal
from curvbench.parts.factorizations import EIGH
from curvbench.parts.factors import kfac_factors
from curvbench.spec import About, FisherProbe, LayerSize

Scalings = Literal["exact", "running-average"]


@dataclass(frozen=True)
class Ekfac(FisherProbe):
    """K-FAC's eigenbasis with exact eigenvalues: the nearest matrix that is diagonal in that basis.

    ``scalings``: ``exact`` squares the score of each sample; ``running-average`` squares the mean gradient of the
    batch and multiplies it by the number of loss terms, as public code does (one noisy draw, no projection).
    """

    scalings: Scalings = "exact"

    about = About(
        represents="Q diag(s) Q^T per layer: Q = Q_B (x) Q_A of K-FAC's factors, s = (1/N) sum (Q_B^T W Q_A)^2",
        damping="(F^ + damping I)^-1 in the eigenbasis: damping is added to s",
        cost={
            "statistics": "G (S N D^2 + S N R M^2 + 9 (D^3 + M^3) / 2"
            " + N D^2 min(S, R M) + N R M^2 min(S, D) + N S M D min(S, R))",
            "invert": "0",
            "precondition": "2 G M D (M + D)",
            "memory": "G (M^2 + D^2 + M D)",
        },
        source="George et al. 2018, Algorithm 1",
        errata=("E-L13",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scalings not in (known := get_args(Scalings)):
            raise ValueError(f"scalings must be one of {', '.join(known)}, got {self.scalings!r}")
        if self.scalings == "running-average" and self.fisher_type == "type-2":
            raise ValueError(
                "scalings=running-average squares a mean gradient, and type-2 columns have none: "
                "give fisher_type=empirical or fisher_type=mc"
            )

    def update(self, state: list[RotatedDiagonal] | None, batch: Instance) -> list[RotatedDiagonal]:
        columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
        return [self._rotated(c, batch.terms) for c in columns]

    def _rotated(self, columns: Columns, terms: int) -> RotatedDiagonal:
        basis = kfac_factors(columns, terms).rotated
        left, right = basis.left_basis, basis.right_basis
        if self.scalings == "exact":
            squares = columns.squares(left, right) / terms
        else:
            means = self._mean_scores(columns) / terms
            squares = terms * (left.mT @ means @ right).square().sum(0)
        return RotatedDiagonal(left, right, squares.to(left.dtype))

    def _mean_scores(self, columns: Columns) -> Tensor:
        """Sums of scores: of all terms for data labels, of each draw for sampled ones; (K, G, M, D)."""
        R, N = columns.slopes.shape[:2]
        draws = torch.eye(R) if self.fisher_type == "mc" else torch.ones(R, 1)
        weights = draws.to(columns.slopes)[:, None].expand(R, N, -1)
        return columns.combine(weights).T.reshape(-1, *columns.layer.shape)

    def precondition(self, state: list[RotatedDiagonal], gradient: Tensor) -> Tensor:
        parts = gradient.split([rotated.size for rotated in state])
        return torch.cat([rotated.solve(part, self.damping) for rotated, part in zip(state, parts, strict=True)])

    def operator(self, state: list[RotatedDiagonal]) -> BlockDiagonal:
        return BlockDiagonal(state)

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        b = samples * columns
        cost = {"statistics": 0.0, "invert": 0.0, "precondition": 0.0, "memory": 0.0}
        for G, M, D, S, _ in sizes:
            moments = S * (samples * D**2 + b * M**2)
            squares, rotating = b * S * M * D, M * D * (M + D)
            if self.scalings == "exact":  # by pairs of positions where those are fewer; bases meet the smaller factor
                squares = samples * S * M * D * min(S, columns)
                rotating = samples * D**2 * min(S, columns * M) + b * M**2 * min(S, D)
            cost["statistics"] += G * (moments + EIGH * (D**3 + M**3) + rotating + squares)
            cost["precondition"] += 2 * G * M * D * (M + D)
            cost["memory"] += G * (M**2 + D**2 + M * D)
        return cost

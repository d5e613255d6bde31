"""Second moments of a layer's scores in K-FAC's eigenbasis (George et al. 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.columns import Columns
from curvbench.fisher.head import LayerScores
from curvbench.operators import RotatedDiagonal, sides
from curvbench.parts.factors import Held


class Followed(NamedTuple):
    """A layer's matrix, and the averaged factors of its basis, or a vector's averaged block.

    ``factors``: None means that the next basis does not need them.
    """

    rotated: RotatedDiagonal
    factors: Held | None


def squared_scores(columns: LayerScores, left: Tensor | None, right: Tensor | None, terms: int) -> Tensor:
    """The mean over loss terms of (Q_l^T W Q_r)^2, (G, M, D); a basis of None is the identity."""
    return (columns.squares(left, right) / terms).to(columns.dtype)


def squared_means(columns: Columns, left: Tensor | None, right: Tensor | None, terms: int, drawn: bool) -> Tensor:
    """Terms times (Q_l^T W Q_r)^2 for the mean W of the scores, (G, M, D); a basis of None is the identity.

    ``drawn``: the labels are drawn, so that every draw has a mean score, and the result is the sum over the draws.
    """
    R, N = columns.slopes.shape[:2]
    weights = (
        (torch.eye(R, device="cpu") if drawn else torch.ones(R, 1, device="cpu"))
        .to(columns.slopes)[:, None]
        .expand(R, N, -1)
    )
    means = columns.combine(weights).T.reshape(-1, *columns.layer.shape) / terms
    rotated = sides.from_right(sides.from_left(sides.transposed(left), means), right)
    return (terms * rotated.square().sum(0)).to(columns.slopes.dtype)

"""Second moments of a layer's scores in K-FAC's eigenbasis (George et al. 2018), and what is followed of a layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.columns import Columns
from curvbench.operators import Kronecker, RotatedDiagonal


class Followed(NamedTuple):
    """A layer's matrix, and the averaged factors of its basis where the next one will need them."""

    rotated: RotatedDiagonal
    factors: Kronecker | None


def squared_scores(columns: Columns, left: Tensor, right: Tensor, terms: int) -> Tensor:
    """The mean over loss terms of (Q_l^T W Q_r)^2, (G, M, D)."""
    return (columns.squares(left, right) / terms).to(left.dtype)


def squared_means(columns: Columns, left: Tensor, right: Tensor, terms: int, drawn: bool) -> Tensor:
    """The same of the mean score times the number of terms, summed over the draws if labels are ``drawn``."""
    R, N = columns.slopes.shape[:2]
    weights = (torch.eye(R) if drawn else torch.ones(R, 1)).to(columns.slopes)[:, None].expand(R, N, -1)
    means = columns.combine(weights).T.reshape(-1, *columns.layer.shape) / terms
    return (terms * (left.mT @ means @ right).square().sum(0)).to(left.dtype)

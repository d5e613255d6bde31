"""The exact diagonal of a Fisher, without all of its score columns at the same time."""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench.fisher.stream import closed_groups
from curvbench.instance import Instance


def exact_diagonal(batch: Instance, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Tensor:
    """The mean over the loss terms of the squares of the score columns, (P,) in float64."""
    squares = torch.zeros(batch.size, dtype=torch.float64, device=batch.device)
    for columns in closed_groups(batch, fisher_type, mc_samples, seed):
        for c in columns:
            squares[c.layer.slice] += c.squares().flatten()
    return squares / batch.terms

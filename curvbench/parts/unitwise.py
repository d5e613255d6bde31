"""Blocks of output units that are too large to be stored: formed in tiles, factorized anew where factors are too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvbench.fisher.units import UnitFisher
from curvbench.parts.storage import fits


def factors_of(block: UnitFisher, damping: float) -> Sequence[Tensor] | None:
    """Cholesky factors per tile of units, or None where they are more than a probe may store."""
    units = block.size // block.columns.layer.inputs
    return list(block.factorize(damping)) if fits(units * block.small**2, torch.float64) else None


def solved(block: UnitFisher, part: Tensor, damping: float, factors: Sequence[Tensor] | None) -> Tensor:
    """(F + damping I)^-1 part for the layer's share (P,) of a gradient."""
    again = block.factorize(damping) if factors is None else factors
    return block.solve_factorized(part[:, None], damping, again)[:, 0]

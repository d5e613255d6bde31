"""Blocks of output units that are too large to be stored: formed in tiles, factorized anew where factors are too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvbench.fisher.units import UnitFisher
from curvbench.parts.storage import fits


def factors_of(layers: Sequence[UnitFisher], damping: float) -> list[Sequence[Tensor] | None]:
    """Per layer the Cholesky factors per tile of units; None where with them, and the columns, too much were stored."""
    kept = (tensor for block in layers for tensor in (block.columns.inputs, block.columns.slopes))
    stored, found = sum(tensor.nbytes for tensor in kept) // 8, list[Sequence[Tensor] | None]()
    for block in layers:
        numbers = block.size // block.columns.layer.inputs * block.small**2
        if fits(stored + numbers, torch.float64):
            stored += numbers
            found.append(list(block.factorize(damping)))
        else:
            found.append(None)
    return found


def solved(block: UnitFisher, part: Tensor, damping: float, factors: Sequence[Tensor] | None) -> Tensor:
    """(F + damping I)^-1 part for the layer's share (P,) of a gradient."""
    again = block.factorize(damping) if factors is None else factors
    return block.solve_factorized(part[:, None], damping, again)[:, 0]

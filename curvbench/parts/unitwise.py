"""Blocks of output units and their damped solves; blocks that are too large to be stored are formed in tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.units import UnitFisher, is_root, solve_units
from curvbench.parts.storage import fits

UnitBlocks = Tensor | UnitFisher
"""The blocks of a layer's G M output units: stored, (G M, D, D); as roots U (G M, rows, D) with rows < D and the
blocks U^T U; or formed in tiles."""

UnitFactors = Tensor | Sequence[Tensor] | None
"""Cholesky factors of a layer's damped blocks: of stored blocks or roots, (G M, n, n); of blocks in tiles, one tensor
per tile. None means that every solve makes the factors."""


def damped_factors(blocks: Sequence[UnitBlocks], damping: float) -> Sequence[UnitFactors]:
    """The factors of every layer's damped blocks, where all layers are stored or all are formed in tiles."""
    tiled = [block for block in blocks if isinstance(block, UnitFisher)]
    stored = [block for block in blocks if isinstance(block, Tensor)]
    factors = numerics.checked_together(lambda: [numerics.damped_cholesky(_small(block), damping) for block in stored])
    return factors or _tiled_factors(tiled, damping)


def _small(block: Tensor) -> Tensor:
    """The matrix that is factorized: the block, or U U^T of a root in float64, because Woodbury cancels."""
    return block.double() @ block.double().mT if is_root(block) else block


def _tiled_factors(layers: Sequence[UnitFisher], damping: float) -> list[UnitFactors]:
    """Per layer the factors of its tiles; None where they would be too large beside all that is stored."""
    columns = (tensor for block in layers for tensor in (block.columns.inputs, block.columns.slopes))
    stored, factors = sum(tensor.nbytes for tensor in columns) // torch.float64.itemsize, list[UnitFactors]()
    for block in layers:
        numbers = block.size // block.columns.layer.inputs * block.small**2
        if fits(stored + numbers, torch.float64):
            stored += numbers
            factors.append(list(block.factorize(damping)))
        else:
            factors.append(None)
    return factors


def damped_solve(
    blocks: Sequence[UnitBlocks], factors: Sequence[UnitFactors], gradient: Tensor, damping: float
) -> Tensor:
    """(F^ + damping I)^-1 gradient for a parameter vector (P,) and the ``damped_factors`` of the blocks."""
    parts = zip(blocks, factors, gradient.split([_size(block) for block in blocks]), strict=True)
    return torch.cat([_solved(block, factor, part, damping) for block, factor, part in parts])


def _size(block: UnitBlocks) -> int:
    return block.size if isinstance(block, UnitFisher) else block.shape[0] * block.shape[2]


def _solved(block: UnitBlocks, factor: UnitFactors, part: Tensor, damping: float) -> Tensor:
    """The damped inverse of one layer's blocks applied to its part of a vector."""
    if isinstance(block, UnitFisher):
        assert not isinstance(factor, Tensor)
        tiles = block.factorize(damping) if factor is None else factor
        return block.solve_factorized(part[:, None], damping, tiles)[:, 0]
    assert isinstance(factor, Tensor), "refresh comes before precondition"
    return solve_units(block, part.reshape(block.shape[0], -1, 1), damping, factor).flatten().to(part.dtype)

"""Blocks on which a paper is silent: there the represented matrix is zero and the step the plain gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from curvbench.operators import BlockDiagonal, Diagonal, Identity, Operator
from curvbench.spec import Layer

Entry = TypeVar("Entry")


def is_product(layer: Layer) -> bool:
    """Whether a block's scores are products of one gradient and one input, as those of a Linear are."""
    return layer.kind not in ("tied", "vector")


def silent(layer: Layer, like: Tensor) -> Diagonal:
    """What a state holds of such a block: the zero matrix, for which one number is stored."""
    return Diagonal(torch.zeros((), dtype=like.dtype, device=like.device).expand(layer.size))


def steps(
    entries: Sequence[Entry | Diagonal], sizes: Sequence[int], gradient: Tensor, step: Callable[[Entry, Tensor], Tensor]
) -> Tensor:
    """The ``step`` of every block's entry for its part of a gradient (P,); on a ``silent`` block the part itself."""
    pairs = zip(entries, gradient.split(list(sizes)), strict=True)
    return torch.cat([part if isinstance(entry, Diagonal) else step(entry, part) for entry, part in pairs])


def damped(represented: BlockDiagonal, damping: float) -> Operator:
    """The matrix whose inverse ``steps`` apply: F^ + damping I, but I on silent blocks."""
    if not any(isinstance(block, Diagonal) for block in represented.blocks):
        return represented.damped(damping)
    return BlockDiagonal([_damped(block, damping) for block in represented.blocks])


def _damped(block: Operator, damping: float) -> Operator:
    return Identity(block.size, block.dtype, block.device) if isinstance(block, Diagonal) else block.damped(damping)

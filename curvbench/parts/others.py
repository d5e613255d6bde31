"""Blocks of vectors: parameters without a product, as the scale and shift of a norm, positions, or a layer's scale.

A score of such a block is a matrix (M, D) with a row per channel. D is 2 for the scale and shift of one norm, else 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import Dense, Diagonal, RotatedDiagonal
from curvbench.spec import Layer

Others = Literal["diagonal", "unit", "block"]
Other = Diagonal | Dense

LARGEST_BLOCK = 1024  # rows of a vector's whole block, which takes 8 MiB in float64

NOTE = (
    "Convolutions in one to three dimensions and transposed ones have the factors of their patches. A weight that is "
    "tied in two orientations has the Kronecker product nearest to the sum of the products of its uses; a lookup's "
    "input factor is its diagonal, as is every factor with more than 8,192 rows. A vector (a norm's scale and shift, "
    "positions, any parameter without a product) has what others says, with the damping added to it; a whole block "
    f"with more than {LARGEST_BLOCK:,} entries is its diagonal. The published cost counts every block as a Linear's."
)
"""What K-FAC and its kin do with parameters on which their papers are silent."""


def block_order(layer: Layer, others: Others) -> int:
    """The order of the blocks that a vector has: D for ``unit``, M D for a whole ``block`` that is not too large."""
    if others == "unit":
        return layer.inputs
    return layer.size if others == "block" and layer.size <= LARGEST_BLOCK else 1


def moments(slopes: Tensor, order: int) -> Tensor:
    """The sums over samples of u u^T for the runs u of ``order`` entries in each score (N, 1, M, D), (P/n, n, n)."""
    runs = slopes.reshape(len(slopes), -1, order)
    if order == 1:
        return runs.square().sum(0)[..., None]
    return torch.einsum("nbi,nbj->bij", runs, runs)


def as_block(mean: Tensor) -> Other:
    """The block of a mean of ``moments`` (P/n, n, n): a diagonal for n = 1."""
    return Diagonal(mean.flatten()) if mean.shape[-1] == 1 else Dense(mean)


def other_block(layer: Layer, slopes: Tensor, terms: int, others: Others) -> Other:
    """The block of a vector from all its slopes (R, N, 1, M, D), a mean over loss terms."""
    return as_block(moments(slopes.flatten(0, 1), block_order(layer, others)) / terms)


class OtherMoment:
    """The block of a vector from the slopes of one cotangent after the other."""

    def __init__(self, layer: Layer, others: Others) -> None:
        self._order, self._sum = block_order(layer, others), torch.zeros((), device="cpu")

    def add(self, B_N1MD: Tensor) -> None:
        """Add the slopes of some more cotangents, one after the other."""
        self._sum = moments(B_N1MD, self._order) + self._sum.to(B_N1MD)

    def mean(self, terms: int) -> Other:
        """The block for a batch of ``terms`` loss terms."""
        return as_block(self._sum / terms)


def damped_inverse(block: Other, damping: float) -> Other:
    """(block + damping I)^-1. Raises ValueError if that is singular."""
    if isinstance(block, Diagonal):
        return Diagonal(1 / numerics.positive(block.entries + damping))
    return Dense(numerics.damped_inverse(block.matrix, damping))


def rotated(block: Other, layer: Layer) -> RotatedDiagonal:
    """The block in its eigenbasis: a diagonal with the layer's shape (1, M, D), or each of its blocks as a group."""
    if isinstance(block, Diagonal):
        return RotatedDiagonal(None, None, block.entries.reshape(layer.shape))
    values, basis = numerics.eigh(block.matrix)
    return RotatedDiagonal(None, basis, values[:, None])

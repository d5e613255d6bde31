"""Kronecker factors cut to diagonal blocks of a few rows (THOR), and their damped inverses, block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.instance import layers as geometry
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.operators import Kronecker, sides
from curvbench.parts.factors import MomentSum, has_diagonal_inputs, is_cut, second_moment
from curvbench.parts.nearest import nearest_blocks
from curvbench.parts.patch_sums import patch_squares
from curvbench.spec import Layer


class Split(NamedTuple):
    """The diagonal blocks of one factor: matrices (G, s, s), or diagonals (G, s). The last one may be smaller."""

    blocks: list[Tensor]

    def apply(self, V: Tensor) -> Tensor:
        """The product with V (G, n, K)."""
        parts = V.split([block.shape[-1] for block in self.blocks], dim=1)
        return torch.cat([sides.from_left(block, part) for block, part in zip(self.blocks, parts, strict=True)], dim=1)

    def inverse(self, shift: float) -> Split:
        """The inverses of all blocks with shift I added."""
        return Split([sides.damped_inverse(block, shift) for block in self.blocks])

    def whole(self) -> Tensor:
        """The factor with zeros outside the blocks, (G, n, n), or its diagonal (G, n) if all blocks are diagonals."""
        if all(block.ndim == 2 for block in self.blocks):
            return torch.cat(self.blocks, dim=1)
        return torch.stack([torch.block_diag(*group) for group in zip(*map(sides.dense, self.blocks), strict=True)])

    @property
    def order(self) -> int:
        return sum(block.shape[-1] for block in self.blocks)


class Cut(NamedTuple):
    """The Kronecker product of cut factors."""

    outputs: Split
    inputs: Split

    @property
    def layout(self) -> tuple[int, int, int]:
        """G, M and D."""
        return len(self.outputs.blocks[0]), self.outputs.order, self.inputs.order

    def turned(self) -> Cut:
        """The product that acts on transposed matrices."""
        return Cut(self.inputs, self.outputs)

    def inverse(self, shift: float) -> Cut:
        """The product of the inverses of both factors with shift I added."""
        return Cut(self.outputs.inverse(shift), self.inputs.inverse(shift))

    def apply(self, vector: Tensor) -> Tensor:
        """The product with a vector (P,)."""
        V = vector.reshape(self.layout)
        return self.inputs.apply(self.outputs.apply(V).mT).mT.flatten()

    def whole(self) -> Kronecker:
        """The product of the factors with zeros outside their blocks."""
        return Kronecker.batched(self.outputs.whole(), self.inputs.whole())


def nearest_cut(products: tuple[Cut, ...]) -> Cut:
    """The product of cut factors nearest to the sum of such products."""
    left, right = nearest_blocks([p.outputs.blocks for p in products], [p.inputs.blocks for p in products])
    return Cut(Split(left), Split(right))


def cut_inputs(layer: Layer, x: Tensor, rows: int, dtype: torch.dtype) -> Split:
    """K-FAC's input factor (``expand``) cut to blocks of ``rows`` rows, a diagonal if the layer has one."""
    if has_diagonal_inputs(layer):
        return Split(_blocks(patch_squares(layer, x).to(dtype) / len(x), rows))
    return Split([second_moment(part) / len(x) for part in geometry.patches(layer, x).split(rows, dim=2)])


class CutMoment:
    """K-FAC's output factor (``expand``) cut to blocks of ``rows`` rows, from the slopes of cotangents one by one.

    A factor that ``is_cut`` is its diagonal.
    """

    def __init__(self, layer: Layer, rows: int) -> None:
        self._rows, self._positions = rows, 1
        self._formed = layer.outputs if is_cut(layer.outputs) else rows
        self._moments = [MomentSum() for _ in range(0, layer.outputs, self._formed)]

    def add(self, B_NGMS: Tensor) -> None:
        """Add the slopes of some more cotangents, one after the other."""
        self._positions = B_NGMS.shape[-1]
        for moment, part in zip(self._moments, B_NGMS.split(self._formed, dim=2), strict=True):
            moment.add(part)

    def add_hessians(self, hessians: Hessians, positions: int) -> None:
        """Add all cotangents of a last layer that is applied at ``positions``, each of which has a loss term."""
        self._positions = positions
        for number, moment in enumerate(self._moments):
            moment.add_hessians(hessians, slice(number * self._formed, (number + 1) * self._formed))

    def mean(self, terms: int) -> Split:
        """The factor for a batch of ``terms`` loss terms."""
        means = (moment.total() / (terms * self._positions) for moment in self._moments)
        return Split([block for mean in means for block in _blocks(mean, self._rows)])


def _blocks(side: Tensor, rows: int) -> list[Tensor]:
    """The blocks of a diagonal (G, n); a matrix is one block."""
    return list(side.split(rows, dim=1)) if side.ndim == 2 else [side]

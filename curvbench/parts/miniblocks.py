"""Matrices of many small blocks in the rows of a layer, different or all equal, and their damped solves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.columns import Columns, form
from curvbench.operators import BlockDiagonal, Dense, Diagonal, Kronecker, Operator, Permuted


@dataclass(frozen=True, eq=False)
class MiniBlocks:
    """Blocks on the diagonal of a layer's matrix: ``per_row`` of order n in each of the ``rows`` rows of [W | b].

    ``blocks`` is (rows * per_row, n, n), or (1, n, n) if all are equal. ``bias`` holds the bias's own 1 x 1 blocks,
    (rows,) or (1,); None means that the bias lies in the other blocks, or that there is none. ``factor`` holds the
    Cholesky factors of the damped ``blocks``; None means that they are not made yet.
    """

    rows: int
    per_row: int
    blocks: Tensor
    bias: Tensor | None = None
    factor: Tensor | None = None

    @property
    def size(self) -> int:
        return self.rows * (self.per_row * self.blocks.shape[-1] + (self.bias is not None))

    def factorized(self, damping: float) -> MiniBlocks:
        """The same blocks with the Cholesky factors of the damped blocks."""
        return replace(self, factor=numerics.damped_cholesky(self.blocks, damping))

    def solve(self, vector: Tensor, damping: float) -> Tensor:
        """The damped inverse applied to a vector of the layer, (P,) -> (P,)."""
        assert self.factor is not None, "refresh comes before precondition"
        count, order = self.blocks.shape[:2]
        V = vector.reshape(self.rows, -1)
        entries = V if self.bias is None else V[:, :-1]
        right = entries.reshape(count, -1, order).mT.to(self.factor.dtype)
        solved = numerics.cholesky_solve(right, self.factor).mT.reshape(entries.shape).to(V.dtype)
        if self.bias is None:
            return solved.flatten()
        return torch.cat([solved, (V[:, -1] / numerics.positive(self.bias + damping))[:, None]], dim=1).flatten()

    def operator(self) -> Operator:
        """The layer's matrix."""
        if self.bias is None and len(self.blocks) == 1 and self.per_row == 1:
            eye = torch.eye(self.rows, dtype=self.blocks.dtype, device=self.blocks.device)
            return Kronecker(eye, self.blocks[0])
        dense = Dense(self.blocks.expand(self.rows * self.per_row, -1, -1))
        if self.bias is None:
            return dense
        places = torch.arange(self.size, device=self.blocks.device).reshape(self.rows, -1)
        bias_last = torch.cat([places[:, :-1].flatten(), places[:, -1]])
        return Permuted(BlockDiagonal([dense, Diagonal(self.bias.expand(self.rows))]), bias_last)


def kernel_blocks(columns: Columns) -> tuple[Tensor, Tensor | None]:
    """Sums over a convolution's columns of w w^T per kernel, (G M C_in, k, k), and of squares per bias, (G M,).

    C_in is the number of input channels per group, k the number of a kernel's entries. No squares without a bias.
    """
    layer = columns.layer
    rows, order = layer.groups * layer.outputs, layer.kernel[0] * layer.kernel[1]
    kernels = (layer.inputs - layer.bias) // order
    blocks = columns.slopes.new_zeros(rows * kernels, order, order)
    bias = columns.slopes.new_zeros(rows)
    for B, X in columns.tiles():
        W = form(B, X).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1, 2)  # (G M, columns, D)
        entries = W[..., : kernels * order].unflatten(2, (kernels, order)).transpose(1, 2).flatten(0, 1)
        blocks.baddbmm_(entries.mT, entries)
        bias += W[..., -1].square().sum(1)
    return blocks, bias if layer.bias else None

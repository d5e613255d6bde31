"""The scores of a last linear layer with many outputs, whose sums over columns come without any column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench.fisher.columns import Columns
from curvbench.instance import layers as geometry
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.spec import Layer


@dataclass(frozen=True, eq=False)
class HeadScores:
    """``inputs`` as the layer read them (N, ..., D), and the Hessians of the loss terms at its outputs, N S of them.

    The block of the Fisher is the mean over terms of H_t (x) a_t a_t^T, with the inputs a_t and the bias's 1.
    """

    layer: Layer
    inputs: Tensor
    hessians: Hessians

    @property
    def positions(self) -> int:
        """The number of positions, S."""
        return self.inputs[0, ..., 0].numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return self.inputs.dtype

    def rows(self) -> Tensor:
        """The inputs a_t of all terms, (N S, D)."""
        return geometry.patches(self.layer, self.inputs).mT.flatten(0, 2)

    def squares(self, left_basis: Tensor | None = None, right_basis: Tensor | None = None) -> Tensor:
        """The sum over columns of W * W for W rotated to Q_l^T W Q_r, (1, M, D) in float64; None is the identity."""
        rows, (left, right) = (
            self.rows(),
            (None if b is None else b[0].to(self.dtype) for b in (left_basis, right_basis)),
        )
        rotated = rows if right is None else rows @ right
        return (self.hessians.diagonals(left).mT @ rotated.square())[None].double()


LayerScores = Columns | HeadScores
"""All scores of a layer, as ``stream.collect_closed`` gives them."""

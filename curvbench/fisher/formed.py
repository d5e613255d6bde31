"""Score columns that are formed once, for products that repeat: most of a product's work may be the forming."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench.fisher.columns import TILE_BYTES, Columns


@dataclass(frozen=True, eq=False)
class FormedColumns(Columns):
    """``formed`` (G, N R, M, D): the matrices of all columns, with which both contractions begin."""

    formed: Tensor

    def contract_inputs(self, middle: Tensor) -> Tensor:
        W = self.formed
        product = W * middle[:, None, None, :] if middle.ndim == 2 else W @ middle[:, None]
        return torch.einsum("gcmd,gcod->gmo", product, W)

    def contract_outputs(self, middle: Tensor | None = None) -> Tensor:
        rows = self.formed.flatten(1, 2)
        if middle is None:
            return rows.mT @ rows
        W = self.formed
        product = middle[:, None, :, None] * W if middle.ndim == 2 else middle[:, None] @ W
        return rows.mT @ product.flatten(1, 2)


def for_repeated_contractions(columns: Columns) -> Columns:
    """The columns in the form in which a contraction takes the least, when forming them is paid once.

    They stay as they are if kernels of positions are cheaper, or if the matrices fill more than a tile.
    """
    R, N, G, M, S = columns.slopes.shape
    D = columns.layer.inputs
    is_large = R * N * G * M * D * columns.slopes.element_size() > TILE_BYTES
    has_cheap_kernels = not columns.layer.roles and S**2 * (D + R * M) + S * (D**2 + R * M**2) < R * M * D * (M + D)
    if is_large or has_cheap_kernels:
        return columns
    formed = columns.matrices().transpose(0, 1).flatten(1, 2).contiguous()
    return FormedColumns(columns.layer, columns.inputs, columns.slopes, formed)

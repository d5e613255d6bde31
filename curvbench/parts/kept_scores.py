"""HyLo's scores: one outer product each, of which some are kept and mixed into a low-rank matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.columns import Columns
from curvbench.operators import LowRank
from curvbench.parts.patch_sums import mean_patch


@dataclass(frozen=True, eq=False)
class Kept:
    """The kept scores U_S of a layer, and the represented F^ = V V^T with V = U_S ``mixing``.

    ``inputs`` (r, G, D) and ``gradients`` (r, G, M) make the scores. ``mixing`` is (r, r). ``kernel`` is V^T V (r, r).
    """

    inputs: Tensor
    gradients: Tensor
    mixing: Tensor
    kernel: Tensor

    @property
    def size(self) -> int:
        """G M D."""
        return self.inputs[0].numel() * self.gradients.shape[-1]

    def operator(self) -> LowRank:
        """The represented matrix."""
        V = torch.einsum("rgm,rgd->gmdr", self.gradients, self.inputs).flatten(0, 2) @ self.mixing
        return LowRank(V, V.new_ones(V.shape[1]))

    def solve(self, vector: Tensor, damping: float, factor: Tensor) -> Tensor:
        """(F^ + damping I)^-1 applied to a vector (P,), by the Cholesky factor of kernel + damping I."""
        V = vector.reshape(self.inputs.shape[1], -1, self.inputs.shape[-1])
        projected = ((self.gradients.transpose(0, 1) @ V) * self.inputs.transpose(0, 1)).sum((0, 2))
        solved = numerics.cholesky_solve((self.mixing.T @ projected).double()[:, None], factor)[:, 0]
        scaled = self.inputs * (self.mixing @ solved.to(vector.dtype))[:, None, None]
        return (V - torch.einsum("rgm,rgd->gmd", self.gradients, scaled)).flatten() / damping


def reduced(columns: Columns) -> tuple[Tensor, Tensor]:
    """Mean inputs (R N, G, D) and summed gradients (R N, G, M) of the scores; those of a vector have the input 1."""
    R, slopes = len(columns.slopes), columns.slopes.flatten(0, 1)
    if columns.layer.kind == "vector":
        return slopes.new_ones(len(slopes), 1, 1), slopes.flatten(2)
    if columns.layer.kind == "lookup":
        means = mean_patch(columns.layer, columns.inputs).to(slopes.dtype)
    else:
        means = columns.patches().mean(-1)
    return means.repeat(R, 1, 1), slopes.sum(-1)

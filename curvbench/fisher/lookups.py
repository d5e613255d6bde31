"""The score columns of a lookup: only the tokens of the batch have scores, so that products run over these alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvbench.fisher.columns import Columns


@dataclass(frozen=True, eq=False)
class LookupColumns(Columns):
    """``inputs`` are indices (N, S), -1 for none; the matrix is (1, M, D) with D the size of the vocabulary."""

    def to(self, dtype: torch.dtype) -> Columns:
        return self if self.slopes.dtype == dtype else LookupColumns(self.layer, self.inputs, self.slopes.to(dtype))

    def part(self, samples: slice) -> Columns:
        return LookupColumns(self.layer, self.inputs[samples], self.slopes[:, samples])

    @cached_property
    def tokens(self) -> Tensor:
        """The tokens of the batch, ascending; at least one."""
        found = self.inputs[self.inputs >= 0].unique()
        return found if len(found) else found.new_zeros(1)

    def among(self, tokens: Tensor) -> Columns:
        """The same columns without the entries of all other tokens."""
        places = torch.searchsorted(tokens, self.inputs.clamp_min(0)).where(self.inputs >= 0, -1)
        return Columns(replace(self.layer, inputs=len(tokens)), places, self.slopes)

    @cached_property
    def _few(self) -> Columns:
        return self.among(self.tokens)

    def _spread(self, few: Tensor, dim: int) -> Tensor:
        """Zeros for all other tokens along a dimension."""
        shape = list(few.shape)
        shape[dim] = self.layer.inputs
        return few.new_zeros(shape).index_copy_(dim, self.tokens, few)

    def combine(self, weights: Tensor) -> Tensor:
        few = self._few.combine(weights).reshape(self.layer.outputs, len(self.tokens), -1)
        return self._spread(few, 1).flatten(0, 1)

    def project(self, V: Tensor) -> Tensor:
        matrices = V.reshape(self.layer.outputs, self.layer.inputs, -1)
        return self._few.project(matrices[:, self.tokens].flatten(0, 1))

    def squares(self, left_basis: Tensor | None = None, right_basis: Tensor | None = None) -> Tensor:
        if right_basis is not None:
            return super().squares(left_basis, right_basis)
        return self._spread(self._few.squares(left_basis), 2)

    def contract_inputs(self, middle: Tensor) -> Tensor:
        few = middle[:, self.tokens]
        return self._few.contract_inputs(few if middle.ndim == 2 else few[:, :, self.tokens])

    def contract_outputs(self, middle: Tensor | None = None) -> Tensor:
        return self._spread(self._spread(self._few.contract_outputs(middle), 1), 2)

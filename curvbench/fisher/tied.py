"""The score columns of a block that is used in two orientations, as an embedding that is the output layer too.

A column is the sum of one matrix per role. The matrices are formed in tiles, because no order of factors is common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench.fisher.columns import TILE_BYTES, Columns, form, formed_middle, middle_formed
from curvbench.fisher.lookups import LookupColumns
from curvbench.spec import Layer


def columns_of(role: Layer, inputs: Tensor, slopes: Tensor) -> Columns:
    """The columns of a role."""
    return (LookupColumns if role.kind == "lookup" else Columns)(role, inputs, slopes)


def joined_roles(layer: Layer, made: Mapping[str, Columns]) -> Columns:
    """The columns of a block from those of its roles."""
    if not layer.roles:
        return made[layer.name]
    roles = tuple(made[role.name] for role in layer.roles)
    return TiedColumns(layer, roles[0].inputs, roles[0].slopes, roles)


def pairs_of(columns: Columns) -> list[tuple[Tensor, Tensor]]:
    """Inputs and slopes of each role of a block, which make the columns again, see ``from_pairs``."""
    roles = columns.roles if isinstance(columns, TiedColumns) else (columns,)
    return [(role.inputs, role.slopes) for role in roles]


def from_pairs(layer: Layer, pairs: Sequence[tuple[Tensor, Tensor]]) -> Columns:
    """The columns of a block from the pairs of its roles."""
    roles = layer.roles or (layer,)
    return joined_roles(layer, {r.name: columns_of(r, *pair) for r, pair in zip(roles, pairs, strict=True)})


@dataclass(frozen=True, eq=False)
class TiedColumns(Columns):
    """``roles``: the columns of each role; all but the first stand in the transposed orientation.

    ``inputs`` and ``slopes`` are those of the first role.
    """

    roles: Sequence[Columns] = ()

    def to(self, dtype: torch.dtype) -> Columns:
        if self.slopes.dtype == dtype:
            return self
        roles = [role.to(dtype) for role in self.roles]
        return TiedColumns(self.layer, roles[0].inputs, roles[0].slopes, roles)

    def part(self, samples: slice) -> Columns:
        roles = [role.part(samples) for role in self.roles]
        return TiedColumns(self.layer, roles[0].inputs, roles[0].slopes, roles)

    def matrices(self, samples: slice = slice(None)) -> Tensor:
        """The formed columns of some samples, (n, G, R, M, D)."""
        first, *others = (form(role.slopes[:, samples], role.patches(samples)) for role in self.roles)
        return sum((W.mT for W in others), first)

    def _formed(self) -> Iterator[tuple[slice, Tensor]]:
        for part in self._tile_slices(self.slopes.shape[0] * self.layer.size * self.slopes.element_size()):
            yield part, self.matrices(part)

    def combine(self, weights: Tensor) -> Tensor:
        total = self.roles[0].combine(weights)
        for role in self.roles[1:]:
            G, M, D = role.layer.shape
            total = total + role.combine(weights).T.reshape(-1, G, M, D).mT.flatten(1).T
        return total

    def project(self, V: Tensor) -> Tensor:
        total = self.roles[0].project(V)
        turned = V.T.reshape(-1, *self.layer.shape).mT.flatten(1).T
        for role in self.roles[1:]:
            total = total + role.project(turned)
        return total

    def squares(self, left_basis: Tensor | None = None, right_basis: Tensor | None = None) -> Tensor:
        total = torch.zeros(self.layer.shape, dtype=torch.float64, device=self.slopes.device)
        for _, W in self._formed():
            W = W if left_basis is None else left_basis.to(W).mT[:, None] @ W
            W = W if right_basis is None else W @ right_basis.to(W)[:, None]
            total += W.square().sum((0, 2))
        return total

    def unit_blocks(self, order: int | None = None) -> Tensor:
        groups, outputs, inputs = self.layer.shape
        runs, order = (1, inputs) if order is None else (inputs // order, order)
        total = self.slopes.new_zeros(groups * outputs * runs, order, order)
        for _, W in self._formed():
            rows = W.permute(1, 3, 0, 2, 4).reshape(groups * outputs, -1, inputs)
            rows = rows.unflatten(-1, (runs, order)).transpose(1, 2).flatten(0, 1)
            total.baddbmm_(rows.mT, rows)
        return total

    def contract_inputs(self, middle: Tensor) -> Tensor:
        groups, outputs, _ = self.layer.shape
        total = torch.zeros(groups, outputs, outputs, dtype=torch.float64, device=self.slopes.device)
        for _, W in self._formed():
            total += torch.einsum("ngrmd,ngrod->gmo", formed_middle(W, middle), W)
        return total.to(self.slopes.dtype)

    def contract_outputs(self, middle: Tensor | None = None) -> Tensor:
        groups, _, inputs = self.layer.shape
        total = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=self.slopes.device)
        for _, W in self._formed():
            total += torch.einsum("ngrmd,ngrme->gde", W, W if middle is None else middle_formed(middle, W))
        return total.to(self.slopes.dtype)

    @property
    def unit_row_count(self) -> int:
        return self.count

    def unit_rows(self) -> Tensor:
        return torch.cat(
            [W.permute(1, 3, 0, 2, 4).reshape(-1, W.shape[0] * W.shape[2], W.shape[4]) for _, W in self._formed()], 1
        )

    def rows(self, part: slice) -> Tensor:
        """Some output rows of all columns, (N R, G rows D) with index n R + r."""
        return self._some_rows(part).transpose(1, 2).reshape(self.count, -1)

    def _some_rows(self, part: slice) -> Tensor:
        """Some output rows of all columns, (N, G, R, rows, D)."""
        first, *others = self.roles
        W = form(first.slopes[:, :, :, part], first.patches())
        for role in others:
            W = W + form(role.slopes, role.patches()[:, :, part]).mT
        return W

    def unit_tiles(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, self.layer.outputs, step):
            part = slice(first, min(first + step, self.layer.outputs))
            yield part, self._some_rows(part).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1, 2)


def tied_gram(a: TiedColumns, b: TiedColumns) -> Tensor:
    """Inner products of two sets of columns of one tied block, (R_a N_a, R_b N_b) in float64, index r N + n."""
    total = torch.zeros(a.count, b.count, dtype=torch.float64, device=a.slopes.device)
    layer = a.layer
    step = max(1, TILE_BYTES // (max(a.count, b.count) * layer.groups * layer.inputs * a.slopes.element_size()))
    for first in range(0, layer.outputs, step):
        part = slice(first, first + step)
        rows = a.rows(part)
        total += rows @ (rows if a is b else b.rows(part)).T
    (R_a, N_a), (R_b, N_b) = a.slopes.shape[:2], b.slopes.shape[:2]
    return total.reshape(N_a, R_a, N_b, R_b).permute(1, 0, 3, 2).reshape(a.count, b.count)

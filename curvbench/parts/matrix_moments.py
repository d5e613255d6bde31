"""Moments of a layer's matrix V in orthonormal bases: of one mean gradient, or expected from all exact columns.

A gradient with labels drawn from the model has E[N V V^T] = the sum over columns W W^T / N, because the scores of
different samples are independent and have mean zero. The columns are thus the draws without their noise. A basis of
None is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.fisher.stochastic import mean_gradient
from curvbench.instance import Instance
from curvbench.operators import sides
from curvbench.parts.factors import own_matrix
from curvbench.spec import Layer

Source = Literal["bg_data", "bg", "columns"]


class Sample(Protocol):
    """What one update knows of a layer's matrix V (G, M, D), in the bases with which it was made."""

    @property
    def squares(self) -> Tensor:
        """The expected squares of Q_l^T V Q_r, (G, M, D)."""

    def outputs(self, old: Tensor, decay: float, weights: Tensor | None = None) -> Tensor:
        """``decay`` old + (1 - decay) times the expected V V^T, (G, M, M).

        With ``weights`` (G, D) it is the mean over inputs, V Q_r diag(weights) Q_r^T V^T / D, that joins.
        """

    def inputs(self, old: Tensor, decay: float, weights: Tensor | None = None) -> Tensor:
        """The same of V^T V, (G, D, D), and with weights (G, M) of V^T Q_l diag(weights) Q_l^T V / M."""


@dataclass(frozen=True, eq=False)
class OfGradient:
    """The moments of one gradient V (G, M, D), whose products with the bases are computed once."""

    V: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    @cached_property
    def _left_half(self) -> Tensor:
        return sides.from_left(sides.transposed(self.left), self.V)

    @cached_property
    def rotated(self) -> Tensor:
        """Q_l^T V Q_r, (G, M, D)."""
        return sides.from_right(self._left_half, self.right)

    @cached_property
    def squares(self) -> Tensor:
        return self.rotated.square()

    def outputs(self, old: Tensor, decay: float, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return joined(old, self.V, decay)
        half = sides.from_right(self.V, self.right) * weights.sqrt()[:, None, :]
        return joined(old, half, decay, weights.shape[-1])

    def inputs(self, old: Tensor, decay: float, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return joined(old, self.V.mT, decay)
        return joined(old, (self._left_half * weights.sqrt()[:, :, None]).mT, decay, weights.shape[-1])


def joined(old: Tensor, V: Tensor, decay: float, count: int = 1) -> Tensor:
    """``decay`` old + (1 - decay) V V^T / count for V (G, n, K); a sum, old + V V^T, for a decay of 1."""
    share = 1.0 if decay == 1 else (1 - decay) / count
    if len(V) == 1:  # because a batch of one product takes longer than the product
        return torch.addmm(old[0], V[0], V[0].T, beta=decay, alpha=share)[None]
    return torch.baddbmm(old, V, V.mT, beta=decay, alpha=share)


@dataclass(frozen=True, eq=False)
class OfColumns:
    """The moments that a mean gradient of ``terms`` loss terms has in expectation over labels drawn from the model."""

    columns: Columns
    terms: int
    left: Tensor | None = None
    right: Tensor | None = None

    @cached_property
    def squares(self) -> Tensor:
        return self._mean(self.columns.squares(self.left, self.right))

    def outputs(self, old: Tensor, decay: float, weights: Tensor | None = None) -> Tensor:
        G, _, D = self.columns.layer.shape
        if weights is None:
            return torch.lerp(self._mean(self.columns.contract_inputs(old.new_ones(G, D))), old, decay)
        return torch.lerp(self._mean(self.columns.contract_inputs(_weighted(self.right, weights))) / D, old, decay)

    def inputs(self, old: Tensor, decay: float, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return torch.lerp(self._mean(self.columns.contract_outputs()), old, decay)
        moment = self._mean(self.columns.contract_outputs(_weighted(self.left, weights)))
        return torch.lerp(moment / self.columns.layer.outputs, old, decay)

    def _mean(self, total: Tensor) -> Tensor:
        return (total / self.terms**2).to(self.columns.slopes.dtype)


def _weighted(basis: Tensor | None, weights: Tensor) -> Tensor:
    """Q diag(weights) Q^T, (G, n, n), or the weights (G, n) of the identity."""
    return weights if basis is None else (basis * weights[:, None, :]) @ basis.mT


class Reader(Protocol):
    """Reads one update: ``of(i, left, right)`` are the moments of layer i in these bases."""

    def of(self, layer: int, left: Tensor | None = None, right: Tensor | None = None) -> Sample:
        """The moments of a layer, whose bases are (G, M, M) and (G, D, D)."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Reads the layers' matrices (G, M, D) of a mean gradient."""

    matrices: Sequence[Tensor]

    def of(self, layer: int, left: Tensor | None = None, right: Tensor | None = None) -> OfGradient:
        return OfGradient(self.matrices[layer], left, right)


@dataclass(frozen=True, eq=False)
class AllColumns:
    """Reads the exact columns of a batch of ``terms`` loss terms."""

    columns: Sequence[Columns]
    terms: int

    def of(self, layer: int, left: Tensor | None = None, right: Tensor | None = None) -> OfColumns:
        return OfColumns(self.columns[layer], self.terms, left, right)


def read(batch: Instance, source: Source, seed: int, update: int) -> Reader:
    """One update's moments of every layer: of a mean gradient with one kind of labels, or of the exact columns."""
    if source == "columns":
        return AllColumns(collect(batch, "type-2"), batch.terms)
    return Gradients(matrices(mean_gradient(batch, source, seed, update), shapes(batch)))


def shapes(instance: Instance, source: Source = "bg_data") -> list[tuple[int, int, int]]:
    """Per layer G, M and D of the matrix that is read: positions have their parameter's shape in gradients."""
    return [layer.shape if source == "columns" else own_matrix(layer, instance) for layer in instance.layers]


def matrices(vector: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The parts of a parameter vector (P,) as one matrix per layer and group, (G, M, D)."""
    parts = vector.split([math.prod(shape) for shape in shapes])
    return [part.reshape(*shape) for part, shape in zip(parts, shapes, strict=True)]


def is_plain(layer: Layer, shape: tuple[int, int, int]) -> bool:
    """Whether a block of this matrix shape has no sides of its own: a bias alone, or a norm's scale and shift."""
    return layer.kind == "vector" and (layer.inputs > 1 or min(shape[1:]) == 1)

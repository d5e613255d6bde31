"""Moments of a layer's matrix V in orthonormal bases: of one mean gradient, or expected from all exact columns.

A gradient with labels drawn from the model has E[N V V^T] = the sum over columns W W^T / N, because the scores of
different samples are independent and have mean zero. The columns are thus the draws without their noise. A basis of
None is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.columns import Columns
from curvbench.fisher.stochastic import batch_gradient
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

    def outputs(self, weights: Tensor | None = None) -> Tensor:
        """The expected V Q_r diag(weights) Q_r^T V^T for weights (G, D), (G, M, M); None is I."""

    def inputs(self, weights: Tensor | None = None) -> Tensor:
        """The expected V^T Q_l diag(weights) Q_l^T V for weights (G, M), (G, D, D); None is I."""


@dataclass(frozen=True, eq=False)
class OfGradient:
    """The moments of one gradient V (G, M, D), whose products with the bases are computed once."""

    V: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    @cached_property
    def _right_half(self) -> Tensor:
        return sides.from_right(self.V, self.right)

    @cached_property
    def _left_half(self) -> Tensor:
        return sides.from_left(sides.transposed(self.left), self.V)

    @cached_property
    def squares(self) -> Tensor:
        return sides.from_right(self._left_half, self.right).square()

    def outputs(self, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return self.V @ self.V.mT
        half = self._right_half * weights.sqrt()[:, None, :]
        return half @ half.mT

    def inputs(self, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return self.V.mT @ self.V
        half = self._left_half * weights.sqrt()[:, :, None]
        return half.mT @ half


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

    def outputs(self, weights: Tensor | None = None) -> Tensor:
        middle = self.columns.slopes.new_ones(self._sizes[::2]) if weights is None else _weighted(self.right, weights)
        return self._mean(self.columns.contract_inputs(middle))

    def inputs(self, weights: Tensor | None = None) -> Tensor:
        middle = None if weights is None else _weighted(self.left, weights)
        return self._mean(self.columns.contract_outputs(middle))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.columns.layer.shape

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
    gradient = batch_gradient(batch, source, seed, update) / batch.terms**0.5
    return Gradients(matrices(gradient, shapes(batch)))


def shapes(instance: Instance, source: Source = "bg_data") -> list[tuple[int, int, int]]:
    """Per layer G, M and D of the matrix that is read: positions have their parameter's shape in gradients."""
    return [layer.shape if source == "columns" else own_matrix(layer, instance) for layer in instance.layers]


def matrices(vector: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """The parts of a parameter vector (P,) as one matrix per layer and group, (G, M, D)."""
    parts = vector.split([G * M * D for G, M, D in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def is_plain(layer: Layer, shape: tuple[int, int, int]) -> bool:
    """Whether a block of this matrix shape has no sides of its own: a bias alone, or a norm's scale and shift."""
    return layer.kind == "vector" and (layer.inputs > 1 or min(shape[1:]) == 1)

"""Kronecker products per layer: factors from inputs and slopes, and the damped solve of their methods.

Martens and Grosse 2015; Grosse and Martens 2016 for convolutions; Eschenhagen et al. 2023 for shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.head import HeadScores, LayerScores
from curvbench.instance import Instance
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.operators import BlockDiagonal, Kronecker, Operator, sides
from curvbench.parts import others
from curvbench.parts.patch_sums import mean_patch, patch_moment, patch_squares
from curvbench.parts.polar import Polar, polar_steps
from curvbench.spec import Layer
from curvbench.states.ranks import shared_map

KfacApprox = Literal["expand", "reduce"]
DampingRule = Literal["exact", "factored", "pi"]


LARGEST_SIDE = 8192  # rows: a factor's matrix takes 256 MiB in float32 and its eigendecomposition minutes


def is_cut(order: int) -> bool:
    """Whether a factor of this order is too large for a matrix, so that it is its diagonal."""
    return order > LARGEST_SIDE


def has_diagonal_inputs(layer: Layer) -> bool:
    """Whether a layer's input factor is its diagonal: that of one-hot inputs (a lookup), or one that ``is_cut``."""
    return layer.kind == "lookup" or is_cut(layer.inputs)


def factor_entries(instance: Instance) -> int:
    """The entries of both factors of every layer that has a Kronecker product."""
    shapes = (layer.shape for layer in instance.layers if layer.kind != "vector")
    return sum(G * (M**2 + D**2) for G, M, D in shapes)


def own_matrix(layer: Layer, batch: Instance) -> tuple[int, int, int]:
    """The shape (G, M, D) in which a method of matrices reads a block: of a vector of one parameter, the parameter's.

    A parameter of one dimension, or the scale and shift of a norm, is as the block has it.
    """
    shape = batch.parameters[layer.parameters[0]].shape
    if layer.kind != "vector" or layer.inputs > 1 or len(shape) < 2 or shape.numel() != layer.size:
        return layer.shape
    return 1, shape[0], layer.size // shape[0]


def second_moment(T: Tensor, bands: int = 1) -> Tensor:
    """Sum over samples and positions of t t^T, (N, G, n, S) -> (G, n, n), or its diagonal (G, n) if n ``is_cut``.

    ``bands`` as in ``numerics.self_product``.
    """
    if is_cut(T.shape[2]):
        return T.square().sum((0, 3))
    if T.shape[2] < T.shape[3]:  # the products of the samples take less memory than the copy that one product needs
        return numerics.self_product(T, bands).sum(0)
    return numerics.self_product(T.permute(1, 2, 0, 3).flatten(2), bands)


def input_factor(layer: Layer, x: Tensor, approx: KfacApprox) -> Tensor:
    """K-FAC's factor A, (G, D, D): the mean over samples of the sum over positions of a a^T, or of the mean a.

    ``expand`` takes the sum over positions, ``reduce`` the outer product of the mean over positions. The result is the
    factor's diagonal (G, D) if the layer ``has_diagonal_inputs``.
    """
    is_diagonal = has_diagonal_inputs(layer)
    if approx == "reduce":
        mean = mean_patch(layer, x)
        return (mean.square().sum(0) if is_diagonal else second_moment(mean[..., None])) / len(x)
    return (patch_squares if is_diagonal else patch_moment)(layer, x) / len(x)


class MomentSum:
    """The sum of second moments of tensors (N, G, n, S) that come one by one, such as the slopes of every cotangent.

    Tensors wait until they have n rows together, because with fewer rows the product takes less time than writing and
    adding its result (n, n). For a sum of diagonals (G, n) no tensor waits.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, T: Tensor) -> None:
        """Add one more tensor, of the same G, n and S."""
        self._waiting.append(T)
        if is_cut(T.shape[2]) or sum(len(t) for t in self._waiting) * T.shape[3] >= T.shape[2]:
            self._multiply()

    def add_hessians(self, hessians: Hessians, rows: slice = slice(None)) -> None:
        """Add the moment of all cotangents at some outputs of the model, (1, n, n), or its diagonal if n ``is_cut``."""
        diagonals = hessians.diagonals()[:, rows]
        self._include((diagonals.sum(0) if is_cut(diagonals.shape[1]) else hessians.total(rows))[None])

    def _multiply(self) -> None:
        self._include(second_moment(self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)))
        self._waiting = []

    def _include(self, moment: Tensor) -> None:
        self._sum = moment if self._sum is None else self._sum.add_(moment)

    def total(self) -> Tensor:
        """The sum over all tensors so far, (G, n, n) or (G, n); at least one tensor has come."""
        if self._waiting:
            self._multiply()
        assert self._sum is not None
        return self._sum


class OutputFactor:
    """K-FAC's factor B from the slopes g of one cotangent after the other, (G, M, M).

    ``expand`` takes the mean over positions of g g^T, ``reduce`` the outer product of the sum over positions. If M
    ``is_cut``, the result is the factor's diagonal (G, M).
    """

    def __init__(self, approx: KfacApprox) -> None:
        self._reduces, self._positions, self._moment = approx == "reduce", 1, MomentSum()

    def add(self, B_NGMS: Tensor) -> None:
        """Add the slopes of some more cotangents, one after the other."""
        self._positions = 1 if self._reduces else B_NGMS.shape[-1]
        self._moment.add(B_NGMS.sum(-1, keepdim=True) if self._reduces else B_NGMS)

    def add_hessians(self, hessians: Hessians, positions: int) -> None:
        """Add all cotangents of a last layer that is applied at ``positions``, each of which has a loss term."""
        self._positions = 1 if self._reduces else positions
        self._moment.add_hessians(hessians)

    def mean(self, terms: int) -> Tensor:
        """The factor for a batch of ``terms`` loss terms, (G, M, M) or (G, M)."""
        return self._moment.total() / (terms * self._positions)


def kfac_factors(columns: LayerScores, terms: int, approx: KfacApprox = "expand") -> Kronecker:
    """K-FAC's Kronecker product for a layer, from its columns."""
    outputs = OutputFactor(approx)
    if isinstance(columns, HeadScores):
        outputs.add_hessians(columns.hessians, columns.positions)
    else:
        for B_NGMS in columns.slopes:
            outputs.add(B_NGMS)
    return product(outputs.mean(terms), input_factor(columns.layer, columns.inputs, approx))


def product(B: Tensor, A: Tensor) -> Kronecker:
    """B (x) A in the dtype of B: sums over a lookup's indices come in float64."""
    return Kronecker.batched(B, A.to(B.dtype))


Block = Kronecker | others.Other
Held = Block | tuple[Kronecker, ...]
"""What a state holds of a layer: B (x) A, one per role of a tied block, or the block of a vector."""


class Factored(NamedTuple):
    """Per layer what is held of it and, after ``refresh``, its damped inverse."""

    factors: Sequence[Held]
    inverses: Sequence[Operator] = ()


@dataclass(frozen=True)
class KroneckerDamping:
    """The damped solve by a damping rule.

    ``exact`` is (B (x) A + damping I)^-1 by eigendecompositions. ``factored`` adds sqrt(damping) to both factors.
    ``pi`` divides the damping between the factors by their mean eigenvalues. ``polar``: how polar factors make the step
    of it (``curvbench.parts.polar``); ``whitened`` has roots of both damped factors, so that ``exact`` does not
    have it.
    """

    damping: float
    rule: DampingRule = "exact"
    polar: Polar = "none"

    def refresh(self, state: Factored) -> Factored:
        """The state with the damped inverses, which ``precondition`` needs."""
        return state._replace(inverses=shared_map(self._inverse, state.factors))

    def _inverse(self, factor: Held) -> Operator:
        assert not isinstance(factor, tuple), "of several roles the nearest product is damped"
        if not isinstance(factor, Kronecker):
            return others.damped_inverse(factor, self.damping)
        if self.rule == "exact":
            return factor.rotated.inverse(self.damping)
        invert = sides.damped_inverse_root if self.polar == "whitened" else sides.damped_inverse
        left, right = self._shares(factor)
        return Kronecker.batched(invert(factor.left, left), invert(factor.right, right))

    def _shares(self, factor: Kronecker) -> tuple[Tensor | float, Tensor | float]:
        """The dampings of both factors, whose product is the damping: numbers, or one per group, (G,)."""
        pi = _trace_balance(factor) if self.rule == "pi" and self.damping else 1.0
        root = self.damping**0.5
        return root / pi, root * pi

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        """The damped inverse applied to a parameter vector (P,), or the step by polar factors."""
        if self.polar != "none":
            return polar_steps(state.inverses, gradient, self.polar)
        return BlockDiagonal(state.inverses).matvec(gradient)

    def damped(self, factors: Sequence[Block]) -> Operator:
        """The matrix whose inverse ``precondition`` applies, from the factors that ``refresh`` has inverted."""
        if self.rule == "exact":
            return BlockDiagonal(factors).damped(self.damping)
        return BlockDiagonal([self._damped(factor) for factor in factors])

    def _damped(self, factor: Block) -> Operator:
        if isinstance(factor, Kronecker):
            return factor.damped_factors(*self._shares(factor))
        return factor.damped(self.damping)


def _trace_balance(factor: Kronecker) -> Tensor:
    """The square root pi of (tr A / D) / (tr B / M) per group, (G,); 1 where a trace is zero (a dead layer)."""
    right, left = (sides.main_diagonal(f).mean(-1) for f in (factor.right, factor.left))
    return torch.where((right > 0) & (left > 0), right / left, torch.ones_like(left)).sqrt()

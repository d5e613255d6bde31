"""Frobenius inner products of the exact Fisher with every family of operators: one closed form per family.

<F, F^> = (1/terms) sum over columns v of v^T F^ v. Any other family costs one product per column, which is computed in
the operator's dtype. Closed forms compute in the columns' dtype or in one with more digits.
"""

from __future__ import annotations

from functools import singledispatch
from itertools import accumulate

from torch import Tensor

from curvbench import numerics
from curvbench.fisher.scores import Scores
from curvbench.fisher.units import UnitFisher, UnitInverse, damped_factor, solve_units
from curvbench.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerSum,
    LowRank,
    Operator,
    RotatedDiagonal,
    Subspace,
)


@singledispatch
def inner(operator: Operator, fisher: Scores) -> float:
    """<F, operator> for an operator of the Fisher's size; this function serves every family without a closed form."""
    dtype = operator.dtype if isinstance(operator, Operator) else fisher.dtype
    return sum(numerics.inner(V, operator.matmat(V.to(dtype))) for V in fisher.stacks()) / fisher.terms


@inner.register(Identity)
def _(operator: Identity, fisher: Scores) -> float:
    return fisher.trace()


@inner.register(Diagonal)
def _(operator: Diagonal, fisher: Scores) -> float:
    return numerics.inner(fisher.diagonal(), operator.entries)


@inner.register(LowRank)
def _(operator: LowRank, fisher: Scores) -> float:
    return operator.shift * fisher.trace() + float(_along(operator.columns, fisher) @ operator.weights.double())


@inner.register(Subspace)
def _(operator: Subspace, fisher: Scores) -> float:
    return operator.rest * fisher.trace() + float(_along(operator.basis, fisher) @ operator.excess.double())


def _along(vectors: Tensor, fisher: Scores) -> Tensor:
    """v^T F v for vectors (P, K), (K,) in float64, because a small error is a small difference."""
    return fisher.project(vectors.double()).square().sum((0, 1)) / fisher.terms


@inner.register(BlockDiagonal)
def _(operator: BlockDiagonal, fisher: Scores) -> float:
    ends = list(accumulate(block.size for block in operator.blocks))
    if ends != list(accumulate(layer.size for layer in fisher.layers)):
        return inner.dispatch(object)(operator, fisher)
    layers = (fisher.layer(layer.name) for layer in fisher.layers)
    return sum(inner(block, layer) for block, layer in zip(operator.blocks, layers, strict=True))


@inner.register(Dense)
def _(operator: Dense, fisher: Scores) -> float:
    order, inputs = operator.matrix.shape[-1], fisher.layers[0].inputs
    if len(fisher.layers) > 1 or inputs % order:
        return inner.dispatch(object)(operator, fisher)
    return numerics.inner(fisher.columns[0].unit_blocks(order), operator.matrix) / fisher.terms


@inner.register(UnitFisher)
def _(operator: UnitFisher, fisher: Scores) -> float:
    if not _fits(operator.columns.layer.shape, fisher):
        return inner.dispatch(object)(operator, fisher)
    exact = UnitFisher(fisher.columns[0], fisher.terms)
    tile = min(operator.tile, exact.tile)
    pairs = zip(operator.rows(tile), exact.rows(tile), strict=True)
    return sum(numerics.sum_squares(rows.to(exact_rows.dtype) @ exact_rows.mT) for (_, rows), (_, exact_rows) in pairs)


@inner.register(UnitInverse)
def _(operator: UnitInverse, fisher: Scores) -> float:
    if not _fits(operator.units.columns.layer.shape, fisher):
        return inner.dispatch(object)(operator, fisher)
    exact = UnitFisher(fisher.columns[0], fisher.terms)
    tile, total = min(operator.units.tile, exact.tile), 0.0
    for (_, U), (_, rows) in zip(operator.units.rows(tile), exact.rows(tile), strict=True):
        columns = rows.mT.double()
        total += numerics.inner(columns, solve_units(U, columns, operator.damping, damped_factor(U, operator.damping)))
    return total


@inner.register(RotatedDiagonal)
def _(operator: RotatedDiagonal, fisher: Scores) -> float:
    if not _fits(operator.entries.shape, fisher):
        return inner.dispatch(object)(operator, fisher)
    squares = fisher.columns[0].squares(operator.left_basis, operator.right_basis)
    return numerics.inner(squares, operator.entries) / fisher.terms


@inner.register(Kronecker)
def _(operator: Kronecker, fisher: Scores) -> float:
    if not _fits(operator.layout, fisher):
        return inner.dispatch(object)(operator, fisher)
    columns, left, right = fisher.columns[0], operator.left, operator.right
    if operator.left_is_diagonal and operator.right_is_diagonal:
        return numerics.inner(columns.squares(), left[:, :, None] * right[:, None, :]) / fisher.terms
    if operator.left_is_diagonal:  # the other contraction would form M x M of a side too large for it
        return numerics.inner(columns.contract_outputs(left.to(fisher.dtype)), right) / fisher.terms
    return numerics.inner(columns.contract_inputs(right.to(fisher.dtype)), left) / fisher.terms


@inner.register(KroneckerSum)
def _(operator: KroneckerSum, fisher: Scores) -> float:
    return sum(inner(product, fisher) for product in operator.products())


def _fits(shape: tuple[int, ...], fisher: Scores) -> bool:
    return len(fisher.layers) == 1 and tuple(shape) == fisher.layers[0].shape

"""Second moments of matrices on one side: the sums of W W^T or of W^T W, beside an identity on the other side."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from curvbench.fisher.columns import Columns
from curvbench.instance import Instance
from curvbench.operators import Kronecker
from curvbench.parts.factors import is_cut
from curvbench.parts.mean_gradients import matrix_shape

Side = Literal["outputs", "smaller"]


class Moment(NamedTuple):
    """A moment (G, n, n), or its diagonal (G, n); ``others``: the order of the identity beside it.

    ``is_left``: whether the moment stands at the left of gradient matrices.
    """

    matrix: Tensor
    others: int
    is_left: bool

    def product(self, matrix: Tensor) -> Kronecker:
        """The Kronecker product of another matrix in the place of the moment and the identity."""
        one = matrix.new_ones(len(matrix), self.others)
        return Kronecker.batched(*((matrix, one) if self.is_left else (one, matrix)))


def moment(W: Tensor, side: Side) -> Moment:
    """The moment of n matrices W (n, G, M, D); of a column, and of more rows than a matrix may have, its diagonal."""
    is_left = _is_left(W.shape[2], W.shape[3], side)
    V = W if is_left else W.mT
    if is_cut(V.shape[2]) or W.shape[3] == 1:
        return Moment(V.square().sum((0, 3)), V.shape[3], is_left)
    return Moment((V @ V.mT).sum(0), V.shape[3], is_left)


def mean_moment(columns: Columns, batch: Instance, side: Side) -> Moment:
    """The moment of all score columns of a block, over the loss terms."""
    shape = matrix_shape(columns.layer, batch)
    if columns.layer.kind == "vector":  # whose scores are stored as they are
        total = moment(columns.slopes.reshape(-1, *shape), side)
    else:
        total = _of_products(columns, side)
    return total._replace(matrix=(total.matrix / batch.terms).to(batch.dtype))


def _of_products(columns: Columns, side: Side) -> Moment:
    groups, M, D = columns.layer.shape
    is_left = _is_left(M, D, side)
    if is_cut(M if is_left else D):
        return Moment(columns.squares().sum(2 if is_left else 1), D if is_left else M, is_left)
    if is_left:
        return Moment(columns.contract_inputs(columns.slopes.new_ones(groups, D)), D, True)
    return Moment(columns.contract_outputs(), M, False)


def _is_left(M: int, D: int, side: Side) -> bool:
    """Whether the moment of matrices (M, D) is that of the outputs; of a column it always is."""
    return side == "outputs" or M <= D or D == 1

"""Moments V V^T and V^T V of a layer's matrix or of its sub-matrices, and their powers (Shampoo).

A side's moment is a matrix (G, n, n), or its diagonal (G, n) if n ``is_cut`` or the side keeps the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import BlockDiagonal, Kronecker, Operator, Permuted, sides
from curvbench.parts.factors import is_cut
from curvbench.parts.matrix_moments import joined

Shape = tuple[int, int, int]
Tile = tuple[slice, slice]
"""The rows and the columns of a sub-matrix."""
Sides = tuple[Tensor, Tensor]
"""The moments of a sub-matrix's rows and columns."""
Products = tuple[Kronecker, ...]
"""Of each sub-matrix of a layer, in the order of ``Cutting.tiles``."""
Step = Callable[[Kronecker, Tensor, Tensor], Tensor]
"""The step (G, m, d) of a sub-matrix from its root, its gradient and the step of a grafted method."""


def refuse_sides(block: int | None, one_sided: bool) -> None:
    """Raise ValueError if nothing says which sides are too long for a factor."""
    if one_sided and block is None:
        raise ValueError("one_sided needs the longest side that has a factor: give block")


def refuse_words(exponent: object) -> None:
    """Raise ValueError for a word that version 0.1.0 took as Shampoo's exponent."""
    words = {"paper": 0.25, "ports": 0.5}
    if isinstance(exponent, str) and exponent in words:
        raise ValueError(f"exponent is a number now: give exponent={words[exponent]} for {exponent!r}")


@dataclass(frozen=True)
class Cutting:
    """How layers are cut: at ``block`` rows and columns, or not at all, and then with I for longer sides."""

    block: int | None = None
    one_sided: bool = False

    def tiles(self, shape: Shape) -> list[Tile]:
        """The sub-matrices, row by row.

        >>> [(rows.stop, columns.stop) for rows, columns in Cutting(3).tiles((1, 2, 5))]
        [(2, 3), (2, 5)]
        """
        step = max(shape) if self.block is None or self.one_sided else self.block
        rows, columns = ([slice(i, min(i + step, n)) for i in range(0, n, step)] for n in shape[1:])
        return [(r, c) for r in rows for c in columns]

    def keeps(self, order: int) -> bool:
        """Whether a side of this order keeps the identity."""
        return self.one_sided and self.block is not None and order > self.block

    def zeros(self, matrix: Tensor) -> tuple[Sides, ...]:
        """The moments of all sub-matrices of a layer (G, M, D) before the first update."""
        pieces = [piece.shape for piece in self.pieces(matrix)]
        return tuple((self._zeros(matrix, m), self._zeros(matrix, d)) for _, m, d in pieces)

    def _zeros(self, like: Tensor, order: int) -> Tensor:
        is_diagonal = is_cut(order) or self.keeps(order)
        return like.new_zeros(len(like), order) if is_diagonal else like.new_zeros(len(like), order, order)

    def numbers(self, shape: Shape) -> int:
        """The entries of ``zeros`` of a layer of this shape."""
        return sum(part.numel() for pair in self.zeros(torch.empty(shape, device="meta")) for part in pair)

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """The sub-matrices of (G, M, D); views."""
        return [matrix[:, rows, columns] for rows, columns in self.tiles((*matrix.shape,))]

    def applied(self, roots: Products, V: Tensor, like: Tensor, step: Step) -> Tensor:
        """The steps of the sub-matrices of a layer's V (G, M, D) and of a grafted method's ``like``, put together."""
        pieces = [step(*part) for part in zip(roots, self.pieces(V), self.pieces(like), strict=True)]
        if len(pieces) == 1:
            return pieces[0]
        whole = torch.empty_like(V)
        for place, piece in zip(self.pieces(whole), pieces, strict=True):
            place.copy_(piece)
        return whole

    def direct_sum(self, products: Sequence[Products], shapes: Sequence[Shape]) -> BlockDiagonal:
        """The operator of all layers from the products of their sub-matrices."""
        return BlockDiagonal([self._layer(parts, shape) for parts, shape in zip(products, shapes, strict=True)])

    def _layer(self, products: Products, shape: Shape) -> Operator:
        """The operator of one layer; the entries of a sub-matrix are not contiguous where columns are cut."""
        if len(products) == 1:
            return products[0]
        places = torch.arange(shape[0] * shape[1] * shape[2], device=products[0].device).reshape(shape)
        return Permuted(BlockDiagonal(products), torch.cat([piece.flatten() for piece in self.pieces(places)]))

    def powers(
        self, sums: Sequence[tuple[Sides, ...]], scale: float, epsilon: float, exponent: float
    ) -> list[Products]:
        """Per layer the powers of scale L + epsilon I and of scale R + epsilon I of its sub-matrices."""

        def of(side: Tensor) -> Tensor:
            return torch.ones_like(side) if self.keeps(side.shape[-1]) else power(scale * side, epsilon, exponent)

        return numerics.checked_together(
            lambda: [tuple(Kronecker.batched(of(L), of(R)) for L, R in pairs) for pairs in sums]
        )


def scaled(product: Kronecker, factor: float, over_trace: bool) -> Kronecker:
    """A multiple of L (x) R, or of L (x) R / tr L in each group; zero stays zero."""
    if not over_trace:
        return Kronecker.batched(factor * product.left, product.right)
    trace = sides.main_diagonal(product.left).sum(-1)
    number = factor / torch.where(trace > 0, trace, 1.0)
    return Kronecker.batched(sides.per_group(number, product.left) * product.left, product.right)


def inverse(product: Kronecker) -> Kronecker:
    """The inverse of a product of regular factors."""
    return Kronecker.batched(sides.damped_inverse(product.left, 0.0), sides.damped_inverse(product.right, 0.0))


def with_moments(sums: tuple[Sides, ...], pieces: Sequence[Tensor], decay: float) -> tuple[Sides, ...]:
    """The moments with those of one more matrix: averages with ``decay`` as the old weight, or sums if that is 1."""
    return tuple(
        (_with(left, V, decay), _with(right, V.mT, decay)) for (left, right), V in zip(sums, pieces, strict=True)
    )


def _with(old: Tensor, V: Tensor, decay: float) -> Tensor:
    if old.ndim == 3:
        return joined(old, V, decay)
    return decay * old + (1.0 if decay == 1 else 1 - decay) * V.square().sum(-1)


def power(matrix: Tensor, epsilon: float, exponent: float) -> Tensor:
    """A power of PSD matrices + epsilon I, (G, n, n); diagonals (G, n) stand for their matrices.

    Eigenvalues below the rounding of the largest one are raised to it before an inverse power, which would magnify
    rounding, and are zero before another, as a root would magnify it too. Raises ValueError if an inverse does not
    exist.
    """
    if matrix.ndim == 2:
        entries = matrix + epsilon
        return (numerics.positive(entries) if exponent < 0 else entries) ** exponent
    values, basis = numerics.eigh(matrix)
    values = values + epsilon
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    if exponent < 0:
        values = torch.maximum(numerics.positive(values), rounding)
    else:
        values = torch.where(values > rounding, values, 0.0)
    return (basis * values[:, None, :] ** exponent) @ basis.mT

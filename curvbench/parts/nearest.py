"""The Kronecker product nearest to a sum of U Kronecker products, for a parameter that a model uses in several roles.

The rearranged sum of L_u (x) R_u has rank U at most (Van Loan and Pitsianis 1993), so that its leading singular pair
follows from inner products of the L_u and of the R_u. Both factors of the result are combinations with weights >= 0, so
that they are positive semi-definite as the terms' factors are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators import Kronecker, sides
from curvbench.parts.factors import is_cut


def nearest(products: Sequence[Kronecker]) -> Kronecker:
    """The Kronecker product left (x) right nearest in Frobenius norm to the sum of products of one shape, per group.

    ``right`` is a weighted mean of the terms' right factors. A side is diagonal if it is so in every term, or if its
    order ``is_cut``: then the dense factors are cut to their diagonals first. One product is returned as it is.

    Raises:
        ValueError: there is no product, or the products differ in G, M or D.
    """
    if len({product.layout for product in products}) != 1:
        shapes = [product.layout for product in products]
        raise ValueError(f"the nearest product is that of one or more products of one shape (G, M, D), got {shapes}")
    if len(products) == 1:
        return products[0]
    (left,), (right,) = nearest_blocks([[p.left] for p in products], [[p.right] for p in products])
    return Kronecker.batched(left, right)


def nearest_blocks(
    lefts: Sequence[Sequence[Tensor]], rights: Sequence[Sequence[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """The factors of ``nearest`` for factors that are block-diagonal, as lists of blocks (G, n, n) or (G, n) each.

    The blocks of one factor have the same orders in every term.
    """
    left, right = ([_alike(blocks) for blocks in zip(*factors, strict=True)] for factors in (lefts, rights))
    for_left, for_right = weights(*(_sum_of_grams(side) for side in (left, right)))
    return [_combined(blocks, for_left) for blocks in left], [_combined(blocks, for_right) for blocks in right]


def _alike(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors as diagonals (G, n) if all are diagonal or n is cut, else as matrices (G, n, n)."""
    if is_cut(factors[0].shape[-1]) or all(factor.ndim == 2 for factor in factors):
        return [sides.main_diagonal(factor) for factor in factors]
    return [sides.dense(factor) for factor in factors]


def _sum_of_grams(side: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products (G, U, U) of U factors, given block by block."""
    return torch.stack([_gram(blocks) for blocks in side]).sum(0)


def _gram(factors: Sequence[Tensor]) -> Tensor:
    """Inner products (G, U, U) in float64 of U factors of one shape, which are PSD, so that none is negative."""
    products = [[[numerics.inner(a, b) for a, b in zip(f, g, strict=True)] for g in factors] for f in factors]
    gram = torch.tensor(products, dtype=torch.float64, device=factors[0].device)
    return gram.permute(2, 0, 1).clamp_min(0)  # because rounding may take a zero below zero


def weights(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (G, U) of the left and of the right factors of ``nearest``, from their Gram matrices (G, U, U).

    The left factor is the projection of the sum on the right one. Where the sum is zero the weights are zero.
    """
    norms = left.diagonal(dim1=1, dim2=2).sqrt()
    b = norms * _leading(*_balanced(left, right, norms))
    b = b / _nonzero(b.sum(-1, keepdim=True))
    projected = (right @ b[:, :, None])[:, :, 0]
    return projected / _nonzero((b * projected).sum(-1, keepdim=True)), b


def _balanced(left: Tensor, right: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Both Gram matrices after the norms (G, U) of the left factors moved to the right ones.

    A root of the left matrix then keeps its digits however small some left factors are.
    """
    outer = norms[:, :, None] * norms[:, None, :]
    return left / _nonzero(outer), right * outer


def _leading(A: Tensor, C: Tensor) -> Tensor:
    """The eigenvector b >= 0, (G, U), of A C with the largest eigenvalue: A^1/2 s for the leading s of A^1/2 C A^1/2.

    Perron's theorem: no entry of A and C is negative, so that the absolute values of an eigenvector are one as well.
    """
    values, vectors = numerics.eigh(A)
    root = vectors * values.sqrt()[:, None, :] @ vectors.mT
    return (root @ numerics.eigh(root @ C @ root)[1][:, :, -1:])[:, :, 0].abs()


def _nonzero(numbers: Tensor) -> Tensor:
    return numbers.clamp_min(torch.finfo(numbers.dtype).tiny)


def _combined(factors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sum of the factors with weights (G, U), in the factors' dtype."""
    pairs = zip(weights.to(factors[0].dtype).unbind(1), factors, strict=True)
    return sum((sides.per_group(weight, factor) * factor for weight, factor in pairs), torch.zeros_like(factors[0]))

"""What a state holds of a block: one Kronecker product, one per role of a tied block, or a vector's own block.

Running averages and means over parts of a batch act on the products of single roles. The product nearest to their sum
depends on the sum, so that it is taken at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from curvbench.fisher.head import LayerScores
from curvbench.fisher.tied import TiedColumns
from curvbench.operators import Dense, Diagonal, Kronecker, sides
from curvbench.parts.factors import Block, Held, kfac_factors
from curvbench.parts.nearest import nearest
from curvbench.spec import Layer


def turned(product: Kronecker) -> Kronecker:
    """The product that acts on transposed matrices."""
    return Kronecker.batched(product.right, product.left)


def of_roles(layer: Layer, made: Mapping[str, Any], turn: Callable[[Any], Any] = turned) -> Any:
    """What a state holds of a block, from what was made for its roles: of a tied block a tuple.

    All roles but the first stand transposed, and ``turn`` makes them products that act on the block.
    """
    if not layer.roles:
        return made[layer.name]
    first, *others = (made[role.name] for role in layer.roles)
    return (first, *map(turn, others))


def nearest_of(products: Kronecker | tuple[Kronecker, ...]) -> Kronecker:
    """The Kronecker product nearest to the sum of the products of several roles; one product as it is."""
    return nearest(products) if isinstance(products, tuple) else products


def represented(held: Sequence[Held]) -> list[Block]:
    """The represented block of every layer."""
    return [part if isinstance(part, Dense | Diagonal) else nearest_of(part) for part in held]


def trace_scaled(held: Sequence[Held]) -> list[Block]:
    """The represented blocks of partial traces: both factors of a role over sqrt(t), t the trace of either.

    The trace of their product is then t as well.
    """
    return represented([_over_roots(part) for part in held])


def _over_roots(held: Held) -> Held:
    if isinstance(held, tuple):
        return tuple(map(_over_root, held))
    return _over_root(held) if isinstance(held, Kronecker) else held


def _over_root(factor: Kronecker) -> Kronecker:
    """The factors over the root of their common trace; zero stays zero."""
    trace = sides.main_diagonal(factor.left).sum(-1)
    root = torch.where(trace > 0, trace, 1.0).sqrt()
    return Kronecker.batched(*(side / sides.per_group(root, side) for side in (factor.left, factor.right)))


def kfac_products(columns: LayerScores, terms: int) -> Kronecker | tuple[Kronecker, ...]:
    """K-FAC's product of a layer, or the products of a tied block's roles, from its columns."""
    if not isinstance(columns, TiedColumns):
        return kfac_factors(columns, terms)
    first, *others = (kfac_factors(role, terms) for role in columns.roles)
    return (first, *map(turned, others))

"""Inner products between all columns of a layer, in the cheaper of two orders.

direct: form the matrices W in tiles of output rows, and multiply them.
kernel: for two samples n and n', all R^2 pairs of columns share K = X_n^T X_n', and R pairs share T = B_rn K.

Tiles stay in cache, only half of a symmetric result is computed, and sums over tiles are in float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from curvbench.fisher.columns import TILE_BYTES, Columns, form
from curvbench.fisher.lookups import LookupColumns
from curvbench.fisher.tied import TiedColumns, tied_gram
from curvbench.spec import LayerSize

Order = Literal["direct", "kernel"]
# Sizes of blocks that keep operands in a core's cache.
_KERNEL_TILE_BYTES = 2 * 2**20  # products T that stay in a core's cache until they are multiplied
_ROW_BLOCKS = 8  # of the lower triangle: 1 / 16 of the square is computed in vain, and products stay large
_MIRROR_ROWS = 128  # rows of a block that stays in cache while it is transposed


def cost(columns: Columns, order: Order) -> float:
    """FLOPs of the symmetric half of the Gram matrix in one order."""
    R, N, *_, S = columns.slopes.shape
    return _cost(LayerSize(*columns.layer.shape, S), N, R, order)


def _cost(size: LayerSize, N: int, R: int, order: Order) -> float:
    G, M, D, S, _ = size
    if order == "direct":
        return G * ((R * N) ** 2 * M * D + 2 * R * N * M * D * S)
    return G * N * (N + 1) / 2 * (2 * D * S**2 + 2 * R * M * S**2 + 2 * R**2 * M * S)


def cheaper(columns: Columns) -> Order:
    """The order with fewer FLOPs."""
    return "direct" if cost(columns, "direct") < cost(columns, "kernel") else "kernel"


def gram(columns: Columns, order: Order | None = None) -> Tensor:
    """All inner products of a layer's columns, (R N, R N) in float64, index r N + n."""
    return cross_gram(columns, columns, order)


def cross_gram(a: Columns, b: Columns, order: Order | None = None) -> Tensor:
    """Inner products of two sets of columns of one layer, (R_a N_a, R_b N_b) in float64; ``a is b`` halves the work."""
    if isinstance(a, TiedColumns) and isinstance(b, TiedColumns):
        return tied_gram(a, b)
    if a.layer.kind == "vector":
        return (_flat(a) @ _flat(b).T).double()
    if isinstance(a, LookupColumns) and isinstance(b, LookupColumns):
        tokens = torch.cat([a.tokens, b.tokens]).unique()
        few = a.among(tokens)
        return cross_gram(few, few if a is b else b.among(tokens), order)
    order = order or cheaper(a)
    if order == "direct":
        return _direct(a, b)
    if a.slopes.shape[-1] == 1 and a.layer.groups == 1:
        return _without_positions(a, b)
    return _kernel(a, b)


def _flat(columns: Columns) -> Tensor:
    """The columns of a vector, whose patches are the identity: (R N, n)."""
    return columns.slopes.flatten(0, 1).flatten(1)


def _without_positions(a: Columns, b: Columns) -> Tensor:
    """(X X^T) * (B B^T), for a layer that is applied once per sample."""
    x = a.patches().flatten(1) @ b.patches().flatten(1).T
    result = (a.slopes.flatten(0, 1).flatten(1) @ b.slopes.flatten(0, 1).flatten(1).T).double()
    result.view(a.slopes.shape[0], len(x), b.slopes.shape[0], -1).mul_(x[:, None, :])
    return result


def _direct(a: Columns, b: Columns) -> Tensor:
    """The order ``direct``: tiles of output rows, formed for all columns, which are indexed n R + r until the end."""
    layer = a.layer
    total = torch.zeros(a.count, b.count, dtype=torch.float64, device=a.slopes.device)
    rows = max(1, TILE_BYTES // (max(a.count, b.count) * layer.inputs * a.slopes.element_size()))
    x_a = a.patches()
    x_b = x_a if a is b else b.patches()
    for group in range(layer.groups):
        one = slice(group, group + 1)
        for first in range(0, layer.outputs, rows):
            part = slice(first, first + rows)
            W_a = form(a.slopes[:, :, one, part], x_a[:, one]).reshape(a.count, -1)
            if a is b:
                _add_lower_products(total, W_a)
            else:
                total += W_a @ form(b.slopes[:, :, one, part], x_b[:, one]).reshape(b.count, -1).T
    if a is b:
        _mirror(total)
    return _sample_last(total, a, b)


def _sample_last(products: Tensor, a: Columns, b: Columns) -> Tensor:
    """The products with columns indexed r N + n, from products with columns indexed n R + r."""
    (R_a, N_a), (R_b, N_b) = a.slopes.shape[:2], b.slopes.shape[:2]
    return products.reshape(N_a, R_a, N_b, R_b).permute(1, 0, 3, 2).reshape(a.count, b.count)


def _add_lower_products(total: Tensor, W: Tensor) -> None:
    """The block-lower triangle of W W^T added to ``total``."""
    step = -(-len(W) // _ROW_BLOCKS)
    for first in range(0, len(W), step):
        last = min(first + step, len(W))
        total[first:last, :last] += W[first:last] @ W[:last].T


def _mirror(lower: Tensor) -> None:
    """Write the transpose of the lower triangle over the upper one, in blocks: a full transpose misses the cache."""
    for first in range(0, len(lower), _MIRROR_ROWS):
        last = min(first + _MIRROR_ROWS, len(lower))
        corner = lower[first:last, first:last]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        lower[:first, first:last] = lower[first:last, :first].T


def _kernel(a: Columns, b: Columns) -> Tensor:
    """The order ``kernel``: sample by sample of ``b``, with as many products T of ``a`` at a time as stay in cache."""
    (R_a, N_a, G, M, S_a), (R_b, N_b, *_, S_b) = a.slopes.shape, b.slopes.shape
    total = torch.zeros(N_b, R_b, N_a * R_a, dtype=torch.float64, device=a.slopes.device)
    x_a = a.patches()
    x_b = x_a if a is b else b.patches()
    left = a.slopes.permute(1, 2, 0, 3, 4).reshape(N_a, G, R_a * M, S_a)
    right = b.slopes.permute(1, 0, 2, 3, 4).reshape(N_b, R_b, G * M * S_b)
    itemsize = a.slopes.element_size()
    step = max(1, _KERNEL_TILE_BYTES // (G * R_a * M * S_b * itemsize))
    block = max(1, TILE_BYTES // (G * S_a * N_a * S_b * itemsize))
    for first in range(0, N_b, block):
        before = first if a is b else 0  # the products of earlier samples with this block are in the mirrored half
        kernels = _kernels(x_a[before:], x_b[first : first + block])
        for n, kernel in enumerate(kernels, first):
            for start in range(n if a is b else 0, N_a, step):
                part = slice(start, min(start + step, N_a))
                T = left[part] @ kernel[start - before : part.stop - before]
                T = T.reshape(-1, G, R_a, M, S_b).transpose(1, 2).reshape(-1, G * M * S_b)
                total[n, :, R_a * start : R_a * part.stop] = right[n] @ T.T  # faster than T @ right[n].T
    products = total.reshape(b.count, a.count).T
    if a is b:
        _mirror(products)
    return _sample_last(products, a, b)


def _kernels(x_a: Tensor, x_b: Tensor) -> Tensor:
    """X_n^T X_n' for patches (n, G, D, S) and (n', G, D, S'), (n', n, G, S, S')."""
    a, b = (x.permute(1, 2, 0, 3) for x in (x_a, x_b))
    products = a.flatten(2).mT @ b.flatten(2)
    return products.reshape(len(a), *a.shape[2:], *b.shape[2:]).permute(3, 1, 0, 2, 4)

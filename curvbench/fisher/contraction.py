"""Inner products between all columns of a layer, in the cheaper of two orders (after counting both).

direct: form the matrices W in tiles of output rows, multiply them.
kernel: K = X_n^T X_n' is shared by all R^2 pairs of a pair of samples, T = B_rn K by R of them.

Tiles stay in cache, only half of a symmetric result is computed, sums over tiles are float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from curvbench.fisher.columns import TILE_BYTES, Columns
from curvbench.spec import LayerSize

Order = Literal["direct", "kernel"]
_KERNEL_TILE_BYTES = 2 * 2**20
_ROW_BLOCKS = 8


def cost(columns: Columns, order: Order) -> float:
    """FLOPs of the symmetric half of the Gram matrix in one order."""
    layer, (R, N, *_, S) = columns.layer, columns.slopes.shape
    M, D = layer.outputs, layer.inputs
    if order == "direct":
        return layer.groups * ((R * N) ** 2 * M * D + 2 * R * N * M * D * S)
    return layer.groups * N * (N + 1) / 2 * (2 * D * S**2 + 2 * R * M * S**2 + 2 * R**2 * M * S)


def cheaper(columns: Columns) -> Order:
    """The order with fewer FLOPs."""
    return "direct" if cost(columns, "direct") < cost(columns, "kernel") else "kernel"


def gram(columns: Columns, order: Order | None = None) -> Tensor:
    """All inner products of a layer's columns, (R N, R N) in float64, index r N + n."""
    return cross_gram(columns, columns, order)


def cross_gram(a: Columns, b: Columns, order: Order | None = None) -> Tensor:
    """Inner products between two sets of columns of one layer, (R_a N_a, R_b N_b) in float64; ``a is b`` is halved."""
    order = order or cheaper(a)
    if order == "direct":
        return _direct(a, b)
    if a.slopes.shape[-1] == 1 and a.layer.groups == 1:
        return _without_positions(a, b)
    return _kernel(a, b)


def _without_positions(a: Columns, b: Columns) -> Tensor:
    """(X X^T) * (B B^T), for a layer that is applied once per sample."""
    x = a.patches().flatten(1) @ b.patches().flatten(1).T
    result = (a.slopes.flatten(0, 1).flatten(1) @ b.slopes.flatten(0, 1).flatten(1).T).double()
    result.view(a.slopes.shape[0], len(x), b.slopes.shape[0], -1).mul_(x[:, None, :])
    return result


def _direct(a: Columns, b: Columns) -> Tensor:
    layer = a.layer
    total = torch.zeros(a.count, b.count, dtype=torch.float64, device=a.slopes.device)
    rows = max(1, TILE_BYTES // (max(a.count, b.count) * layer.inputs * a.slopes.element_size()))
    x_a = a.patches().mT
    x_b = x_a if a is b else b.patches().mT
    for group in range(layer.groups):
        for first in range(0, layer.outputs, rows):
            part = slice(first, first + rows)
            W_a = (a.slopes[:, :, group, part] @ x_a[:, group]).flatten(0, 1).flatten(1)
            if a is b:
                _add_lower_products(total, W_a)
            else:
                W_b = (b.slopes[:, :, group, part] @ x_b[:, group]).flatten(0, 1).flatten(1)
                total += W_a @ W_b.T
    return total.tril() + total.tril(-1).T if a is b else total


def _add_lower_products(total: Tensor, W: Tensor) -> None:
    """The block-lower triangle of W W^T added to ``total``."""
    step = -(-len(W) // _ROW_BLOCKS)
    for first in range(0, len(W), step):
        last = min(first + step, len(W))
        total[first:last, :last] += W[first:last] @ W[:last].T


def _kernel(a: Columns, b: Columns) -> Tensor:
    (R_a, N_a, G, M, S_a), (R_b, N_b, *_, S_b) = a.slopes.shape, b.slopes.shape
    total = torch.zeros(R_a, N_a, R_b, N_b, dtype=torch.float64, device=a.slopes.device)
    x_a = a.patches().mT
    x_b = b.patches()
    left = a.slopes.permute(1, 2, 0, 3, 4).reshape(N_a, G, R_a * M, S_a)
    right = b.slopes.permute(1, 0, 2, 3, 4).reshape(N_b, R_b, G * M * S_b)
    step = max(1, _KERNEL_TILE_BYTES // (G * R_a * M * S_b * a.slopes.element_size()))
    for n in range(N_a):
        for first in range(n if a is b else 0, N_b, step):
            part = slice(first, first + step)
            T = left[n] @ (x_a[n] @ x_b[part])
            T = T.reshape(-1, G, R_a, M, S_b).transpose(1, 2).reshape(-1, R_a, G * M * S_b)
            total[:, n, :, part] = (T @ right[part].mT).permute(1, 2, 0)
    if a is b:
        later = torch.ones(N_a, N_a, dtype=torch.bool, device=total.device).triu(1)
        upper = total * later[:, None, :]
        total = total * ~later.T[:, None, :] + upper.permute(2, 3, 0, 1)
    return total.reshape(a.count, b.count)


def gram_cost(size: LayerSize, b: int) -> float:
    """The published multiply-adds of a layer's Gram matrix of b columns (direct order; factored for S = 1)."""
    entries = size.groups * size.outputs * size.inputs
    if size.positions == 1:
        return b**2 * size.groups * (size.outputs + size.inputs)
    return b * size.positions * entries + b**2 * entries

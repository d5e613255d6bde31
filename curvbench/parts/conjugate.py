"""Conjugate gradients for a symmetric positive definite system, preconditioned or not (Hestenes, Stiefel 1952)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvbench import numerics

Map = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Map, right: Tensor, iterations: int, inverse: Map | None = None, start: Tensor | None = None
) -> Tensor:
    """The approximate solution (P,) of ``product`` x = ``right`` after some iterations.

    ``product`` and ``inverse``, the preconditioner, are symmetric positive definite maps of vectors (P,). The
    iterations begin at ``start``; None means zero. They end earlier if the residual has fallen to rounding.
    """
    x = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - product(start)
    direction = solved = inverse(residual) if inverse else residual
    size = numerics.inner(residual, solved)
    rounding = torch.finfo(right.dtype).eps ** 2 * size
    for left in reversed(range(iterations)):
        if size <= rounding:
            break
        image = product(direction)
        curvature = numerics.inner(direction, image)
        x = x + size / curvature * direction
        if left:
            residual = residual - size / curvature * image
            solved = inverse(residual) if inverse else residual
            before, size = size, numerics.inner(residual, solved)
            direction = solved + size / before * direction
    return x

"""Choices of some columns that represent all: interpolative decomposition of a kernel, and weighted draws."""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench import numerics


def interpolate(kernel: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pivots S of a pivoted QR of a kernel K = U^T U, (b, b), and T (|S|, b) with K ~ K[:, S] T and so U ~ U_S T.

    |S| is ``count``, or the kernel's rank if the rank is smaller, or 1 for a kernel of zeros.
    """
    rest, basis = kernel.clone(), kernel.new_zeros(len(kernel), 0)
    floor = torch.finfo(kernel.dtype).eps * len(kernel) * float(torch.linalg.vector_norm(kernel, dim=0).max())
    pivots: list[Tensor] = []
    for _ in range(count):
        norms = torch.linalg.vector_norm(rest, dim=0)
        pivot = norms.argmax()
        if float(norms[pivot]) <= floor:
            break
        direction = rest[:, pivot] - basis @ (basis.T @ rest[:, pivot])  # again, because rounding left a part
        direction = direction / torch.linalg.vector_norm(direction)
        rest = rest - torch.outer(direction, direction @ rest)
        basis = torch.cat([basis, direction[:, None]], dim=1)
        pivots.append(pivot)
    if not pivots:
        return torch.zeros(1, dtype=torch.int64, device=kernel.device), torch.ones_like(kernel[:1])
    chosen, projected = torch.stack(pivots), basis.T @ kernel
    T = torch.linalg.solve_triangular(projected[:, chosen].triu(), projected, upper=True)
    T[:, chosen] = torch.eye(len(chosen), dtype=T.dtype, device=T.device)
    return chosen, T


def residual_weighted(kernel: Tensor, count: int, damping: float) -> tuple[Tensor, Tensor]:
    """The ``count`` columns S with the largest K_ii, and a root V of T (I + E / damping)^-1 T^T, (|S|, |S|).

    T interpolates all columns from the columns S by least squares, with the residual E = K - K[:, S] T. The matrix is
    not symmetric, because E is a projection times K: V V^T is its symmetric part with negative eigenvalues set to zero.
    """
    chosen = kernel.diagonal().argsort(descending=True)[:count]
    T = torch.linalg.pinv(kernel[:, chosen]) @ kernel
    T[:, chosen] = torch.eye(count, dtype=T.dtype, device=T.device)
    residual = numerics.damped((kernel - kernel[:, chosen] @ T) / damping, 1.0)
    inner = T @ torch.linalg.solve(residual, T.T)
    values, basis = numerics.eigh((inner + inner.T) / 2)
    return chosen, basis * values.sqrt()


def draw(sizes: Tensor, count: int, replacement: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` indices drawn with probability in proportion to ``sizes`` (b,), and their probabilities p_i.

    If all sizes are zero, the probabilities are equal. Without replacement at most as many indices are drawn as sizes
    are above zero.
    """
    p = sizes.double().cpu()
    p = p / p.sum() if p.sum() > 0 else torch.full_like(p, 1 / len(p))
    possible = count if replacement else min(count, int((p > 0).sum()))
    chosen = torch.multinomial(p, possible, replacement=replacement, generator=generator)
    return chosen.to(sizes.device), p[chosen].to(sizes.device)


def outer_kernel(a: Tensor, g: Tensor) -> Tensor:
    """Inner products (b, b) in float64 of b vectors g (x) a, stacked over groups, for a (b, G, D) and g (b, G, M)."""
    A, B = a.double().transpose(0, 1), g.double().transpose(0, 1)
    return ((A @ A.mT) * (B @ B.mT)).sum(0)

"""Numerical health of an operator: conditioning, repeated factorizations, asymmetry."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from curvbench import numerics
from curvbench.operators import Operator
from curvbench.spec import Row


def condition(operator: Operator, damping: float) -> float:
    """The condition number of the damped operator."""
    smallest = operator.smallest_eigenvalue() + damping
    return (float(operator.eigenvalues(1)[0]) + damping) / smallest if smallest > 0 else float("inf")


def asymmetry(operator: Operator, seed: int = 0) -> float:
    """|v^T F w - w^T F v| / (|v| |F w|) for standard normal v and w; 0 for the zero operator."""
    generator = torch.Generator().manual_seed(seed)
    V = torch.randn(operator.size, 2, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    FV = operator.matmat(V)
    scale = (numerics.sum_squares(V[:, 0]) * numerics.sum_squares(FV[:, 1])) ** 0.5
    difference = abs(numerics.inner(V[:, 0], FV[:, 1]) - numerics.inner(V[:, 1], FV[:, 0]))
    return difference / scale if scale else 0.0


def health_rows(operator: Operator, damping: float, retries: int) -> Iterator[Row]:
    """Every health metric."""
    yield Row("health.condition", condition(operator, damping), method=f"damping {damping:g}")
    yield Row("health.retries", float(retries))
    yield Row("health.asymmetry", asymmetry(operator))

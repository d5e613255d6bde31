"""Numerical health of an operator and its solve: conditioning, repeated factorizations, asymmetry, residual."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.meters.error import refuse_not_finite
from curvbench.operators import Operator, Shifted
from curvbench.spec import Row, Status


def condition(operator: Operator, damping: float) -> float:
    """The condition number of the damped operator; infinite if the damped operator is not positive definite."""
    smallest = operator.smallest_eigenvalue() + damping
    return (float(operator.eigenvalues(1)[0]) + damping) / smallest if smallest > 0 else float("inf")


def asymmetry(operator: Operator, seed: int = 0) -> float:
    """|v^T F w - w^T F v| / (|v| |F w|) for standard normal v and w; 0 for the zero operator."""
    generator = torch.Generator().manual_seed(seed)
    V = torch.randn(operator.size, 2, device="cpu", generator=generator, dtype=torch.float64).to(
        operator.device, operator.dtype
    )
    FV = operator.matmat(V)
    scale = (numerics.sum_squares(V[:, 0]) * numerics.sum_squares(FV[:, 1])) ** 0.5
    difference = abs(numerics.inner(V[:, 0], FV[:, 1]) - numerics.inner(V[:, 1], FV[:, 0]))
    return difference / scale if scale else 0.0


def residual(damped: Shifted, step: Tensor, gradient: Tensor) -> float:
    """|(F^ + damping I) step - gradient| / |gradient|, F^ step in F^'s dtype; NaN for a zero gradient."""
    represented = damped.inner
    # The damping's share is added in float64, because its own rounding would count as the solve's.
    product = represented.matmat(step.to(represented.dtype)[:, None])[:, 0].double() + damped.shift * step.double()
    length = numerics.sum_squares(gradient) ** 0.5
    return numerics.sum_squares(product - gradient.double()) ** 0.5 / length if length else float("nan")


def health_rows(operator: Operator, damping: float | None, retries: int) -> Iterator[Row]:
    """Every health metric; for an operator that is not finite only the retries, and an error with the reason.

    ``damping`` None means that the operator includes its damping.
    """
    yield Row("health.retries", float(retries))
    try:
        refuse_not_finite(operator)
    except ValueError as reason:
        yield Row("health.condition", status=Status.ERROR, reason=str(reason))
    else:
        how = "damping included" if damping is None else f"damping {damping:g}"
        yield _condition_row(condition(operator, damping or 0.0), how)
        yield Row("health.asymmetry", asymmetry(operator))


def _condition_row(value: float, method: str) -> Row:
    """The row of a condition number; skipped for a singular or indefinite matrix, which has none."""
    if value < float("inf"):
        return Row("health.condition", value, method=method)
    reason = "the damped operator is not positive definite: it has no condition number"
    return Row("health.condition", status=Status.SKIPPED, reason=reason, method=method)


def residual_rows(damped: Operator | None, step: Tensor, gradient: Tensor) -> Iterator[Row]:
    """The residual of a probe's step; no row if the probe's damped matrix is not F^ + damping I."""
    if isinstance(damped, Shifted):
        yield _residual_row(damped, step, gradient)


def _residual_row(damped: Shifted, step: Tensor, gradient: Tensor) -> Row:
    if not gradient.any():
        return Row("health.residual", status=Status.SKIPPED, reason="the gradient is zero")
    if not (step.isfinite().all() and math.isfinite(damped.inner.trace())):
        return Row("health.residual", status=Status.SKIPPED, reason="the step or the operator is not finite")
    return Row("health.residual", residual(damped, step, gradient), method=f"damping {damped.shift:g}")

"""The condition number of C^^-1 C, for a probe's damped matrix C^ and the exact C = F + damping I.

It says what is left to do: conjugate gradients for C with C^ as preconditioner converge like (sqrt(k) - 1) /
(sqrt(k) + 1) per round, and no step C^^-1 g has a quality below 4 k / (1 + k)^2. Lanczos iterations find both ends of
the spectrum as the largest eigenvalue of C^^-1 C and of C^-1 C^.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance.passes import full_precision
from curvbench.meters.error import NETWORK
from curvbench.operators import Operator
from curvbench.spec import Row, Status

ROUNDS = 60  # vectors (P,) that are stored at the same time
TOLERANCE = 1e-3  # of an eigenvalue: the norm of its residual, of which the eigenvalue's own error is a second power

Product = Callable[[Tensor], Tensor]

NO_MATRIX = "the step is not the inverse of one symmetric matrix: there is no damped matrix"


def largest_quotient(above: Product, below: Product, solve: Product, start: Tensor) -> float:
    """The largest eigenvalue of B^-1 A for symmetric A and positive definite B, from products (P,) -> (P,).

    ``above`` is A, ``below`` B, and ``solve`` B^-1. Lanczos iteration in the inner product of B with full
    orthogonalization begins with ``start``.

    Raises:
        ValueError: the rounds do not reach the tolerance.
    """
    basis = start.new_empty(ROUNDS, len(start))
    basis[0] = start / numerics.inner(start, below(start)) ** 0.5
    projected = torch.zeros(ROUNDS, ROUNDS, dtype=torch.float64, device=start.device)
    for count in range(1, ROUNDS + 1):
        known, image = basis[:count], above(basis[count - 1])
        direction = solve(image)  # whose product with B the image is
        for last in (False, True):  # one pass leaves its own rounding
            weights = known @ image
            direction = direction - weights @ known
            projected[count - 1, :count] += weights
            image = image if last else below(direction)
        values, vectors = torch.linalg.eigh(projected[:count, :count])  # of the lower triangle
        length = max(numerics.inner(direction, image), 0.0) ** 0.5
        if length * abs(float(vectors[-1, -1])) <= TOLERANCE * float(values[-1]):
            return float(values[-1])
        if count < ROUNDS:
            basis[count] = direction / length
    raise ValueError(f"{ROUNDS} rounds of Lanczos iteration did not reach the tolerance {TOLERANCE:g}")


@full_precision()
def condition(damped: Operator, fisher: ExactFisher, damping: float) -> float:
    """The condition number of C^^-1 C for ``damped`` C^ and C = F + damping I.

    Raises:
        ValueError: the damped matrix has no inverse in closed form, or is singular; or an iteration did not end.
    """
    exact = fisher.damped(damping)
    inverse, exact_inverse = damped.inverse(0.0), fisher.inverse(damping)
    start = torch.randn(fisher.size, device="cpu", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = start.to(fisher.device, fisher.dtype)
    most = largest_quotient(exact.matvec, _in(fisher.dtype, damped), _in(fisher.dtype, inverse), start)
    return most * largest_quotient(_in(fisher.dtype, damped), exact.matvec, exact_inverse.matvec, start)


def _in(dtype: torch.dtype, operator: Operator) -> Product:
    """The product with an operator, for vectors of another dtype."""
    return lambda v: operator.matvec(v.to(operator.dtype)).to(dtype)


def condition_rows(damped: Operator | None, fisher: ExactFisher, damping: float, how: str = "") -> Iterator[Row]:
    """The condition number of the network, or why there is none; ``how`` is the text of ``how_damped``."""
    method = ", ".join(filter(None, [f"damping {damping:g}", how]))
    try:
        value, reason = (None, NO_MATRIX) if damped is None else (condition(damped, fisher, damping), "")
    except ValueError as error:
        value, reason = None, str(error)
    status = Status.SKIPPED if reason else Status.OK
    yield Row("error.condition", value, NETWORK, status=status, reason=reason, method=method)

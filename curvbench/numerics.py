"""Factorizations that say when they struggled, sums that do not lose digits, and products that are symmetric.

Policy: float16 and bfloat16 are formats for storage, and ``widened`` converts them before any computation. Only probes
with digits of their own (``curvbench.parts.digits``) compute statistics in them, and no matrix that is factorized has
fewer digits than float32. Factorizations read one triangle of a symmetric matrix. Eigenvalues of positive semi-definite
matrices are clamped at zero. A factorization that fails in its own precision is repeated in float64, and every
repetition is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def widened(value: Any) -> Any:
    """A tensor with fewer digits than float32 in float32 (or complex64); any other value unchanged."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.complex32:
        return value.to(torch.complex64)
    return value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value


@dataclass
class Retries:
    """The number of factorizations that were repeated inside a ``count_retries`` block."""

    count: int = 0


_retries: ContextVar[Retries | None] = ContextVar("retries", default=None)


@contextmanager
def count_retries() -> Iterator[Retries]:
    """Count the factorizations that had to be repeated in higher precision inside the block."""
    retries = Retries()
    token = _retries.set(retries)
    try:
        yield retries
    finally:
        _retries.reset(token)


def _retry() -> None:
    """Count a repetition, and leave a ``checked_together``, which begins anew."""
    if _postponed.get() is not None:
        raise _CheckFailed
    if (retries := _retries.get()) is not None:
        retries.count += 1


class _CheckFailed(Exception):
    """A check that could be decided at once has failed inside ``checked_together``."""


_postponed: ContextVar[list[Tensor] | None] = ContextVar("postponed", default=None)


def checked_together(compute: Callable[[], Result]) -> Result:
    """The result of a function without side effects, for all of whose checks the host waits once, at the end.

    A GPU computes on while nobody asks for a number. Where a check fails, the function runs again with every check at
    its place, which mends the numbers or says what is wrong. Inside another such block the checks wait for its end.
    """
    if _postponed.get() is not None:
        return compute()
    checks: list[Tensor] = []
    token = _postponed.set(checks)
    try:
        result = compute()
        if not checks or bool(torch.stack(checks).all()):
            return result
    except (_CheckFailed, ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        pass
    finally:
        _postponed.reset(token)
    return compute()


def _holds(check: Tensor) -> bool:
    """Whether a check (one bool) holds; inside ``checked_together`` it is taken for granted until the end."""
    if (checks := _postponed.get()) is None:
        return bool(check)
    checks.append(check)
    return True


_factor_dtype: ContextVar[Callable[[torch.dtype], torch.dtype]] = ContextVar(
    "factor_dtype", default=lambda dtype: dtype
)


@contextmanager
def factorized_in(change: Callable[[torch.dtype], torch.dtype]) -> Iterator[None]:
    """Inside the block matrices are factorized, and their factors applied, in ``change`` of their own dtype."""
    token = _factor_dtype.set(change)
    try:
        yield
    finally:
        _factor_dtype.reset(token)


def factorizable(matrix: Tensor) -> Tensor:
    """A matrix in the dtype in which it is factorized."""
    return matrix.to(_factor_dtype.get()(matrix.dtype))


def flaw(values: Tensor) -> str:
    """The entries that are not finite, as ``NaN in 3 of 25 entries``; empty if all are finite."""
    for word, flawed in (("NaN", values.isnan()), ("infinite", values.isinf())):
        if count := int(flawed.sum()):
            return f"{word} in {count} of {values.numel()} entries"
    return ""


def damped(matrix: Tensor, damping: Tensor | float) -> Tensor:
    """A + damping I over the last two dimensions; ``damping`` broadcasts over the batch."""
    result = matrix.clone()
    result.diagonal(dim1=-2, dim2=-1).add_(damping[..., None] if isinstance(damping, Tensor) else damping)
    return result


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., n) ascending, clamped at zero, and eigenvectors (..., n, n) of a PSD matrix.

    Raises:
        ValueError: LAPACK finds no eigenvalues, because an entry is NaN or infinite.
    """
    matrix = factorizable(matrix)
    ways = dict.fromkeys([(matrix.dtype, "U"), (torch.float64, "U"), (torch.float64, "L")])
    for count, (dtype, triangle) in enumerate(ways):
        if count:
            _retry()
        eigenpairs = _decomposed(matrix.to(dtype), triangle)
        if eigenpairs is not None:
            values, vectors = (t.to(matrix.dtype) for t in eigenpairs)
            return values.clamp_min(0), vectors
    why = flaw(matrix)
    raise ValueError(f"no eigenvalues of a matrix {tuple(matrix.shape)} were found{why and f': it is {why}'}")


def _decomposed(matrix: Tensor, triangle: str) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues and eigenvectors by LAPACK; None means that LAPACK failed.

    LAPACK's divide and conquer can fail on many rows of zeros in one triangle and succeed on the other. The upper
    triangle takes 3 to 5 % less time from order 64 on.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix if triangle == "L" else matrix.mT, UPLO=triangle)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    total = values.sum(dtype=torch.float64)
    return (values, vectors) if _holds((total > -math.inf) & (total < math.inf)) else None


def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues (..., n) of a PSD matrix in float64, ascending, clamped at zero."""
    return torch.linalg.eigvalsh(matrix.double()).clamp_min(0)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor (..., n, n), in float64 if the matrix's own precision does not suffice.

    Raises:
        ValueError: the matrix is not finite, or is singular in float64 as well.
    """
    matrix = factorizable(matrix)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if _holds((failed == 0).all()):
        return factor
    _retry()
    factor, failed = torch.linalg.cholesky_ex(matrix.double())
    if failed.any():
        if why := flaw(matrix):
            raise ValueError(f"the matrix to be factorized is {why}: its statistics are not finite")
        raise ValueError("the matrix is singular to working precision: give a damping above zero, or a larger one")
    return factor


def damped_cholesky(matrix: Tensor, damping: Tensor | float) -> Tensor:
    """Lower Cholesky factor of A + damping I over the last two dimensions; ``damping`` broadcasts over the batch.

    Raises:
        ValueError: A + damping I is singular; without damping also if A is singular up to rounding.
    """
    matrix = factorizable(matrix)
    factor = damped(matrix.mT, damping)  # LAPACK's order of entries, so that the factor overwrites the matrix
    failed = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if not _holds((failed == 0).all()):
        factor = cholesky(damped(matrix, damping))
    if not isinstance(damping, Tensor) and damping == 0:
        scale = 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        largest = matrix.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        positive(factor.diagonal(dim1=-2, dim2=-1).square(), scale * largest)
    return factor


def cholesky_solve(right: Tensor, factor: Tensor) -> Tensor:
    """A^-1 B for B (..., n, K) and the lower factor of A (..., n, n).

    The result equals that of ``torch.cholesky_solve``, which copies the factors first: for one right-hand side per
    matrix the copy takes several times as long as the two substitutions.
    """
    right, factor = factorizable(right), factorizable(factor)
    halfway = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, halfway, upper=True)


def orthonormal(matrix: Tensor) -> Tensor:
    """Q of the QR decomposition of square matrices (..., n, n); R, which takes a tenth of the time, is not formed."""
    reflectors, scales = torch.geqrf(matrix)
    return torch.linalg.householder_product(reflectors, scales, out=reflectors)


def log_determinant(factor: Tensor) -> float:
    """The logarithm of the determinant of a matrix, or of all of a batch, from the Cholesky factors (..., n, n)."""
    return 2 * float(factor.diagonal(dim1=-2, dim2=-1).double().log().sum())


def damped_inverse(matrix: Tensor, damping: Tensor | float) -> Tensor:
    """(A + damping I)^-1 over the last two dimensions, in A's dtype; ``damping`` broadcasts over the batch."""
    matrix = factorizable(matrix)
    factor = damped_cholesky(matrix, damping)
    return torch.cholesky_inverse(factor.mT, upper=True).to(matrix.dtype)  # a tenth faster than with the lower factor


# The smallest order of a band: products of a smaller order are not split. Bands save seconds from order 128 on (0.9 of
# the seconds there, 0.8 at 256, 0.75 at 512). But published costs grow as n^2 at every order, and counted FLOPs would
# grow by another exponent between 128 and 512. Orders below 512 are 3 % of the products, by count, in K-FAC's type-2
# statistics of ResNet-18.
_SMALLEST_BAND = 512


def bands_of(order: int) -> int:
    """The bands of rows in which ``self_product`` computes a product of this order: a power of 2."""
    return 1 << max(order // _SMALLEST_BAND, 1).bit_length() - 1


def self_product(rows: Tensor, bands: int = 1) -> Tensor:
    """R R^T over the last two dimensions (..., n, n); of a large product only the lower half is computed.

    The rows are cut into bands, and all rows up to the end of a band are multiplied with the band: its product serves
    on both sides of the diagonal. ``bands``: the least number of bands, at any order.
    """
    n = rows.shape[-2]
    if (bands := max(bands, bands_of(n))) == 1:
        return rows @ rows.mT
    parts = rows.tensor_split(bands, dim=-2)
    product = rows.new_empty(*rows.shape[:-1], n)
    for start, stop in pairwise([0, *accumulate(part.shape[-2] for part in parts)]):
        product[..., :stop, start:stop] = rows[..., :stop, :] @ rows[..., start:stop, :].mT
        product[..., start:stop, :start] = product[..., :start, start:stop].mT
    return product


def tiles(tensor: Tensor, size: int = 2**19) -> Sequence[Tensor]:
    """The samples of a tensor (N, ...) in parts of about ``size`` bytes, which stay in a CPU's cache; one on a GPU."""
    if tensor.device.type != "cpu":
        return (tensor,)
    return tensor.split(max(1, size // max(1, tensor[:1].numel() * tensor.element_size())))


_SLICE = 2**24  # entries that exist in float64 at the same time


def sum_squares(tensor: Tensor) -> float:
    """Sum of squares, accumulated in float64 (float32 norms on CPU lose up to 1e-3 on large tensors)."""
    norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    return norm * norm  # may be infinite; norm**2 would raise OverflowError


def inner(a: Tensor, b: Tensor) -> float:
    """Sum of a * b over two tensors of one shape, accumulated in float64."""
    flat_a, flat_b = a.reshape(-1).split(_SLICE), b.reshape(-1).split(_SLICE)
    return sum(float(x.double() @ y.double()) for x, y in zip(flat_a, flat_b, strict=True))


def positive(denominator: Tensor, rounding: Tensor | float = 0.0) -> Tensor:
    """The denominator of a solve, after a check.

    Raises:
        ValueError: an entry is not finite, or not above the ``rounding`` of an eigenvalue of zero, so that the matrix
            is singular or has negative eigenvalues.
    """
    if _holds((denominator > rounding).all()):
        return denominator
    if why := flaw(denominator):
        raise ValueError(f"the operator is {why}, which no damping mends: its statistics are not finite")
    least, rest = float(denominator.min()), 10 * torch.finfo(denominator.dtype).eps * float(denominator.abs().max())
    if least < -rest:
        raise ValueError(f"the operator is indefinite: with its damping it has the eigenvalue {least:.3g}")
    raise ValueError("the operator is singular without damping: give a damping above zero")

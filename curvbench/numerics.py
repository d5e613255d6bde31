"""Factorizations that say when they struggled, sums that do not lose digits, and products that are symmetric.

Policy: float16 and bfloat16 are formats to store numbers in; what is computed with them is ``widened`` first: no matrix
has fewer digits than float32. Of a symmetric matrix one triangle is read, eigenvalues of positive semi-definite
matrices are clamped at zero, a factorization that fails in its own precision is repeated in float64, and every
repetition counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


def widened(value: Any) -> Any:
    """A tensor of fewer digits than float32 in float32, a complex one likewise; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.complex32:
        return value.to(torch.complex64)
    return value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value


@dataclass
class Retries:
    """Number of factorizations repeated in float64 inside a ``count_retries`` block."""

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


def _note_retry() -> None:
    retries = _retries.get()
    if retries is not None:
        retries.count += 1


def flaw(values: Tensor) -> str:
    """What keeps values from being finite: ``NaN in 3 of 25 entries``; empty where nothing does."""
    for word, found in (("NaN", values.isnan()), ("infinite", values.isinf())):
        if count := int(found.sum()):
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
        ValueError: it has none that LAPACK finds: an entry is NaN or infinite.
    """
    ways = dict.fromkeys([(matrix.dtype, "U"), (torch.float64, "U"), (torch.float64, "L")])
    for count, (dtype, triangle) in enumerate(ways):
        if count:
            _note_retry()
        found = _decomposed(matrix.to(dtype), triangle)
        if found is not None:
            values, vectors = (t.to(matrix.dtype) for t in found)
            return values.clamp_min(0), vectors
    why = flaw(matrix)
    raise ValueError(f"no eigenvalues of a matrix {tuple(matrix.shape)} were found{why and f': it is {why}'}")


def _decomposed(matrix: Tensor, triangle: str) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues and eigenvectors by LAPACK; None where it fails.

    Divide and conquer can fail on many rows of zeros: the same entries as the lower triangle take another way. As the
    upper one they take 3 to 5 % less time from order 64 on.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix if triangle == "L" else matrix.mT, UPLO=triangle)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return (values, vectors) if math.isfinite(values.sum(dtype=torch.float64)) else None


def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues (..., n) of a PSD matrix in float64, ascending, clamped at zero."""
    return torch.linalg.eigvalsh(matrix.double()).clamp_min(0)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor (..., n, n), in float64 where the matrix's own precision does not suffice.

    Raises:
        ValueError: the matrix is not finite, or is singular in float64 as well.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed.any():
        return factor
    _note_retry()
    factor, failed = torch.linalg.cholesky_ex(matrix.double())
    if failed.any():
        if found := flaw(matrix):
            raise ValueError(f"the matrix to be factorized is {found}: its statistics are not finite")
        raise ValueError("the matrix is singular to working precision: give a damping above zero, or a larger one")
    return factor


def damped_cholesky(matrix: Tensor, damping: Tensor | float) -> Tensor:
    """Lower Cholesky factor of A + damping I over the last two dimensions; ``damping`` broadcasts over the batch.

    Raises:
        ValueError: A + damping I is singular; without damping also where only rounding keeps A from it.
    """
    factor = damped(matrix.mT, damping)  # in LAPACK's order of entries, so that the factor can take its place
    failed = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if failed.any():
        factor = cholesky(damped(matrix, damping))
    if not isinstance(damping, Tensor) and damping == 0:
        scale = 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        largest = matrix.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        positive(factor.diagonal(dim1=-2, dim2=-1).square(), scale * largest)
    return factor


def cholesky_solve(right: Tensor, factor: Tensor) -> Tensor:
    """A^-1 B for B (..., n, K) and the lower factor of A (..., n, n).

    The numbers are those of ``torch.cholesky_solve``, which copies the factors first: for one right-hand side per
    matrix that takes several times as long as the two substitutions.
    """
    halfway = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, halfway, upper=True)


def damped_inverse(matrix: Tensor, damping: Tensor | float) -> Tensor:
    """(A + damping I)^-1 over the last two dimensions, in A's dtype; ``damping`` broadcasts over the batch."""
    factor = damped_cholesky(matrix, damping)
    return torch.cholesky_inverse(factor.mT, upper=True).to(matrix.dtype)  # a tenth faster than from the lower one


# Order of a product that is not split. Halves pay from order 128 on (0.9 of the seconds, 0.8 at 256, 0.75 at 512), but
# published costs are n^2 at every order, and counts that thin out from 128 on would grow by another exponent; by count
# it is 3 % of the products in K-FAC's type-2 statistics of ResNet-18.
_SMALLEST = 512


def self_product(rows: Tensor, bands: int = 1) -> Tensor:
    """R R^T over the last two dimensions, of large ones only the lower half, in halves of halves.

    ``bands``: into how many bands of rows it is cut at every order; their products below the diagonal serve twice.
    """
    n = rows.shape[-2]
    if bands == 1 and n < 2 * _SMALLEST:
        return rows @ rows.mT
    parts = rows.tensor_split(max(bands, 2), dim=-2)
    edges = [0, *accumulate(part.shape[-2] for part in parts)]
    places = [slice(*pair) for pair in pairwise(edges)]
    product = rows.new_empty(*rows.shape[:-1], n)
    for i, lower in enumerate(parts):
        product[..., places[i], places[i]] = self_product(lower)
        for j, upper in enumerate(parts[:i]):
            block = lower @ upper.mT
            product[..., places[i], places[j]] = block
            product[..., places[j], places[i]] = block.mT
    return product


_SLICE = 2**24  # entries that are cast to float64 at a time


def sum_squares(tensor: Tensor) -> float:
    """Sum of squares, accumulated in float64 (float32 norms on CPU lose up to 1e-3 on large tensors)."""
    norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    return norm * norm  # infinite, where a power would raise OverflowError


def inner(a: Tensor, b: Tensor) -> float:
    """Sum of a * b over two tensors of one shape, accumulated in float64."""
    flat_a, flat_b = a.reshape(-1).split(_SLICE), b.reshape(-1).split(_SLICE)
    return sum(float(x.double() @ y.double()) for x, y in zip(flat_a, flat_b, strict=True))


def positive(denominator: Tensor, rounding: Tensor | float = 0.0) -> Tensor:
    """The denominator of a solve, checked.

    Raises:
        ValueError: an entry is not finite, or not above the ``rounding`` that a zero may come out as, so that the
            matrix is singular or has negative eigenvalues.
    """
    if bool((denominator > rounding).all()):
        return denominator
    if found := flaw(denominator):
        raise ValueError(f"the operator is {found}, which no damping mends: its statistics are not finite")
    least, rest = float(denominator.min()), 10 * torch.finfo(denominator.dtype).eps * float(denominator.abs().max())
    if least < -rest:
        raise ValueError(f"the operator is indefinite: with its damping it has the eigenvalue {least:.3g}")
    raise ValueError("the operator is singular without damping: give a damping above zero")

"""The sides of Kronecker products: one matrix of order n per group, dense (G, n, n) or diagonal (G, n).

A basis is a dense side or None, the identity. The number of dimensions tells a dense side from a diagonal one, because
every side here has its group axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench import numerics


def batched(factor: Tensor, is_diagonal: bool) -> Tensor:
    """The side of a factor that may lack its group axis: (G, n) or (n,) if diagonal, else (G, n, n) or (n, n).

    Raises:
        ValueError: the factor has another shape.
    """
    side = factor if factor.ndim == 3 - is_diagonal else factor[None]
    if side.ndim != 3 - is_diagonal or (side.ndim == 3 and side.shape[-1] != side.shape[-2]):
        wanted = "diagonal factor is (G, n) or (n,)" if is_diagonal else "dense factor is (G, n, n) or (n, n)"
        flags = "left_is_diagonal and right_is_diagonal"
        raise ValueError(f"a {wanted}, got {tuple(factor.shape)}: {flags} tell the diagonal factors")
    return side


def basis(vectors: Tensor | None, shape: tuple[int, int, int]) -> Tensor | None:
    """The basis of ``shape`` (G, n, n) of vectors that may lack their group axis.

    Raises:
        ValueError: the vectors have another shape.
    """
    if vectors is None or vectors.shape == shape:
        return vectors
    if vectors[None].shape != shape:
        raise ValueError(f"a basis of these entries has shape {shape} or is None, got {tuple(vectors.shape)}")
    return vectors[None]


def transposed(side: Tensor | None) -> Tensor | None:
    """The transpose of each group's matrix; a view."""
    return side if side is None or side.ndim == 2 else side.mT


def from_left(side: Tensor | None, matrices: Tensor) -> Tensor:
    """The products of a side of order M with matrices (..., G, M, D) to its right."""
    if side is None:
        return matrices
    return side[:, :, None] * matrices if side.ndim == 2 else side @ matrices


def from_right(matrices: Tensor, side: Tensor | None) -> Tensor:
    """The products of matrices (..., G, M, D) with a side of order D to their right."""
    if side is None:
        return matrices
    return matrices * side[:, None, :] if side.ndim == 2 else matrices @ side


def main_diagonal(side: Tensor) -> Tensor:
    """The diagonal of each group's matrix, (G, n); a view."""
    return side if side.ndim == 2 else side.diagonal(dim1=-2, dim2=-1)


def dense(side: Tensor) -> Tensor:
    """The side with its zeros stored, (G, n, n)."""
    return side.diag_embed() if side.ndim == 2 else side


def eigh(side: Tensor) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues (G, n), clamped at zero, and the basis of their eigenvectors: None for a diagonal side."""
    return (side.clamp_min(0), None) if side.ndim == 2 else numerics.eigh(side)


def eigvalsh(side: Tensor) -> Tensor:
    """Eigenvalues (G, n) in float64, clamped at zero, in no order."""
    return side.double().clamp_min(0) if side.ndim == 2 else numerics.eigvalsh(side)


def damped(side: Tensor, damping: Tensor | float) -> Tensor:
    """Side + damping I, with one damping or one per group (G,)."""
    if side.ndim == 3:
        return numerics.damped(side, damping)
    return side + (per_group(damping, side) if isinstance(damping, Tensor) else damping)


def damped_inverse(side: Tensor, damping: Tensor | float) -> Tensor:
    """(side + damping I)^-1, with one damping or one per group (G,).

    Raises:
        ValueError: the damped side is singular.
    """
    if side.ndim == 3:
        return numerics.damped_inverse(side, damping)
    return 1 / numerics.positive(side + (per_group(damping, side) if isinstance(damping, Tensor) else damping))


def log_determinant(side: Tensor) -> float:
    """The sum over groups of the logarithms of the determinants.

    Raises:
        ValueError: the side is singular.
    """
    if side.ndim == 2:
        return float(numerics.positive(side).double().log().sum())
    return numerics.log_determinant(numerics.cholesky(side))


def damped_inverse_root(side: Tensor, damping: Tensor | float) -> Tensor:
    """(side + damping I)^(-1/2), with one damping or one per group (G,).

    Raises:
        ValueError: the damped side is singular.
    """
    values, vectors = eigh(side)
    is_damped = isinstance(damping, Tensor) or damping > 0
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    shift = per_group(damping, values) if isinstance(damping, Tensor) else damping
    roots = numerics.positive(values + shift, 0.0 if is_damped else rounding).rsqrt()
    return roots if vectors is None else (vectors * roots[:, None, :]) @ vectors.mT


def per_group(numbers: Tensor, side: Tensor) -> Tensor:
    """One number per group, (G,), in the shape in which it meets every entry of a side; a view."""
    return numbers.reshape(-1, *[1] * (side.ndim - 1))


def squared(vectors: Tensor | None) -> Tensor | None:
    """The squares of a basis's entries; those of the identity are the identity."""
    return None if vectors is None else vectors.square()


def overlap(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The inner products first^T second of the vectors of two bases, (G, n, n); None if both are the identity."""
    if first is None:
        return second
    return first.mT if second is None else first.mT @ second


def vector_norm(side: Tensor) -> Tensor:
    """The Frobenius norm of each group's matrix, (G,) in float64."""
    return torch.linalg.vector_norm(side, dim=tuple(range(1, side.ndim)), dtype=torch.float64)

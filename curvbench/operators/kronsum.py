"""Sums of Kronecker products, batched over the groups of a convolution; such a sum may be indefinite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.operators.base import Operator, largest
from curvbench.operators.kronecker import Kronecker

LARGEST_DENSE = 1024  # order of a group's matrix whose eigenvalues come from the matrix itself, in a second at most
_ROUNDS = 100  # of Lanczos iteration, after which the ends of a larger matrix's spectrum have settled


@dataclass(frozen=True, eq=False)
class KroneckerSum(Operator):
    """The sum of K products left_i (x) right_i in row-major order, V -> sum of left_i V right_i^T, for every group.

    ``lefts`` (K, G, M, M) and ``rights`` (K, G, D, D): the factors of one product are both symmetric or both skew.
    Eigenvalues of a group of an order above ``LARGEST_DENSE`` are Lanczos estimates from inside of the spectrum.

    Raises:
        ValueError: a factor is not square, or the numbers of products or of groups differ.
    """

    lefts: Tensor
    rights: Tensor

    def __post_init__(self) -> None:
        (K, G, M, M_), (K_, G_, D, D_) = self.lefts.shape, self.rights.shape
        if (K, G, M, D) != (K_, G_, M_, D_) or not K:
            shapes = f"{tuple(self.lefts.shape)} and {tuple(self.rights.shape)}"
            raise ValueError(f"a sum of Kronecker products has factors (K, G, M, M) and (K, G, D, D), got {shapes}")

    @property
    def layout(self) -> tuple[int, int, int]:
        """G, M and D: the shape of the matrices that the sum multiplies."""
        return self.lefts.shape[1], self.lefts.shape[2], self.rights.shape[2]

    @property
    def size(self) -> int:
        G, M, D = self.layout
        return G * M * D

    @property
    def dtype(self) -> torch.dtype:
        return self.lefts.dtype

    @property
    def device(self) -> torch.device:
        return self.lefts.device

    def products(self) -> Iterator[Kronecker]:
        """The products one by one."""
        return map(Kronecker, self.lefts, self.rights)

    def _matmat(self, V: Tensor) -> Tensor:
        matrices = V.T.reshape(-1, *self.layout)
        terms = (left @ matrices @ right.mT for left, right in zip(self.lefts, self.rights, strict=True))
        return sum(terms, torch.zeros_like(matrices)).flatten(1).T

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        if len(self.lefts) == 1:
            return next(self.products()).solve(V, damping)
        if len(self.lefts) == 2 and damping == 0:
            return self._solve_two(V)
        numerics.positive(torch.tensor(self.smallest_eigenvalue() + damping, dtype=torch.float64, device="cpu"))
        near = next(self.products()).rotated.inverse(damping or float(self.eigenvalues(1)))
        columns = [_conjugate_gradients(lambda p: self._matvec(p) + damping * p, near.matvec, v) for v in V.T]
        return torch.stack(columns, dim=1)

    def _solve_two(self, V: Tensor) -> Tensor:
        """The closed form for two products: in the basis in which the first is the identity both are diagonal."""
        parts = V.reshape(*self.layout, -1).unbind(0)
        groups = zip(self.lefts.unbind(1), self.rights.unbind(1), parts, strict=True)
        return torch.cat([_solved(left, right, part).flatten(0, 1) for left, right, part in groups])

    def trace(self) -> float:
        left, right = (f.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64) for f in (self.lefts, self.rights))
        return float((left * right).sum())

    def frobenius_norm(self) -> float:
        lefts, rights = (f.double().transpose(0, 1).flatten(2) for f in (self.lefts, self.rights))
        return max(float(((lefts @ lefts.mT) * (rights @ rights.mT)).sum()), 0.0) ** 0.5

    def diagonal(self) -> Tensor:
        left, right = (f.diagonal(dim1=-2, dim2=-1) for f in (self.lefts, self.rights))
        return torch.einsum("kgm,kgd->gmd", left, right).flatten()

    def eigenvalues(self, k: int) -> Tensor:
        return largest(self._spectrum, k)

    def smallest_eigenvalue(self) -> float:
        return float(self._spectrum.min())

    @cached_property
    def _spectrum(self) -> Tensor:
        """All eigenvalues in float64, or those of the Lanczos iteration of a large matrix, which has both ends."""
        G, M, D = self.layout
        if M * D <= LARGEST_DENSE:
            four = torch.einsum("kgij,kgab->giajb", self.lefts.double(), self.rights.double())
            return torch.linalg.eigvalsh(four.reshape(G, M * D, M * D))
        return self._lanczos_values()

    def _lanczos_values(self) -> Tensor:
        """The eigenvalues of the projection on a Krylov space, with full orthogonalization, from a random start."""
        start = torch.randn(self.size, device="cpu", generator=torch.Generator().manual_seed(0)).to(self.lefts)
        basis, projected = (start / start.norm())[None], torch.zeros(0, 0, dtype=torch.float64, device="cpu")
        for _ in range(min(_ROUNDS, self.size)):
            projected = torch.nn.functional.pad(projected, (0, 1, 0, 1))
            direction = image = self._matvec(basis[-1])
            for _ in range(2):  # one pass leaves its own rounding
                weights = basis @ direction
                direction = direction - weights @ basis
                projected[-1] += weights.cpu()  # the row is enough: eigvalsh reads the lower triangle
            rest = direction.norm()
            if not float(rest) > len(basis) * torch.finfo(self.dtype).eps * float(image.norm()):
                break
            basis = torch.cat([basis, (direction / rest)[None]])
        return torch.linalg.eigvalsh(projected)


def _solved(left: Tensor, right: Tensor, V: Tensor) -> Tensor:
    """The solve of one group for V (M, D, K); raises ValueError if the sum is singular or indefinite."""
    X, s, is_skew = _whitened(*left)
    Y, t, _ = _whitened(*right)
    entries = 1 + (-1 if is_skew else 1) * s[:, None] * t
    rotated = torch.einsum("mi,mdk,dj->ijk", X.conj(), V.to(X.dtype), Y.conj())
    divided = rotated / numerics.positive(entries, torch.finfo(entries.dtype).eps)[..., None]
    return torch.einsum("mi,ijk,dj->mdk", X, divided, Y).real.to(V.dtype)


def _whitened(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, bool]:
    """X with X X^H = first^-1 in which ``second`` is diagonal, the diagonal (i times it, if it is skew), and if it is.

    X^H second X = diag(s) for a symmetric ``second``, diag(-i s) for a skew one.
    """
    values, vectors = torch.linalg.eigh(first)
    rounding = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    root = (vectors / numerics.positive(values, rounding).sqrt()) @ vectors.mT
    middle = root @ second @ root
    is_skew = bool((second + second.mT).norm() < (second - second.mT).norm())
    s, basis = torch.linalg.eigh(1j * middle if is_skew else middle)
    return root.to(basis.dtype) @ basis, s, is_skew


def _conjugate_gradients(product: Callable[[Tensor], Tensor], near: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """The solution x of product(x) = v for a positive definite matrix whose inverse is about that of ``near``.

    Raises:
        ValueError: a direction has no positive curvature, or rounding keeps the residual from falling.
    """
    x, residual, tolerance = torch.zeros_like(v), v, 4 * torch.finfo(v.dtype).eps * float(v.norm())
    direction = z = near(residual)
    along = float(residual @ z)
    for _ in range(2 * len(v) + 100):
        if not float(residual.norm()) > tolerance:
            return x
        image = product(direction)
        curvature = float(direction @ image)
        numerics.positive(torch.tensor(curvature, dtype=torch.float64, device="cpu"))
        x, residual = x + along / curvature * direction, residual - along / curvature * image
        z = near(residual)
        along, before = float(residual @ z), along
        direction = z + along / before * direction
    raise ValueError("conjugate gradients of the sum of products do not converge: give a larger damping")

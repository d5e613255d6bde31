"""The scores of a last linear layer with many outputs, whose sums over columns come without any column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from curvbench.fisher.columns import Columns
from curvbench.fisher.inner import inner
from curvbench.instance import layers as geometry
from curvbench.instance.likelihood.hessians import Hessians, SoftmaxHessians
from curvbench.operators import Operator
from curvbench.spec import Layer


@dataclass(frozen=True, eq=False)
class HeadScores:
    """``inputs`` as the layer read them (N, ..., D), and the Hessians of the loss terms at its outputs, N S of them.

    The block of the Fisher is the mean over terms of H_t (x) a_t a_t^T, with the inputs a_t and the bias's 1.
    """

    layer: Layer
    inputs: Tensor
    hessians: Hessians

    @property
    def positions(self) -> int:
        """The number of positions, S."""
        return self.inputs[0, ..., 0].numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return self.inputs.dtype

    def rows(self) -> Tensor:
        """The inputs a_t of all terms, (N S, D)."""
        return geometry.patches(self.layer, self.inputs).mT.flatten(0, 2)

    def squares(self, left_basis: Tensor | None = None, right_basis: Tensor | None = None) -> Tensor:
        """The sum over columns of W * W for W rotated to Q_l^T W Q_r, (1, M, D) in float64; None is the identity."""
        rows, (left, right) = (
            self.rows(),
            (None if b is None else b[0].to(self.dtype) for b in (left_basis, right_basis)),
        )
        rotated = rows if right is None else rows @ right
        return (self.hessians.diagonals(left).mT @ rotated.square())[None].double()

    @property
    def unit_row_count(self) -> int:
        """Rows of ``unit_tiles`` per unit: one per term."""
        return self.hessians.count

    count = unit_row_count

    def unit_tiles(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        """Of at most ``step`` units at a time, the slice of the M units and their rows, as ``Columns.unit_tiles``."""
        rows, roots = self.rows(), self.hessians.diagonals().sqrt().mT
        for first in range(0, len(roots), step):
            part = slice(first, min(first + step, len(roots)))
            yield part, roots[part, :, None] * rows

    def unit_blocks(self, order: int | None = None) -> Tensor:
        """Per output unit the sum over columns of w w^T, as ``Columns.unit_blocks``."""
        order = order or self.layer.inputs
        runs = self.rows().unflatten(1, (-1, order))
        return torch.einsum("nc,nri,nrj->crij", self.hessians.diagonals(), runs, runs).flatten(0, 1)

    def contract_inputs(self, middle: Tensor) -> Tensor:
        """The sum over columns of W middle W^T, (1, M, M), for ``middle`` (1, D, D) or a diagonal (1, D)."""
        rows = self.rows()
        products = rows * middle[0] if middle.ndim == 2 else rows @ middle[0]
        return self.hessians.weighted((products * rows).sum(1)).total()[None]

    def contract_outputs(self, middle: Tensor) -> Tensor:
        """The sum over columns of W^T middle W, (1, D, D), for a diagonal ``middle`` (1, M)."""
        rows = self.rows()
        return ((self.hessians.diagonals() @ middle[0].to(self.dtype))[:, None] * rows).mT[None] @ rows


LayerScores = Columns | HeadScores
"""All scores of a layer, as ``stream.collect_closed`` gives them."""


class WithoutColumns(Operator):
    """A Fisher whose columns are too many to be formed, for the inner products that do without: see ``Scores``."""

    terms: int

    def stacks(self) -> Iterator[Tensor]:
        """Refuse columns one by one."""
        raise ValueError("an operator of this kind has no inner product in closed form with so many columns")

    def _solve(self, V: Tensor, damping: float) -> Tensor:
        return by_conjugate_gradients(self, V, damping)

    def project(self, V: Tensor) -> Tensor:
        """For vectors v (P, K) the roots of ``terms`` v^T F v, as one column would give them, (1, 1, K)."""
        return ((V * self.matmat(V)).sum(0) * self.terms).clamp_min(0).sqrt()[None, None]

    def inner(self, operator: Operator) -> float:
        """The Frobenius inner product <F, operator>.

        Raises:
            ValueError: sizes differ, or the operator's family has no closed form.
        """
        size = operator.shape[0]
        if size != self.size:
            raise ValueError(f"the Fisher has size {self.size}, the operator {size}: fit it on the same instance")
        return inner(operator, self)  # type: ignore[arg-type]  # closed forms read scores in the place of columns


@dataclass(frozen=True, eq=False)
class HeadFisher(WithoutColumns):
    """The exact block of a last linear layer, (1/terms) sum of H_t (x) a_t a_t^T, in closed form at any M."""

    scores: HeadScores
    terms: int

    @property
    def size(self) -> int:
        return self.scores.layer.size

    @property
    def dtype(self) -> torch.dtype:
        return self.scores.dtype

    @property
    def device(self) -> torch.device:
        return self.scores.inputs.device

    @property
    def columns(self) -> tuple[HeadScores]:
        """The scores, in the place of columns."""
        return (self.scores,)

    @property
    def layers(self) -> tuple[Layer]:
        """The layer."""
        return (self.scores.layer,)

    def layer(self, name: str) -> HeadFisher:
        """The block itself, whatever the name."""
        return self

    def _matmat(self, V: Tensor) -> Tensor:
        rows = self.scores.rows().to(V.dtype)
        responses = torch.einsum("cdk,nd->nck", V.unflatten(0, (-1, rows.shape[1])), rows)
        return torch.einsum("nck,nd->cdk", self.scores.hessians.applied(responses), rows).flatten(0, 1) / self.terms

    @cached_property
    def alike(self) -> Tensor:
        """The inner products of the inputs of every two terms, (n, n) in float64."""
        rows = self.scores.rows().double()
        return rows @ rows.mT

    def trace(self) -> float:
        traces = self.scores.hessians.diagonals().sum(1).double()
        return float(traces @ self.alike.diagonal()) / self.terms

    def frobenius_norm(self) -> float:
        return float((self.alike.square() * self.scores.hessians.traces_of_products()).sum()) ** 0.5 / self.terms

    def diagonal(self) -> Tensor:
        return (self.scores.squares().flatten() / self.terms).to(self.dtype)

    def eigenvalues(self, k: int) -> Tensor:
        return leading_eigenvalues(self, k)

    def smallest_eigenvalue(self) -> float:
        """Zero, because the Hessians of a softmax vanish on equal logits."""
        if isinstance(self.scores.hessians, SoftmaxHessians) or len(self.alike) < self.scores.layer.inputs:
            return 0.0
        raise ValueError(f"the smallest eigenvalue of the block of {self.scores.layer.name!r} has no closed form")


SOLVE_TOLERANCE = 1e-12  # |residual| / |v| of a solve
_MOST_ITERATIONS = 5000


def by_conjugate_gradients(operator: Operator, V: Tensor, damping: float) -> Tensor:
    """(operator + damping I)^-1 V for V (P, K), in float64 until a residual is 1e-12 of its v, in the dtype of V.

    The iterations grow as the root of the largest eigenvalue over the damping.

    Raises:
        ValueError: the damping is 0, or too small for 5,000 iterations.
    """
    from scipy.sparse.linalg import LinearOperator, cg  # slow to import

    if damping == 0:
        raise ValueError("a solve without its columns takes iterations, which need a damping above zero")

    def product(v: Any) -> Any:
        v = torch.from_numpy(v).to(operator.device).flatten()
        return (operator.matvec(v) + damping * v).cpu().numpy()

    shaped, solved = LinearOperator(operator.shape, matvec=product, dtype="float64"), []
    for v in V.double().cpu().unbind(1):
        x, failed = cg(shaped, v.numpy(), rtol=SOLVE_TOLERANCE, maxiter=_MOST_ITERATIONS)
        if failed:
            raise ValueError(
                f"{_MOST_ITERATIONS} conjugate gradients leave more than {SOLVE_TOLERANCE:g} of the right-hand side: "
                f"give a damping above {damping:g}"
            )
        solved.append(torch.from_numpy(x))
    return torch.stack(solved, 1).to(V)


def leading_eigenvalues(operator: Operator, k: int) -> Tensor:
    """The k largest eigenvalues of a large operator by Lanczos iteration, (k,) in float64, to 1e-10 of the largest one.

    Raises:
        ValueError: k is not below the size.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh  # slow to import

    if not 1 <= k < operator.size:
        raise ValueError(f"Lanczos iteration gives 1 to {operator.size - 1} of {operator.size} eigenvalues, not {k}")

    def product(v: Any) -> Any:
        return operator.matvec(torch.from_numpy(v).to(operator.device).flatten()).cpu().numpy()

    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    shaped = LinearOperator(operator.shape, matvec=product, dtype=start.dtype)
    values = eigsh(shaped, k, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)
    return torch.from_numpy(values).sort(descending=True).values.clamp_min(0)

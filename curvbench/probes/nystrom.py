"""Nystroem approximation (Tropp, Yurtsever, Udell and Cevher 2017): the Fisher from its products with K random vectors.

With a test matrix Omega (P, K) and Y = F Omega the matrix is Y (Omega^T Y)^+ Y^T, which lies below F and equals it as
soon as K reaches F's rank. As in SketchySGD (Frangella, Rathore, Zhao and Udell 2022) it is taken of F + nu I, with nu
of the size of rounding, and nu is subtracted from its eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher, collect
from curvbench.instance import Instance
from curvbench.operators import Subspace
from curvbench.parts.ranges import at_least_one
from curvbench.spec import About, FisherProbe


class Sketch(NamedTuple):
    """The orthonormal test matrix Omega (P, K), and its image F Omega (P, K)."""

    test: Tensor
    image: Tensor


class Pairs(NamedTuple):
    """Orthonormal eigenvectors (P, K) and their eigenvalues (K,), descending."""

    basis: Tensor
    values: Tensor


@dataclass(frozen=True)
class Nystrom(FisherProbe):
    """A matrix of low rank from products of the exact Fisher with random vectors.

    ``rank``: the number of random vectors. ``power``: the number of products with F that turn these vectors towards its
    largest eigenvectors first. ``tail``: the multiple of I outside of the subspace. ``zero`` has none; ``last`` takes
    the smallest eigenvalue inside, as a preconditioner of conjugate gradients needs. ``seed``: the seed of the random
    vectors and of the label draws.
    """

    rank: int = 16
    power: int = 0
    tail: Literal["zero", "last"] = "zero"

    about = About(
        represents="F Omega (Omega^T F Omega)^+ Omega^T F for rank random vectors Omega; tail=last adds its smallest"
        " eigenvalue times I outside of them",
        damping="added to the matrix",
        cost={
            "statistics": "2 (power + 1) rank N S G M (D + R) + 2 (power + 1) P rank^2",
            "invert": "4 P rank^2 + 35 rank^3 / 3",
            "precondition": "2 P rank",
            "memory": "P rank",
        },
        source="Tropp, Yurtsever, Udell and Cevher 2017, Algorithm 3; Frangella, Tropp and Udell 2023 (tail=last); "
        "Frangella, Rathore, Zhao and Udell 2022 (SketchySGD)",
        notes=(
            "With tail=zero a direction that no random vector has seen is divided by the damping alone, so that a step "
            "can be worse than the gradient; tail=last bounds it.",
        ),
        family="solvers",
        color="red",
        formulas=(
            r"\hat F = F \Omega\, (\Omega^\top F \Omega)^{+}\, \Omega^\top F",
            r"\Omega \in \mathbb{R}^{P \times K}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rank")
        if self.power < 0:
            raise ValueError(f"power must not be negative, got {self.power}")

    def unsupported(self, instance: Instance) -> str | None:
        if self.rank <= instance.size:
            return None
        return f"rank {self.rank} is more than the {instance.size} parameters"

    def update(self, state: Sketch | Pairs | None, batch: Instance) -> Sketch:
        fisher = ExactFisher(collect(batch, self.fisher_type, self.mc_samples, self.seed), batch.terms)
        generator = torch.Generator().manual_seed(self.seed)  # of the CPU, so that devices have the same vectors
        image = torch.randn(fisher.size, self.rank, device="cpu", generator=generator, dtype=torch.float64).to(
            batch.device
        )
        image = image.to(fisher.dtype)
        for _ in range(self.power + 1):
            test = torch.linalg.qr(image)[0]
            image = fisher.matmat(test)
        return Sketch(test, image)

    def refresh(self, state: Sketch | Pairs) -> Pairs:
        return eigenpairs(*state) if isinstance(state, Sketch) else state

    def precondition(self, state: Pairs, gradient: Tensor) -> Tensor:
        basis, values = state
        rest = self._rest(values) + self.damping
        if rest == 0:
            return self.operator(state).solve(gradient, 0.0)
        # The differences of inverses, (values + damping)^-1 - rest^-1, as products that do not cancel.
        weights = (self._rest(values) - values) / ((values + self.damping) * rest)
        return gradient / rest + basis @ (weights * (basis.T @ gradient))

    def operator(self, state: Sketch | Pairs) -> Subspace:
        basis, values = self.refresh(state)
        return Subspace(basis, values, self._rest(values))

    def _rest(self, values: Tensor) -> float:
        """The multiple of I outside of the subspace."""
        return float(values[-1]) if self.tail == "last" else 0.0


def eigenpairs(test: Tensor, image: Tensor) -> Pairs:
    """The eigenpairs of the Nystroem approximation of F, from Omega (P, K), orthonormal, and F Omega (P, K)."""
    inner = (test.T @ image).double()
    inner = (inner + inner.T) / 2
    rounding = torch.finfo(image.dtype)
    shift = max(rounding.eps * len(test) ** 0.5 * numerics.sum_squares(image) ** 0.5, rounding.tiny)
    try:
        factor = numerics.damped_cholesky(inner, shift)
    except ValueError:  # products that rounding has taken further from symmetry than this shift
        shift -= 2 * float(torch.linalg.eigvalsh(inner.nan_to_num())[0])
        factor = numerics.damped_cholesky(inner, shift)
    basis, triangle = torch.linalg.qr(image + shift * test)
    small = torch.linalg.solve_triangular(factor, triangle.mT.double(), upper=False).mT
    rotation, roots, _ = torch.linalg.svd(small)
    values = roots.square() - shift
    values = torch.where(values > shift, values, 0.0)  # a smaller one is rounding, and its vector too
    return Pairs(basis @ rotation.to(basis.dtype), values.to(basis.dtype))

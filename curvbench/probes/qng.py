"""QNG, quasi-natural gradient (He et al., SIAM J. Optim. 2022; as restated by Ginger, Sec. 2).

With q = A^-1 d and K = sqrt(alpha) I + beta q q^T, the product A K of all factors is a root of the running average
alpha G + (1 - alpha) d d^T, G_0 = I, of gradients with drawn labels. Only the last ``memory`` factors are kept, and
they are not decayed: the represented matrix is their product alone, alpha^n I plus rank n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.stochastic import Statistic, batch_gradient
from curvbench.instance import Instance
from curvbench.operators import Operator, Subspace
from curvbench.parts.ranges import at_least_one, fraction
from curvbench.parts.storage import appended
from curvbench.spec import About, Probe, StepRule

Recursion = Literal["product", "sum"]


class State(NamedTuple):
    """The kept factors, oldest first: q (n, P), and the coefficient of q q^T in the inverse (n,). The update count."""

    vectors: Tensor
    shrinkage: Tensor
    taken: int


@dataclass(frozen=True)
class Qng(Probe):
    """A product of rank-one factors: the last ``memory`` batch gradients above a floor decay^n.

    ``memory``: the largest number of factors that are kept. ``decay``: alpha, the weight of the old matrix.
    ``recursion``: how factors are applied. ``product`` applies one after the other. ``sum`` applies every factor to the
    original vector, as the public code does, which is right for one factor only. ``seed``: the seed of the label draws.
    ``floor``: whether the operator includes decay^n I. ``false`` subtracts it from the operator but not from the step,
    which leaves only the learned part.
    """

    memory: int = 16
    decay: float = 0.99
    recursion: Recursion = "product"
    floor: bool = True
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0

    statistic: ClassVar[Statistic] = "bg"  # type: ignore[misc]
    rule = StepRule(momentum="gradient", update="after")

    about = About(
        represents="A A^T, A the product of the last memory factors sqrt(decay) I + beta q q^T: decay^n I plus rank n",
        damping="none besides the floor decay^n, n the number of factors that are kept",
        cost={"statistics": "2 P memory", "invert": "0", "precondition": "4 P memory", "memory": "P memory"},
        source="He et al. 2022, as restated by Ginger: Eqs. 9 to 11",
        errata=("E-Q",),
        family="low rank",
        color="blue",
        formulas=(
            r"\hat F = A A^\top",
            r"A = \prod_{k=1}^{n} \left(\sqrt{\alpha}\, I + \beta_k q_k q_k^\top\right)",
            r"q_k = A_{k-1}^{-1} d_k",
            r"\beta_k = \frac{\sqrt{\alpha + (1 - \alpha) \|q_k\|^2} - \sqrt{\alpha}}{\|q_k\|^2}",
            r"d = \sqrt{N}\,\bar g(\hat y)",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "memory", "updates", "batch_size")
        fraction(self, "decay")

    def unsupported(self, instance: Instance) -> str | None:
        return None if self.memory <= instance.size else f"memory {self.memory} is more than {instance.size} parameters"

    def init(self, instance: Instance) -> State:
        empty = torch.zeros(0, dtype=instance.dtype, device=instance.device)
        return State(empty.new_zeros(0, instance.size), empty, 0)

    def update(self, state: State, batch: Instance) -> State:
        gradient = batch_gradient(batch, self.statistic, self.seed, state.taken)
        return append(state, gradient, self.decay, self.memory, self.recursion)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        half = inverse(state.vectors, state.shrinkage, gradient, self.decay, self.recursion)
        return inverse(state.vectors.flip(0), state.shrinkage.flip(0), half, self.decay, self.recursion)

    def operator(self, state: State) -> Subspace:
        basis, triangle = torch.linalg.qr(state.vectors.T)
        coordinates = triangle.T.double()
        root = self._root(coordinates) if self.recursion == "product" else self._root_of_sum(coordinates)
        left, scales, _ = torch.linalg.svd(root)
        values, rest = scales.square(), self.decay ** len(state.vectors)
        if not self.floor:
            values, rest = (values - rest).clamp_min(0), 0.0
        return Subspace(basis @ left.to(basis.dtype), values.to(basis.dtype), rest)

    def damped(self, state: State) -> Operator:
        """The matrix with its floor, which the step always inverts."""
        return self.operator(state).damped(0.0) if self.floor else replace(self, floor=True).operator(state)

    def _root(self, vectors: Tensor) -> Tensor:
        """The product of the factors K, oldest first, in the coordinates of a basis of the vectors (n, n)."""
        root = eye = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
        for q in vectors:
            beta = (1 - self.decay) / ((self.decay + (1 - self.decay) * (q @ q)).sqrt() + self.decay**0.5)
            root = root @ (self.decay**0.5 * eye + beta * torch.outer(q, q))
        return root

    def _root_of_sum(self, vectors: Tensor) -> Tensor:
        """The inverse of the symmetric matrix that ``sum`` applies, finite also if that matrix is singular (n, n)."""
        eye = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
        values, basis = torch.linalg.eigh(eye - (vectors.T * _shrinkage(vectors.square().sum(1), self.decay)) @ vectors)
        magnitudes = values.abs().clamp_min(torch.finfo(values.dtype).eps)
        return self.decay ** (len(vectors) / 2) * (basis / magnitudes) @ basis.T


def append(state: State, vector: Tensor, decay: float, memory: int, recursion: Recursion = "product") -> State:
    """The state after one more vector d (P,)."""
    q = inverse(state.vectors, state.shrinkage, vector, decay, recursion)
    shrinkage = appended(state.shrinkage, _shrinkage(q @ q, decay), memory)
    return State(appended(state.vectors, q, memory), shrinkage, state.taken + 1)


def inverse(
    vectors: Tensor, shrinkage: Tensor, vector: Tensor, decay: float, recursion: Recursion = "product"
) -> Tensor:
    """The inverse factors applied to a vector (P,), one after the other in the order given."""
    result = vector
    for q, share in zip(vectors, shrinkage, strict=True):
        result = result - share * (q @ (result if recursion == "product" else vector)) * q
    return result * decay ** (-len(vectors) / 2)


def _shrinkage(squares: Tensor, decay: float) -> Tensor:
    """(1 - sqrt(alpha / (alpha + (1 - alpha) |q|^2))) / |q|^2 in a form without cancellation, finite for q = 0."""
    root = (decay + (1 - decay) * squares).sqrt()
    return (1 - decay) / (root * (root + decay**0.5))

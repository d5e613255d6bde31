"""Shampoo (Gupta, Koren, Singer 2018), matrix case: convolutions as matrices, one pair of factors per group.

L and R sum G G^T and G^T G over the updates, G the batch's mean gradient, and begin with epsilon I. The epsilon is
added to the eigenvalues of the sums, so that rounding of the largest eigenvalue cannot make a factor singular. The
represented matrix is L^(1/2) (x) R^(1/2), an upper bound of the summed outer products up to a rank. The step
applies the inverse root of this matrix, L^(-1/4) G R^(-1/4); many ports use the exponent -1/2, which is its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.stochastic import Statistic, batch_gradient
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts.factors import is_cut, own_matrix
from curvbench.parts.polar import COST, TakesPolar, polar_steps
from curvbench.parts.ranges import at_least_one, finite
from curvbench.parts.storage import too_large
from curvbench.spec import About

Exponent = Literal["paper", "ports"]


class State(NamedTuple):
    """Per layer the sums L (G, M, M) and R (G, D, D) without epsilon I, and the powers of both that a step applies.

    ``taken``: the number of updates so far.
    """

    sums: list[tuple[Tensor, Tensor]]
    taken: int
    roots: Sequence[Kronecker] = ()


@dataclass(frozen=True)
class Shampoo(TakesPolar):
    """Kronecker product of the roots of summed row and column moments of batch gradients.

    ``exponent``: the power of each moment in the step. ``paper`` is -1/4, ``ports`` is -1/2. ``epsilon``: the multiple
    of the identity with which the sums begin. ``statistic``: the labels of the gradients. ``bg_data`` takes the data's
    labels, ``bg`` draws labels from the model. ``seed``: the seed of these draws.
    """

    exponent: Exponent = "paper"
    epsilon: float = 1e-4
    statistic: Statistic = "bg_data"
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0

    is_layerwise = True
    about = About(
        represents="L^(1/2) (x) R^(1/2) per layer (and group): L and R sum V V^T and V^T V of the mean gradients V",
        damping="epsilon I where L and R begin; the step is the inverse root of the matrix, L^(-1/4) V R^(-1/4)",
        cost={
            "statistics": "G M D (M + D)",
            "invert": "11 G (M^3 + D^3) / 2",
            "precondition": f"G M D (M + D){COST}",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Gupta, Koren and Singer 2018, matrix case; the ports' exponent is known from public code",
        notes=(
            "A position or another parameter of several dimensions has the factors of its own shape, flattened behind "
            "the first dimension. A factor with more than 8,192 rows is its diagonal.",
            "shampoo[polar=whitened,epsilon=1e-10] is Mousse (arXiv 2603.09697), L^(-1/8) polar(L^(-1/8) V R^(-1/8)) "
            "R^(-1/8) with the length of the polar factor, but for its averages with weight 0.95 in place of sums and "
            "its moments scaled to mean eigenvalue 1.",
        ),
        family="Kronecker",
        color="pink",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "epsilon")
        at_least_one(self, "updates", "batch_size")

    def unsupported(self, instance: Instance) -> str | None:
        shapes = [own_matrix(layer, instance) for layer in instance.layers]
        entries = sum(G * n ** (1 if is_cut(n) else 2) for G, *sides in shapes for n in sides)
        return too_large("sums L and R", entries, instance.dtype)

    def init(self, instance: Instance) -> State:
        def zeros(groups: int, order: int) -> Tensor:
            shape = (groups, order) if is_cut(order) else (groups, order, order)
            return torch.zeros(shape, dtype=instance.dtype, device=instance.device)

        shapes = [own_matrix(layer, instance) for layer in instance.layers]
        return State([(zeros(G, M), zeros(G, D)) for G, M, D in shapes], 0)

    def update(self, state: State, batch: Instance) -> State:
        mean = batch_gradient(batch, self.statistic, self.seed, state.taken) / batch.terms**0.5
        matrices = [mean[layer.slice].reshape(own_matrix(layer, batch)) for layer in batch.layers]
        sums = [(L + _moment(V, L), R + _moment(V.mT, R)) for (L, R), V in zip(state.sums, matrices, strict=True)]
        return State(sums, state.taken + 1)

    def refresh(self, state: State) -> State:
        exponent = self._exponent / 2 if self.polar == "whitened" else self._exponent
        return state._replace(roots=self._powers(state, -exponent, floored=True))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        if self.polar != "none":
            return polar_steps(state.roots, gradient, self.polar)
        parts = gradient.split([root.size for root in state.roots])
        return torch.cat([root.matvec(part) for root, part in zip(state.roots, parts, strict=True)])

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(self._powers(state, 1 / 2, floored=False))

    def damped(self, state: State) -> BlockDiagonal | None:
        """L^(1/4) (x) R^(1/4), or L^(1/2) (x) R^(1/2) for the exponent of the ports."""
        return None if self.sets_lengths else BlockDiagonal(self._powers(state, self._exponent, floored=True))

    @property
    def _exponent(self) -> float:
        """The power of L and R whose inverse the step applies."""
        return 1 / 4 if self.exponent == "paper" else 1 / 2

    def _powers(self, state: State, exponent: float, floored: bool) -> list[Kronecker]:
        powers = ([_power(m, self.epsilon, exponent, floored) for m in pair] for pair in state.sums)
        return [Kronecker.batched(L, R) for L, R in powers]


def _moment(V: Tensor, like: Tensor) -> Tensor:
    """V V^T for V (G, M, D), or its diagonal (G, M) where ``like`` is one."""
    return V.square().sum(-1) if like.ndim == 2 else V @ V.mT


def _power(matrix: Tensor, epsilon: float, exponent: float, floored: bool) -> Tensor:
    """A power of epsilon I + PSD matrices (G, n, n).

    ``floored``: eigenvalues below the rounding of the largest one are raised to it, because their inverses would
    magnify rounding. Raises ValueError if one is zero. A diagonal (G, n) stands for its matrix.
    """
    if matrix.ndim == 2:
        entries = matrix + epsilon
        return (numerics.positive(entries) if floored else entries) ** exponent
    values, basis = numerics.eigh(matrix)
    values = values + epsilon
    if floored:
        rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
        values = torch.maximum(numerics.positive(values), rounding)
    return (basis * values[:, None, :] ** exponent) @ basis.mT

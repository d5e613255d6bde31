"""Shampoo (Gupta, Koren, Singer 2018) as it is trained: averages, blocks, stale roots and grafting (Shi et al. 2023).

With the exponent 1/4 a step is the inverse root of L^(1/2) (x) R^(1/2), which bounds E[v v^T] up to a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.stochastic import Statistic, mean_gradient
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts import submatrices
from curvbench.parts.grafting import Graft, grafted, next_squares, refuse_graft, with_length
from curvbench.parts.matrix_moments import matrices, shapes
from curvbench.parts.mean_gradients import GradientsProbe
from curvbench.parts.polar import COST, TakesPolar, polar_step
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.parts.storage import too_large
from curvbench.parts.submatrices import Cutting, Products, Shape, Sides, scaled, with_moments
from curvbench.spec import About, StepRule


class State(NamedTuple):
    """Per layer moments, shape and roots; ``squares`` (P,) of the grafted method; ``taken`` updates; loss ``terms``."""

    sums: list[tuple[Sides, ...]]
    squares: Tensor | None
    taken: int
    terms: int
    shapes: list[Shape]
    roots: Sequence[Products] = ()


@dataclass(frozen=True)
class Shampoo(TakesPolar, GradientsProbe):
    """Kronecker product of the roots of averaged row and column moments of batch gradients.

    ``exponent``: a step is L^-e V R^-e with this e. ``represents``: the matrix. ``root`` is L^(2 e) (x) R^(2 e), whose
    inverse root steps; ``trace`` is L (x) R / tr L, whose trace is exact. ``decay``: the weight of the old moments; 1
    sums them. ``epsilon``: a number added to the moments' eigenvalues before a power is taken. ``block``: the largest
    number of rows or columns of a sub-matrix with moments of its own; None cuts nothing. ``one_sided``: a side longer
    than ``block`` keeps the identity and is not cut. ``root_every``: the updates between roots; 1 leaves roots to
    ``refresh``. ``graft``: the method whose step gives each sub-matrix its length: ``sgd`` is the gradient, ``rmsprop``
    and ``adam`` have ``decay`` for their squares. ``statistic``: the labels, which ``bg_data`` takes from the data and
    ``bg`` draws. ``seed``: the seed of the draws.
    """

    exponent: float = 0.25
    represents: Literal["root", "trace"] = "root"
    decay: float = 1.0
    epsilon: float = 1e-4
    block: int | None = None
    one_sided: bool = False
    root_every: int = 1
    graft: Graft = "none"
    statistic: Statistic = "bg_data"
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0

    is_layerwise = True
    plain_rule = StepRule(momentum="average")
    about = About(
        represents="N L^(2 e) (x) R^(2 e) per layer (and group): L and R mean V V^T and V^T V of mean gradients V",
        damping="epsilon I is added to L and R, sums or averages, before the power; the step is L^-e V R^-e",
        cost={
            "statistics": "G M D (M + D) + [root_every > 1] 11 G (M^3 + D^3) / (2 root_every)",
            "invert": "[root_every = 1] 11 G (M^3 + D^3) / 2",
            "precondition": f"G M D (M + D){COST}",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Gupta, Koren and Singer 2018, matrix case; Shi et al. 2023 (arXiv 2309.06497) for all that is trained",
        notes=(
            "With N the matrix has the unit of a mean Fisher for exponent 1/4 or represents=trace. With decay 1 the "
            "matrix has the mean where the step has the sum, so that the step falls with 1 / sqrt(updates).",
            "A position or another parameter of several dimensions has the factors of its own shape, flattened behind "
            "the first dimension. A factor with more than 8,192 rows is its diagonal.",
            "Public code merges small dimensions and cuts sides at 1,024 rows by default, and its epsilon is 1e-12. "
            "A grafted step is not linear in the gradient. The published cost is that of layers without block; a "
            "graft other than sgd keeps P numbers more. refresh_every of a training has no meaning with root_every.",
            "shampoo[polar=whitened,decay=0.95,epsilon=1e-10] is Mousse (arXiv 2603.09697), L^(-1/8) polar(L^(-1/8) V "
            "R^(-1/8)) R^(-1/8) with the length of the polar factor, but for its moments scaled to mean eigenvalue 1.",
        ),
        family="whitening",
        color="pink",
        formulas=(
            r"\hat F_\ell = N\, L^{2e} \otimes R^{2e}",
            r"L = \langle V V^\top \rangle",
            r"R = \langle V^\top V \rangle",
            r"e = \frac{1}{4}",
            r"p_\ell = L^{-e}\, V R^{-e}",
        ),
    )

    def __post_init__(self) -> None:
        submatrices.refuse_words(self.exponent)
        super().__post_init__()
        finite(self, "epsilon", "exponent")
        at_least_one(self, "updates", "batch_size", "block", "root_every")
        fraction(self, "decay", one=True)
        submatrices.refuse_sides(self.block, self.one_sided)
        refuse_graft(self.graft, self.decay)

    def unsupported(self, instance: Instance) -> str | None:
        return too_large("sums L and R", sum(map(self._cutting.numbers, shapes(instance))), instance.dtype)

    def init(self, instance: Instance) -> State:
        sizes = shapes(instance)
        zeros = [torch.zeros(size, dtype=instance.dtype, device=instance.device) for size in sizes]
        return State([self._cutting.zeros(V) for V in zeros], None, 0, instance.terms, sizes)

    def update(self, state: State, batch: Instance) -> State:
        mean = mean_gradient(batch, self.statistic, self.seed, state.taken)
        parts = [self._cutting.pieces(V) for V in matrices(mean, state.shapes)]
        sums = [with_moments(*pair, self.decay) for pair in zip(state.sums, parts, strict=True)]
        squares = next_squares(self.graft, state.squares, mean, self.decay)
        new = state._replace(sums=sums, squares=squares, taken=state.taken + 1, terms=batch.terms)
        return self._with_roots(new) if self.root_every > 1 and new.taken % self.root_every == 0 else new

    def refresh(self, state: State) -> State:
        return self._with_roots(state) if self.root_every == 1 else state

    def _with_roots(self, state: State) -> State:
        count = 1.0 if self.decay == 1 else 1 - self.decay**state.taken
        exponent = -self.exponent / (2 if self.polar == "whitened" else 1)
        return state._replace(roots=self._cutting.powers(state.sums, 1 / count, self.epsilon, exponent))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        other = grafted(self.graft, gradient, state.squares, self.decay, state.taken)
        if not state.roots:
            return other.clone()
        layers = zip(state.roots, matrices(gradient, state.shapes), matrices(other, state.shapes), strict=True)
        return torch.cat([self._cutting.applied(roots, V, like, self._step).flatten() for roots, V, like in layers])

    def _step(self, root: Kronecker, V: Tensor, like: Tensor) -> Tensor:
        step = polar_step(root, V.flatten(), self.polar).view_as(V)
        return step if self.graft == "none" else with_length(step, like)

    def operator(self, state: State) -> BlockDiagonal:
        is_root, taken = self.represents == "root", max(state.taken, 1)
        count = taken if self.decay == 1 else 1 - self.decay**taken
        powers = self._cutting.powers(state.sums, 1 / count, 0.0, 2 * self.exponent if is_root else 1.0)
        parts = [tuple(scaled(part, state.terms, over_trace=not is_root) for part in layer) for layer in powers]
        return self._cutting.direct_sum(parts, state.shapes)

    def damped(self, state: State) -> BlockDiagonal | None:
        """The inverse of the roots; None for a grafted step or a polar factor, which is not linear."""
        if {self.graft, self.polar} != {"none"}:
            return None
        roots = state.roots or self._cutting.powers(state.sums, 1.0, 1.0, 0.0)  # no roots yet, which means I
        return self._cutting.direct_sum([tuple(map(submatrices.inverse, parts)) for parts in roots], state.shapes)

    @property
    def _cutting(self) -> Cutting:
        return Cutting(self.block, self.one_sided)

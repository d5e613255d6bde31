"""NG+ (Yang, Xu, Cui, Wen, Xu 2021, arXiv 2106.07454): one factor per layer, from outer products of score matrices.

The moment L = (1/N) sum W W^T of the score matrices W (M, D) solves L^-1 V for a gradient matrix V. L (x) I has D times
the trace of F; (L / D) (x) I is the projection of F on the matrices X (x) I. The public code takes L from mean
gradients, or rather from their momentum: a one-sided Shampoo with the exponent -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher import collect
from curvbench.fisher.stochastic import mean_gradient
from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal, Kronecker, Operator, sides
from curvbench.parts.mean_gradients import SourcedProbe, matrices
from curvbench.parts.one_sided import Moment, Side, mean_moment, moment
from curvbench.parts.ranges import fraction
from curvbench.spec import About, StepRule

LEAST, START = 1e-3, 1e-8  # of the public code: in its damping, and the multiple of I with which L begins there


class State(NamedTuple):
    """Per layer its moment and, after ``refresh``, the inverse that a step applies.

    ``unit``: the multiple of a moment that has the unit of F. ``taken``: the number of updates. ``momentum``: the sum
    of gradients (P,) with falling weights, or nothing, (0,).
    """

    moments: list[Moment]
    unit: float
    taken: int
    momentum: Tensor
    inverses: Sequence[Kronecker] = ()


@dataclass(frozen=True)
class Ngplus(SourcedProbe):
    """A Kronecker product (L / D) (x) I per layer, L the second moment of the rows of score matrices.

    ``source``: the matrices in L. ``columns`` is the score columns of the samples; ``gradients`` is mean gradients,
    ``momentum`` their sums with falling weights, as in the public code. ``side``: the side of L. ``outputs`` is the
    left side, ``smaller`` the side with fewer rows. ``damping_rule``: how the damping enters the solve. ``exact`` is
    (F^ + damping I)^-1; ``paper`` is (L + damping I)^-1; ``code`` adds the root of min(damping, max(|L|, 1e-3)) to L,
    |L| its largest entry. ``decay``: the weight of the old L if it is not one of columns. ``beta``: the weight of the
    old sum for ``source=momentum``.
    """

    source: Literal["columns", "gradients", "momentum"] = "columns"
    side: Side = "outputs"
    damping_rule: Literal["exact", "paper", "code"] = "exact"
    decay: float = 0.99
    beta: float = 0.9

    rule = StepRule(momentum="gradient")
    about = About(
        represents="(L / D) (x) I per layer (and group): L = (1/N) sum W W^T, or N times the average of V V^T",
        damping="(F^ + damping I)^-1, which is D (L + D damping I)^-1; paper: (L + damping I)^-1",
        cost={
            "statistics": "[source = columns] G N min(S^2 (D + R M) + S n^2 ([n = M] R + [n < M]), R M D (S + n))"
            " + [source != columns] G M D n",
            "invert": "G n^3 / 2",
            "precondition": "G M D n",
            "memory": "2 G n^2 + [source = momentum] P",
        },
        where={"n": "[side = outputs] M + [side = smaller] min(M, D)"},
        source="Yang, Xu, Cui, Wen and Xu 2021 (arXiv 2106.07454), and its public code",
        notes=(
            "source=momentum with damping_rule=code is the public code: L <- decay L + (1 - decay) m m^T, from 1e-8 I "
            "and without correction, m <- beta m + V with the first V counted 1 + beta times. For a constant gradient "
            "m is 10 V and L is 100 V V^T, so that F^ is 100 times too large. Its step has the momentum of the "
            "optimizer.",
            "source=gradients corrects the average for its start at zero.",
            "The blocks of more than 1024 rows of the public code pass arguments in the wrong order, and add the "
            "damping to the stored average each time; here L is whole, and a diagonal above 8,192 rows.",
            "The public code solves at the left of the parameter, the bias apart. A vector, as a norm's scale and "
            "shift, has its exact diagonal. The published cost counts every block as a Linear's.",
        ),
        family="smaller factors",
        color="pink",
        formulas=(r"\hat F_\ell = \frac{1}{D}\, \mathrm{E}[W W^\top] \otimes I_D",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "decay")
        fraction(self, "beta", zero=True)

    @property
    def reads_columns(self) -> bool:
        return self.source == "columns"

    def update(self, state: State | None, batch: Instance) -> State:
        taken = state.taken if state else 0
        if self.reads_columns:
            columns = collect(batch, self.fisher_type, self.mc_samples, self.seed)
            nothing = torch.empty(0, dtype=batch.dtype, device=batch.device)
            return State([mean_moment(c, batch, self.side) for c in columns], 1.0, taken + 1, nothing)
        vector = mean_gradient(batch, self.statistic, self.seed, taken)
        momentum, start, unit = vector.new_empty(0), 0.0, batch.terms / (1 - self.decay ** (taken + 1))
        if self.source == "momentum":
            vector = momentum = vector + self.beta * (state.momentum if state else vector)
            start, unit = START, float(batch.terms)
        moments = [moment(V[None], self.side) for V in matrices(batch, vector)]
        olds = state.moments if state else [m._replace(matrix=_multiple(start, m.matrix)) for m in moments]
        pairs = zip(olds, moments, strict=True)
        averages = [old._replace(matrix=old.matrix.lerp(m.matrix, 1 - self.decay)) for old, m in pairs]
        return State(averages, unit, taken + 1, momentum)

    def refresh(self, state: State) -> State:
        def inverse(moment: Moment) -> Kronecker:
            return moment.product(sides.damped_inverse(*self._damping(moment, state.unit)))

        return state._replace(inverses=checked_together(lambda: [inverse(moment) for moment in state.moments]))

    def _damping(self, moment: Moment, unit: float) -> tuple[Tensor, Tensor | float]:
        """The moment in the unit in which it is damped, and its damping."""
        if self.damping_rule == "code":
            least = moment.matrix.abs().max().clamp_min(LEAST)
            return moment.matrix, least.clamp_max(self.damping).sqrt().expand(len(moment.matrix))
        return unit / (moment.others if self.damping_rule == "exact" else 1) * moment.matrix, self.damping

    def damping_unit(self, terms: int) -> float | None:
        return 1.0 if self.damping_rule == "exact" else None

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return BlockDiagonal(state.inverses).matvec(gradient)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([m.product(state.unit / m.others * m.matrix) for m in state.moments])

    def damped(self, state: State) -> Operator:
        if self.damping_rule == "exact":
            return self.operator(state).damped(self.damping)
        return BlockDiagonal([m.product(sides.damped(*self._damping(m, state.unit))) for m in state.moments])


def _multiple(factor: float, like: Tensor) -> Tensor:
    """A multiple of the identity of the shape of a matrix (G, n, n), or of a diagonal (G, n)."""
    one = (
        torch.ones_like(like)
        if like.ndim == 2
        else torch.eye(like.shape[1], dtype=like.dtype, device=like.device).expand_as(like)
    )
    return factor * one

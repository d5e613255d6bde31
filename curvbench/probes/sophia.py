"""Sophia-G (Liu, Li, Hall, Liang, Ma 2023): momentum over a diagonal from gradients of drawn labels, entries bounded.

With drawn labels N g*g of the mean gradient g has the mean diag(F), because scores of different samples are
independent and have mean zero. One draw has about twice the square of its mean as variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.stochastic import mean_gradient
from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About, Probe


class State(NamedTuple):
    """Uncorrected averages (P,) of the gradient and of squared gradients of drawn labels.

    ``taken``: the number of updates. ``draws``: the number of squares in the average. ``terms``: the loss terms of the
    last batch.
    """

    momentum: Tensor
    squares: Tensor
    taken: int
    draws: int
    terms: int


@dataclass(frozen=True)
class Sophia(Probe):
    """The average of squared gradients of drawn labels, times the batch size; the step is that of the optimizer.

    ``beta1``: the weight of the old momentum. ``beta2``: the weight of the old average of squares. ``rho``: the
    multiple of the curvature that divides the momentum. ``epsilon``: a number added to the divisor of the
    momentum. ``draw_every``:
    the number of updates from one draw of labels to the next. ``seed``: the seed of the draws.
    """

    beta1: float = 0.965
    beta2: float = 0.99
    rho: float = 0.04
    epsilon: float = 1e-15
    draw_every: int = 10
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0

    statistic = "bg"
    has_own_momentum: ClassVar[bool] = True
    is_layerwise = True
    is_mean_over_samples: ClassVar[bool] = False

    about = About(
        represents="diag(N h), h the corrected average of squared mean gradients with labels drawn from the model",
        damping="none: every entry of the step is bounded by 1, where the curvature is small",
        cost={"statistics": "3 P / 2 + 2 P / draw_every", "invert": "0", "precondition": "7 P / 2", "memory": "2 P"},
        source="Liu, Li, Hall, Liang and Ma 2023, Algorithms 2 and 3, and its public code (sophia.py)",
        notes=(
            "The step is sign(m) min(|m| / (rho N h + epsilon), 1) with the uncorrected averages m and h, so that no "
            "damped matrix exists. m has the data's labels.",
            "Labels are drawn at updates 1, 1 + draw_every and so on, and count in the same step. The public training "
            "draws after steps draw_every, 2 draw_every and so on; the first steps are signs there.",
            "N are the loss terms of the batch, tokens of a sequence included; the public code takes them as bs. Its "
            "weight decay of 0.1 is the optimizer's here.",
            "diag with fisher_type=mc squares the score of every sample with the same draws and passes, with a "
            "variance about N times smaller.",
        ),
        family="first order",
        color="red",
        formulas=(
            r"\hat F = N\,\mathrm{diag}(\hat h)",
            r"h \leftarrow \beta_2 h + (1 - \beta_2)\,\bar g(\hat y) \circ \bar g(\hat y)",
            r"\hat h = \frac{h}{1 - \beta_2^k}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "beta1", "beta2", zero=True)
        finite(self, "rho", "epsilon", zero=False)
        at_least_one(self, "draw_every", "updates", "batch_size")

    def init(self, instance: Instance) -> State:
        zeros = torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)
        return State(zeros, zeros, 0, 0, instance.terms)

    def update(self, state: State, batch: Instance) -> State:
        momentum = self.beta1 * state.momentum + (1 - self.beta1) * batch.gradient()
        squares, draws = state.squares, state.draws
        if state.taken % self.draw_every == 0:
            drawn = mean_gradient(batch, "bg", self.seed, state.taken)
            squares, draws = self.beta2 * squares + (1 - self.beta2) * drawn.square(), draws + 1
        return State(momentum, squares, state.taken + 1, draws, batch.terms)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        divisor = self.rho * state.terms * state.squares + self.epsilon
        return state.momentum.sign() * (state.momentum.abs() / divisor).clamp_max(1.0)

    def operator(self, state: State) -> Diagonal:
        return Diagonal(state.terms / (1 - self.beta2**state.draws) * state.squares)

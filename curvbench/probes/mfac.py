"""M-FAC (Frantar, Kurtic and Alistarh 2021): the mean of outer products of the last gradients, solved by Woodbury."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher.stochastic import Statistic, batch_gradient
from curvbench.instance import Instance
from curvbench.operators import LowRank
from curvbench.parts.ranges import at_least_one, finite
from curvbench.parts.storage import appended
from curvbench.spec import About, Probe


class State(NamedTuple):
    """The window d of gradients, oldest first, (n, P), and its Gram matrix d d^T (n, n) in float64.

    ``factor``: the Cholesky factor of the damped Gram matrix. ``taken``: the updates so far.
    """

    window: Tensor
    gram: Tensor
    taken: int
    factor: Tensor | None = None


@dataclass(frozen=True)
class Mfac(Probe):
    """The mean of outer products of the last ``memory`` batch gradients.

    ``memory``: the largest number of gradients that are kept, the length of the window. ``count``: the number by which
    the sum of outer products is divided. ``window`` is the window's length, as if it had begun with zeros; ``filled``
    is the number of gradients that are kept. ``statistic``: the labels of the gradients. ``bg_data`` takes the data's
    labels, ``bg`` draws labels from the model. ``seed``: the seed of these draws. ``damping``: the damping.
    """

    memory: int = 32
    count: Literal["window", "filled"] = "window"
    statistic: Statistic = "bg_data"
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0
    damping: float = 1e-3

    is_mean_over_samples: ClassVar[bool] = False

    about = About(
        represents="N times the mean of g g^T over the window, g the mean gradients of its batches of N loss terms",
        damping="(F^ + damping I)^-1 by Woodbury; the gradient that is preconditioned stands in the window already",
        cost={
            "statistics": "P memory",
            "invert": "memory^3 / 6",
            "precondition": "2 P memory + memory^2",
            "memory": "P memory + 2 memory^2",
        },
        source="Frantar, Kurtic and Alistarh 2021 (arXiv 2107.03356), Eqs. 2 to 4",
        notes=(
            "The matrix is in the unit of the Fisher, N times that of the paper, and so is the damping: the public "
            "code's default 1e-5 with batches of 100 is damping=0.001, and its step is N times as long.",
            "The public code keeps 1,024 gradients, and counts the zeros of a window that is not full.",
            "With data labels and the whole batch all gradients of a fit at frozen weights are one: batch_size, or "
            "statistic=bg, makes them differ.",
        ),
        family="solvers",
        color="sky",
        formulas=(r"\hat F = \frac{N}{K} \sum_{k=1}^{K} \bar g_k \bar g_k^\top",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "memory", "updates", "batch_size")
        finite(self, "damping", zero=False)

    def init(self, instance: Instance) -> State:
        window = torch.zeros(0, instance.size, dtype=instance.dtype, device=instance.device)
        return State(window, window.new_zeros(0, 0, dtype=torch.float64), 0)

    def update(self, state: State, batch: Instance) -> State:
        row = batch_gradient(batch, self.statistic, self.seed, state.taken)
        window = appended(state.window, row, self.memory)
        products = window.double() @ row.double()
        kept = len(window) - 1
        gram = products.new_empty(kept + 1, kept + 1)
        gram[:kept, :kept] = state.gram[len(state.gram) - kept :, len(state.gram) - kept :]
        gram[kept], gram[:, kept] = products, products
        return State(window, gram, state.taken + 1)

    def refresh(self, state: State) -> State:
        return state._replace(factor=numerics.damped_cholesky(state.gram / self._divisor(state), self.damping))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        assert state.factor is not None, "refresh comes before precondition"
        along = (state.window @ gradient).double()[:, None] / self._divisor(state)
        solved = numerics.cholesky_solve(along, state.factor)[:, 0].to(gradient.dtype)
        return (gradient - solved @ state.window) / self.damping

    def operator(self, state: State) -> LowRank:
        weights = state.window.new_full((len(state.window),), 1 / self._divisor(state))
        return LowRank(state.window.T, weights)

    def _divisor(self, state: State) -> int:
        """The number of gradients over which the mean is taken."""
        return self.memory if self.count == "window" else len(state.window)

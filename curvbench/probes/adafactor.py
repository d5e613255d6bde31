"""Adafactor (Shazeer, Stern 2018): the diagonal of the Fisher as a product of its row and column means.

Of all matrices of rank one r c^T / mean(r) keeps the row and column sums of the diagonal Delta as a matrix (M, D). It
has the least I-divergence, the sum of Delta log(Delta / Delta^) - Delta + Delta^, and not the least Frobenius error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.stochastic import mean_gradient
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker, Operator
from curvbench.parts.diagonals import exact_diagonal
from curvbench.parts.mean_gradients import Source, SourcedProbe, matrices
from curvbench.parts.ranges import finite
from curvbench.spec import About


class Means(NamedTuple):
    """Row means (G, M) and column means (G, D) of a block's diagonal, and the root mean square of its parameters."""

    rows: Tensor
    columns: Tensor
    size: Tensor


class State(NamedTuple):
    """The means of each block, the number ``taken`` of updates, and the loss terms that multiply the means."""

    layers: list[Means]
    taken: int
    terms: int


@dataclass(frozen=True)
class Adafactor(SourcedProbe):
    """The diagonal of the Fisher, of rank one in each layer: the product of its row means and column means.

    ``source``: where the diagonal comes from. ``columns`` is the exact diagonal of F; ``gradients`` is the running
    average of the squared mean gradient, with the step of the optimizer. ``decay_power``: the exponent of the number of
    updates whose inverse is the weight of a new square. ``epsilon``: the smallest root of a second moment in the step
    of the optimizer. None means the spacing of the dtype, as in torch. ``clip``: the largest root mean square of a
    layer's step before it is scaled. ``least_scale``: the smallest root mean square of a layer's parameters, which
    scales its step.
    """

    source: Source = "columns"
    decay_power: float = 0.8
    epsilon: float | None = None
    clip: float = 1.0
    least_scale: float = 1e-3

    supports_ema = True
    about = About(
        represents="diag(r) (x) diag(c) / mean(r) per layer (and group): row and column means of diag(F), or of N v",
        damping="source=columns: (F^ + damping I)^-1, entry by entry; gradients: the root of v, at least epsilon",
        cost={
            "statistics": "[source = columns] N R S G M D + [source = gradients] 7 P / 2",
            "invert": "0",
            "precondition": "5 P / 2 + [source = gradients] P",
            "memory": "G (M + D)",
        },
        source="Shazeer and Stern 2018, Algorithm 4; source=gradients is torch.optim.Adafactor on matrices",
        notes=(
            "source=gradients: v is the average of the squared mean gradient, the last one with weight t^-decay_power. "
            "The step is g / sqrt(v), divided by its root mean square over clip if that is above 1, times the root "
            "mean square of the layer's parameters. It is not linear in g, so that no damped matrix exists.",
            "torch also bounds the learning rate by 1/sqrt(t), which is left to the schedule here; a rate of 0.01 "
            "meets this bound after 10,000 steps.",
            "A layer is one matrix here: the bias is its last column, a convolution has the matrix of its patches per "
            "group. torch factorizes the last two dimensions of a kernel, and keeps a bias apart and whole. A norm "
            "and any other vector are whole in both.",
            "In float32 torch raises the mean of r to 1.2e-7, so that gradients whose root mean square is below 3e-4 "
            "have too small a v there. Here only r c^T / mean(r) has a bound, as in float64.",
        ),
        family="smaller factors",
        color="blue",
        formulas=(
            r"\hat F_\ell = \frac{1}{\bar r}\,\mathrm{diag}(r) \otimes \mathrm{diag}(c)",
            r"\Delta = \mathrm{E}[W \circ W]",
            r"r_i = \frac{1}{D} \sum_j \Delta_{ij}",
            r"c_j = \frac{1}{M} \sum_i \Delta_{ij}",
            r"\bar r = \frac{1}{M} \sum_i r_i",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "decay_power")
        finite(self, "clip", "least_scale", zero=False)
        if self.epsilon is not None:
            finite(self, "epsilon", zero=False)

    @property
    def reads_columns(self) -> bool:
        return self.source == "columns"

    def update(self, state: State | None, batch: Instance) -> State:
        if self.reads_columns:
            exact = exact_diagonal(batch, self.fisher_type, self.mc_samples, self.seed)
            return State(self._means(batch, exact), 1, 1)
        taken = state.taken if state else 0
        gradient = mean_gradient(batch, self.statistic, self.seed, taken)
        means, weight = self._means(batch, gradient.square()), (taken + 1) ** -self.decay_power
        if state:
            means = [_averaged(*pair, weight) for pair in zip(state.layers, means, strict=True)]
        return State(means, taken + 1, batch.terms)

    def _means(self, batch: Instance, diagonal: Tensor) -> list[Means]:
        dtype = batch.dtype
        sizes = [theta.square().mean().sqrt() for theta in matrices(batch, batch.pack(batch.parameters))]
        parts = zip(matrices(batch, diagonal), sizes, strict=True)
        return [Means(v.mean(2).to(dtype), v.mean(1).to(dtype), size) for v, size in parts]

    @property
    def combines_by(self) -> Literal["mean", "gradient"] | None:  # type: ignore[override]
        """The step of the optimizer has no unit, so that the summed gradient is enough for it."""
        return "gradient" if not self.reads_columns and self.statistic == "bg_data" else super().combines_by

    def damping_unit(self, terms: int) -> float | None:
        return 1.0 if self.reads_columns else None

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        if self.reads_columns:
            return self.operator(state).solve(gradient, self.damping)
        parts = gradient.split([means.rows.numel() * means.columns.shape[1] for means in state.layers])
        return torch.cat([self._step(*pair) for pair in zip(state.layers, parts, strict=True)])

    def _step(self, means: Means, part: Tensor) -> Tensor:
        """The step of one layer, (G M D,)."""
        least = torch.finfo(part.dtype).eps if self.epsilon is None else self.epsilon
        moment = _scaled_rows(means)[:, :, None] * means.columns[:, None, :]
        u = part * moment.flatten().clamp_min(least**2).rsqrt()
        length = u.square().mean().sqrt() / self.clip
        return u * (means.size.clamp_min(self.least_scale) / length.clamp_min(1.0))

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([Kronecker.batched(state.terms * _scaled_rows(m), m.columns) for m in state.layers])

    def damped(self, state: State) -> Operator | None:
        return super().damped(state) if self.reads_columns else None


def _scaled_rows(means: Means) -> Tensor:
    """The row means over their mean, (G, M); zero where all are zero."""
    mean = means.rows.mean(1, keepdim=True)
    return means.rows / torch.where(mean > 0, mean, 1.0)


def _averaged(old: Means, new: Means, weight: float) -> Means:
    """Means in which the new ones have a weight; the size of the parameters is the present one."""
    return Means(old.rows.lerp(new.rows, weight), old.columns.lerp(new.columns, weight), new.size)

"""SOAP (Vyas et al. 2024): Adam in the eigenbases of Shampoo's moments, or of KL-Shampoo's (KL-SOAP, Lin et al. 2025).

One update in the order of the authors' code: the gradient's matrix V is rotated with the bases of the updates before,
Gamma = Q_L^T V Q_R; m and v take in V and Gamma * Gamma; the step is that of m over the root of v; the moments take in
V. A new basis is made at the beginning of the next update, so that a state has the basis in which its step is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal, RotatedDiagonal
from curvbench.parts import bases
from curvbench.parts.bases import Turned
from curvbench.parts.matrix_moments import Sample, Source, matrices, read, shapes
from curvbench.parts.mean_gradients import GradientsProbe
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About

Basis = Literal["shampoo", "kl"]


class Scaled(NamedTuple):
    """A layer's bases, and the uncorrected averages v of squares and m of gradients in them, (G, M, D)."""

    turned: Turned
    squares: Tensor
    momentum: Tensor


class State(NamedTuple):
    """Per layer its bases and averages; the ``calls`` so far, and the last batch's loss terms."""

    layers: list[Scaled]
    calls: int
    terms: int


@dataclass(frozen=True)
class Soap(GradientsProbe):
    """Adam's second moment in eigenbases of Shampoo's moments: a diagonal matrix between two rotations per layer.

    ``basis``: the moments whose eigenbases are followed. ``shampoo`` averages V V^T and V^T V, ``kl`` averages the
    moments of KL-Shampoo (KL-SOAP, whose step has no bias correction). ``statistic``: what moments and squares are
    made of. ``bg_data`` takes mean gradients with the data's labels, ``bg`` draws labels from the model, ``columns``
    takes the exact expectation over such draws. ``beta1``: the weight of the old gradient average. ``beta2``: the
    weight of the old squares and moments. ``epsilon``: a number added to the root of the uncorrected squares.
    ``basis_every``: the number of steps from one basis to the next. ``max_precond_dim``: the longest side that has a
    basis; a longer one keeps the identity. ``seed``: the seed of drawn labels.
    """

    basis: Basis = "shampoo"
    statistic: Source = "bg_data"
    beta1: float = 0.95
    beta2: float = 0.95
    epsilon: float = 1e-8
    basis_every: int = 10
    max_precond_dim: int = 10_000
    updates: int = 31
    batch_size: int | None = None
    seed: int = 0

    has_own_momentum = True
    is_layerwise = True
    about = About(
        represents="N (Q_L (x) Q_R) diag(v) (Q_L (x) Q_R)^T per layer (and group): v the corrected average of "
        "(Q_L^T V Q_R)^2 for mean gradients V; Q_L and Q_R follow the eigenvectors of averaged V V^T and V^T V",
        damping="epsilon is added to sqrt(v) without its bias correction; the step divides by that root, not by v",
        cost={
            "statistics": "2 G M D (M + D) + [basis = kl] G M D^2 + [statistic != bg_data] G M D (M + D)"
            " + (7 G (M^3 + D^3) / 3 + 2 G M D (M + D)) / basis_every",
            "invert": "0",
            "precondition": "G M D (M + D)",
            "memory": "2 G (M^2 + D^2) + 2 P",
        },
        source="Vyas et al. 2024 (arXiv 2409.11321), in the order of the authors' code; KL: Lin et al. 2025",
        notes=(
            "The first update only makes the bases: its step is 0 and the matrix is 0. The default of 31 updates is "
            "30 steps, so that the measured update is one that makes a basis, and the published cost spreads a basis "
            "over its steps; that of columns is not published. In training a basis comes every basis_every updates, "
            "and refresh_every has no meaning.",
            "A side longer than max_precond_dim keeps the identity. A bias alone and a norm's scale and shift have "
            "Adam's step with these weights. A bias is the last column of its weight's matrix, and a convolution is a "
            "matrix M x D, where public code has a basis for each of its dimensions.",
            "If a side has more rows than the gradients have had ranks, a part of its basis is arbitrary, so that "
            "another machine may find another matrix. One gradient repeated, as with the data's labels and no "
            "batch_size, has such a null space, where a step in float32 is rounding over an epsilon of the same size.",
        ),
        family="whitening",
        color="sky",
        formulas=(
            r"\hat F_\ell = N\,(Q_L \otimes Q_R)\,\mathrm{diag}(\hat v)\,(Q_L \otimes Q_R)^\top",
            r"\hat v = \frac{v}{1 - \beta_2^t}",
            r"v \leftarrow \beta_2 v + (1 - \beta_2)\,(Q_L^\top V Q_R)^{\circ 2}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "beta1", "beta2", zero=True)
        finite(self, "epsilon", zero=False)
        at_least_one(self, "basis_every", "max_precond_dim", "updates", "batch_size")

    def unsupported(self, instance: Instance) -> str | None:
        return bases.refusal(instance, self.statistic, self.max_precond_dim)

    def init(self, instance: Instance) -> State:
        zeros = torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)
        parts = matrices(zeros, shapes(instance, self.statistic))
        return State([Scaled(Turned(), part, part) for part in parts], 0, instance.terms)

    def update(self, state: State, batch: Instance) -> State:
        reader, steps = read(batch, self.statistic, self.seed, state.calls), state.calls - 1
        if steps < 0:
            has_sides = bases.sided(batch, self.statistic, self.max_precond_dim)
            firsts = [*enumerate(zip(has_sides, state.layers, strict=True))]
            layers = checked_together(lambda: [self._first(reader.of(i), has, old.squares) for i, (has, old) in firsts])
            return State(layers, 1, batch.terms)
        is_due = steps > 0 and steps % self.basis_every == 0
        current = [self._rebased(layer) for layer in state.layers] if is_due else state.layers
        parts = zip(current, bases.data_gradient(batch, reader, self.statistic), strict=True)
        layers = [self._taken(old, reader.of(i, *old.turned.bases), V) for i, (old, V) in enumerate(parts)]
        return State(layers, state.calls + 1, batch.terms)

    def _first(self, sample: Sample, has: tuple[bool, bool], zeros: Tensor) -> Scaled:
        make = bases.first_of_kl if self.basis == "kl" and any(has) else bases.first
        return Scaled(make(sample, has, self.beta2, zeros), zeros, zeros)

    def _rebased(self, layer: Scaled) -> Scaled:
        """The layer in its next bases; the squares are not rotated."""
        old, squares, momentum = layer
        new, squares = (bases.power_step(old), squares) if self.basis == "kl" else bases.sorted_step(old, squares)
        return Scaled(new, squares, new.into(old.back(momentum)))

    def _taken(self, layer: Scaled, sample: Sample, V: Tensor) -> Scaled:
        """The layer with the moments and squares of one more sample, whose bases are the layer's, and its gradient."""
        turned, squares, momentum = layer
        gradient = bases.rotated(turned, sample, V)
        average = bases.averaged_of_kl if turned.values else bases.averaged
        squares = torch.lerp(sample.squares, squares, self.beta2)
        return Scaled(average(turned, sample, self.beta2), squares, torch.lerp(gradient, momentum, self.beta1))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        scale = self._correction(state.calls - 1)
        steps = (t.back(scale * momentum / (v.sqrt() + self.epsilon)) for t, v, momentum in state.layers)
        return torch.cat([step.flatten() for step in steps])

    def _correction(self, steps: int) -> float:
        if self.basis == "kl" or steps < 1:
            return 1.0
        return (1 - self.beta2**steps) ** 0.5 / (1 - self.beta1**steps)

    def operator(self, state: State) -> BlockDiagonal:
        scale = state.terms / (1 - self.beta2 ** max(1, state.calls - 1))
        return BlockDiagonal([RotatedDiagonal(*turned.bases, scale * squares) for turned, squares, _ in state.layers])

"""KL-Shampoo (Lin et al. 2025): Shampoo's factors by the Kullback-Leibler divergence, without an exponent to choose.

Each side's moment is that of the gradient whitened by the other side, S_L = E[V B_R^-1 V^T] / D and
S_R = E[V^T B_L^-1 V] / M, so that the product of both is the Kronecker product nearest to E[v v^T] in this divergence.
The inverses are those of Q diag(lambda) Q^T, whose eigenvalues are averages of their own while the bases follow S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, RotatedDiagonal
from curvbench.parts import bases
from curvbench.parts.bases import Turned
from curvbench.parts.matrix_moments import Sample, Source, matrices, read, shapes
from curvbench.parts.mean_gradients import GradientsProbe
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About, Unsupported


class Whitened(NamedTuple):
    """A layer's sides, and their eigenvalues ``before`` the last gradient, with which its step is made.

    ``momentum``: the averaged gradient in the bases, (G, M, D).
    """

    turned: Turned
    before: tuple[Tensor, ...]
    momentum: Tensor


class State(NamedTuple):
    """Per layer its sides and average; the ``calls`` so far, and the last batch's loss terms."""

    layers: list[Whitened]
    calls: int
    terms: int


@dataclass(frozen=True)
class Klshampoo(GradientsProbe):
    """The Kronecker product nearest to the gradients' second moment in Kullback-Leibler divergence.

    ``statistic``: what the moments are made of. ``bg`` takes mean gradients with labels drawn from the model,
    ``bg_data`` takes the data's labels, ``columns`` takes the exact expectation over drawn labels. ``beta1``: the
    weight of the old gradient average, which has no bias correction. ``beta2``: the weight of the old moments and
    eigenvalues. ``epsilon``: a number added to the root of the matrix. ``basis_every``: the number of steps from one
    basis to the next. ``clamp``: whether 1 / sqrt(eigenvalue) is at most max(10, min(n, 4000)) on a side of n rows, as
    in public code. ``max_precond_dim``: the longest side that has a basis; a longer one keeps the identity as its
    basis. ``seed``: the seed of drawn labels.
    """

    statistic: Source = "bg"
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    basis_every: int = 10
    clamp: bool = True
    max_precond_dim: int = 10_000
    updates: int = 201
    batch_size: int | None = None
    seed: int = 0

    has_own_momentum = True
    is_layerwise = True
    about = About(
        represents="N (Q_L diag(l_L) Q_L^T) (x) (Q_R diag(l_R) Q_R^T) per layer (and group): at its fixed point the "
        "Kronecker product nearest to E[v v^T] in KL divergence, v mean gradients",
        damping="epsilon is added to the root of the matrix; the step divides by that root, not by the matrix",
        cost={
            "statistics": "2 G M D (M + D) + G M D^2 + [statistic != bg_data] G M D (M + D)"
            " + (7 G (M^3 + D^3) / 3 + 2 G M D (M + D)) / basis_every",
            "invert": "0",
            "precondition": "G M D (M + D)",
            "memory": "2 G (M^2 + D^2) + 2 G (M + D) + P",
        },
        source="Lin et al. 2025 (arXiv 2509.03378), in the order of the authors' code",
        notes=(
            "The first update only makes the bases: its step is 0. Eigenvalues begin with 0.1, which an average "
            "forgets as beta2^t. A step has the bases and eigenvalues before its own gradient. In training a basis "
            "comes every basis_every updates, and refresh_every has no meaning. The published cost is that "
            "of gradients, not of columns.",
            "The average needs more than M / D + D / M different gradients of full rank: one batch with the data's "
            "labels is one gradient, so that drawn labels are the default of a measurement. Training by the authors' "
            "code is statistic=bg_data.",
            "The first basis of a null space, into which later gradients reach, is what the rounding of a processor "
            "makes: numbers of drawn labels differ by about a percent between processors.",
            "A side longer than max_precond_dim, and both sides of a bias alone or of a norm's scale and shift, have "
            "eigenvalues on the coordinates. A bias is the last column of its weight's matrix, and a convolution is a "
            "matrix M x D. Digits are those of the network, where public code rounds to bfloat16.",
        ),
        family="whitening",
        color="brown",
        formulas=(
            r"\hat F_\ell = N\, B_L \otimes B_R",
            r"B_L = \frac{1}{D} \langle V B_R^{-1} V^\top \rangle",
            r"B_R = \frac{1}{M} \langle V^\top B_L^{-1} V \rangle",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "beta1", "beta2", zero=True)
        finite(self, "epsilon", zero=False)
        at_least_one(self, "basis_every", "max_precond_dim", "updates", "batch_size")

    def unsupported(self, instance: Instance) -> str | None:
        return bases.refusal(instance, self.statistic, self.max_precond_dim)

    def fit(self, instance: Instance) -> State:
        if self.statistic == "bg_data" and self.batch_size is None and self.updates > 1:
            raise Unsupported(
                "every update would see one and the same gradient, to which no Kronecker product is nearest: give "
                "statistic=bg, or a batch_size"
            )
        state: State = super().fit(instance)
        return state

    def init(self, instance: Instance) -> State:
        zeros = torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)
        parts = matrices(zeros, shapes(instance, self.statistic))
        return State([Whitened(Turned(), (), part) for part in parts], 0, instance.terms)

    def update(self, state: State, batch: Instance) -> State:
        reader, steps = read(batch, self.statistic, self.seed, state.calls), state.calls - 1
        if steps < 0:
            firsts = zip(bases.sided(batch, self.statistic, self.max_precond_dim), state.layers, strict=True)
            made = [(bases.first_of_kl(reader.of(i), h, self.beta2, o.momentum), o) for i, (h, o) in enumerate(firsts)]
            return State([Whitened(new, new.values, old.momentum) for new, old in made], 1, batch.terms)
        is_due = steps > 0 and steps % self.basis_every == 0
        current = [self._rebased(layer) for layer in state.layers] if is_due else state.layers
        parts = zip(current, bases.data_gradient(batch, reader, self.statistic), strict=True)
        layers = [self._taken(old, reader.of(i, *old.turned.bases), V) for i, (old, V) in enumerate(parts)]
        return State(layers, state.calls + 1, batch.terms)

    def _rebased(self, layer: Whitened) -> Whitened:
        new = bases.power_step(layer.turned)
        return Whitened(new, layer.before, new.into(layer.turned.back(layer.momentum)))

    def _taken(self, layer: Whitened, sample: Sample, V: Tensor) -> Whitened:
        """The layer with the moments of one more sample, whose bases are the layer's, and with its gradient."""
        old = layer.turned
        gradient = bases.rotated(old, sample, V)
        new = bases.averaged_of_kl(old, sample, self.beta2, self.clamp)
        return Whitened(new, old.values, torch.lerp(gradient, layer.momentum, self.beta1))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        steps = (t.back(m / (_product(before).sqrt() + self.epsilon)) for t, before, m in state.layers)
        return torch.cat([step.flatten() for step in steps])

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([RotatedDiagonal(*t.bases, state.terms * _product(t.values)) for t, _, _ in state.layers])


def _product(values: tuple[Tensor, ...]) -> Tensor:
    """The eigenvalues of the Kronecker product, (G, M, D)."""
    return values[0][:, :, None] * values[1][:, None]

"""PSGD with Kronecker preconditioners (Li 2018, Li 2024): gradients whitened by P = P_L (x) P_R, P_L = Q_L^T Q_L.

A step multiplies Q_L by I - rate (E - E') / |E + E'|, and Q_R alike, both from the old Q. Of a mean gradient V (M, D)

    EQ:   E = A A^T with A = Q_L V Q_R^T,  E' = B B^T with B = Q_L^-T Z Q_R^-1 and Z ~ N(0, I); on the left of Q_L
    QEQ:  E = A A^T with A = P_L V P_R,    E' = D I; on the right of Q_L

EQ keeps Q triangular and ends at the least E[v^T P v] + tr P^-1. QEQ ends where P^-2 is the KL-optimal Kronecker
product of E[v v^T]. Without the Kronecker structure P is E[v v^T]^(-1/2) under both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.stochastic import Statistic, draw_seed, mean_gradient
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts import whitening
from curvbench.parts.factors import is_cut, own_matrix
from curvbench.parts.mean_gradients import GradientsProbe
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.parts.storage import too_large
from curvbench.parts.whitening import Pair
from curvbench.spec import About, Layer, StepRule

Criterion = Literal["EQ", "QEQ"]
_NOISE = 2**62  # apart from the seeds of label draws


class State(NamedTuple):
    """Per layer Q_L (G, M, M) and Q_R (G, D, D), or their diagonals (G, n); updates so far; the last batch's terms."""

    roots: list[Pair]
    taken: int
    terms: int


@dataclass(frozen=True)
class Psgd(GradientsProbe):
    """Whitening of batch gradients by a Kronecker product that is fitted by multiplicative steps.

    ``criterion``: what the fit seeks. ``EQ`` is the least E[v^T P v] + tr P^-1 with triangular Q, ``QEQ`` is the KL
    criterion. ``rate``: the size of a step of Q relative to Q. ``noise``: the standard deviation of the noise that is
    added to each gradient, which bounds P where gradients vanish. ``statistic``: the labels of the gradients.
    ``bg_data`` takes the data's labels, ``bg`` draws labels from the model. ``seed``: the seed of all draws.
    """

    criterion: Criterion = "EQ"
    rate: float = 0.1
    noise: float = 1e-9
    statistic: Statistic = "bg_data"
    updates: int = 500
    batch_size: int | None = None
    seed: int = 0

    is_layerwise = True
    rule: ClassVar[StepRule] = StepRule(momentum="average")
    about = About(
        represents="N P^-2, P = Q_L^T Q_L (x) Q_R^T Q_R per layer (and group), N the loss terms of a batch",
        damping="noise is added to the gradients; the step is the inverse root of the matrix, P V",
        cost={
            "statistics": "([criterion = EQ] 7 + [criterion = QEQ] 6) G M D (M + D) / 2 + G (M^3 + D^3)",
            "invert": "0",
            "precondition": "2 G M D (M + D)",
            "memory": "G (M^2 + D^2)",
        },
        source="Li 2018 and 2024, and public code: kron_torch has EQ, psgd_torch both (QEQ is its default today)",
        notes=(
            "Q starts at the identity and moves by a share of rate in an update: with few updates P still carries its "
            "start. A whole batch repeated has one gradient, whose outer product P whitens: give batch_size, or "
            "statistic=bg.",
            "Public code whitens the momentum, clips the step's RMS at 1.1, updates Q at 3 % of the later steps, and "
            "makes the longer side of a matrix diagonal unless max_skew is raised. Here Q is fitted to gradients, both "
            "of its sides are dense, and `updates` counts steps of Q. A lookup's input side, and a side with more than "
            "8,192 rows, is diagonal.",
        ),
        family="whitening",
        color="blue",
        formulas=(
            r"\hat F_\ell = N P^{-2}",
            r"P = Q_L^\top Q_L \otimes Q_R^\top Q_R",
            r"P = \mathrm{arg}\,\min\ \langle v^\top P v \rangle + \mathrm{tr}\, P^{-1}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "noise")
        fraction(self, "rate")
        at_least_one(self, "updates", "batch_size")

    def unsupported(self, instance: Instance) -> str | None:
        shapes = [root for layer in instance.layers for root in _shapes(layer, instance)]
        return too_large("factors Q_L and Q_R", sum(map(math.prod, shapes)), instance.dtype)

    def init(self, instance: Instance) -> State:
        def identity(shape: tuple[int, ...]) -> Tensor:
            ones = torch.ones(shape[:2], dtype=instance.dtype, device=instance.device)
            return ones if len(shape) == 2 else ones.diag_embed()

        pairs = (map(identity, _shapes(layer, instance)) for layer in instance.layers)
        return State([(left, right) for left, right in pairs], 0, instance.terms)

    def update(self, state: State, batch: Instance) -> State:
        mean = mean_gradient(batch, self.statistic, self.seed, state.taken)
        generator = torch.Generator().manual_seed(draw_seed(self.seed, state.taken) ^ _NOISE)
        draws = torch.randn(self._draws, len(mean), dtype=torch.float64, device="cpu", generator=generator).to(mean)
        vectors = (mean + self.noise * draws[0], *draws[1:])
        roots = []
        for layer, pair in zip(batch.layers, state.roots, strict=True):
            parts = (vector[layer.slice].reshape(own_matrix(layer, batch)) for vector in vectors)
            roots.append(self._moved(pair, *parts))
        return State(roots, state.taken + 1, batch.terms)

    @property
    def _draws(self) -> int:
        """The normal vectors of an update: noise, and for EQ also Z."""
        return 2 if self.criterion == "EQ" else 1

    def _moved(self, roots: Pair, V: Tensor, *Z: Tensor) -> Pair:
        is_eq = self.criterion == "EQ"
        left, right = whitening.eq_terms(roots, V, *Z) if is_eq else whitening.qeq_terms(roots, V)
        step = whitening.eq_step if is_eq else whitening.qeq_step
        return step(roots[0], left, self.rate), step(roots[1], right, self.rate)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        shapes = [(len(left), left.shape[-1], right.shape[-1]) for left, right in state.roots]
        parts = gradient.split([math.prod(shape) for shape in shapes])
        made = zip(state.roots, parts, shapes, strict=True)
        return torch.cat([whitening.whitened(roots, part.reshape(shape)).flatten() for roots, part, shape in made])

    def operator(self, state: State) -> BlockDiagonal:
        halves = (map(whitening.inverse, pair) for pair in state.roots)
        return BlockDiagonal([Kronecker.batched(state.terms * _square(L), _square(R)) for L, R in halves])

    def damped(self, state: State) -> BlockDiagonal:
        """P^-1, which is F^^(1/2) / sqrt(N)."""
        return BlockDiagonal([Kronecker.batched(*map(whitening.inverse, pair)) for pair in state.roots])


def _shapes(layer: Layer, instance: Instance) -> tuple[tuple[int, ...], ...]:
    """The shapes of Q_L and Q_R, or of their diagonals."""
    G, M, D = own_matrix(layer, instance)
    return (G, M) if is_cut(M) else (G, M, M), (G, D) if is_cut(D) or layer.kind == "lookup" else (G, D, D)


def _square(side: Tensor) -> Tensor:
    """The square of symmetric matrices (G, n, n), or of diagonals (G, n)."""
    return side.square() if side.ndim == 2 else side @ side

"""Muon (Jordan et al. 2024): momentum, whose matrix is replaced by its polar factor, layer by layer.

With the mean gradient V of the batch, m <- momentum m + (1 - momentum) V, and U is m, or (1 - momentum) V + momentum m
with Nesterov's momentum. The step is a multiple of the polar factor of U.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts.matrix_moments import matrices, shapes
from curvbench.parts.polar import newton_schulz, polar_factor
from curvbench.parts.ranges import at_least_one, fraction
from curvbench.spec import About, Probe, StepRule


class State(NamedTuple):
    """Per layer the momentum m and the matrix U, (G, M, D), neither corrected for the start at zero.

    ``taken``: the number of updates so far. ``terms``: the loss terms of the last batch.
    """

    momenta: list[Tensor]
    matrices: list[Tensor]
    taken: int
    terms: int


@dataclass(frozen=True)
class Muon(Probe):
    """The second moment of the averaged gradient matrix on the smaller side; the step is that matrix's polar factor.

    ``momentum``: the weight of the old average. ``nesterov``: whether the last gradient is averaged in once more.
    ``polar_by``: how the polar factor is computed. ``exact`` takes eigenvectors of the smaller Gram matrix,
    ``newton-schulz`` the rounds of the public code, whose singular values lie between 0.7 and 1.2. ``ns_steps``: the
    number of these rounds. ``scale``: the multiple of the polar factor. ``original`` is sqrt(max(1, M/D)),
    ``match_rms_adamw`` is 0.2 sqrt(max(M, D)), ``none`` is 1.
    """

    momentum: float = 0.95
    nesterov: bool = True
    polar_by: Literal["exact", "newton-schulz"] = "exact"
    ns_steps: int = 5
    scale: Literal["original", "match_rms_adamw", "none"] = "original"
    updates: int = 32
    batch_size: int | None = None

    statistic = "bg_data"
    has_own_momentum: ClassVar[bool] = True
    combines_by = "gradient"
    is_layerwise = True
    is_mean_over_samples: ClassVar[bool] = False
    sets_lengths = True
    rule = StepRule(others="adamw")

    about = About(
        represents="(N/D) U U^T (x) I_D per layer (and group), (N/M) I_M (x) U^T U for M > D; U averages gradients",
        damping="none: the step is a multiple of the polar factor of U, which the inverse root of the matrix gives U",
        cost={
            "statistics": "P + [nesterov = 1] P",
            "invert": "0",
            "precondition": "G min(M, D) ([polar_by = exact] (2 M D + 11 min(M, D)^2 / 2)"
            " + [polar_by != exact] ns_steps (2 M D + min(M, D)^2))",
            "memory": "P + [nesterov = 1] P",
        },
        source="Jordan et al. 2024 and its code; torch.optim.Muon for the scales",
        notes=(
            "The step has the same length for every gradient and knows of the Fisher what one gradient tells: read its "
            "directions, best with a rate per layer (direction.quality_rates).",
            "In training AdamW takes every parameter that is no weight of a linear layer or a convolution, as in the "
            "public code, which leaves the last layer to AdamW too. A measurement of all parameters takes the polar "
            "factor of embeddings and vectors as well: measure with parameters=weights what Muon trains.",
            "A bias is the last column of its weight, and a convolution is a matrix M x D, with a polar factor per "
            "group. The public code has bfloat16 in its rounds, which moves a step by 2 to 3 %.",
        ),
        family="whitening",
        color="green",
        formulas=(
            r"\hat F_\ell = \frac{N}{D}\, U U^\top \otimes I_D \quad (M \le D)",
            r"\hat F_\ell = \frac{N}{M}\, I_M \otimes U^\top U \quad (M > D)",
            r"p_\ell = \sqrt{\max(1, M/D)}\; U (U^\top U)^{-1/2}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "momentum", zero=True)
        at_least_one(self, "ns_steps", "updates", "batch_size")

    def unsupported(self, instance: Instance) -> str | None:
        if any(layer.level == 0 for layer in instance.layers):
            return None
        return "muon makes matrices orthogonal, and this model has no weight of a linear layer or a convolution"

    def init(self, instance: Instance) -> State:
        zeros = torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)
        start = matrices(zeros, shapes(instance))
        return State(start, start, 0, instance.terms)

    def update(self, state: State, batch: Instance) -> State:
        new = matrices(batch.gradient(), shapes(batch))
        momenta = self._averaged(state.momenta, new)
        stepping = self._averaged(momenta, new) if self.nesterov else momenta
        return State(momenta, stepping, state.taken + 1, batch.terms)

    def _averaged(self, old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
        return [(self.momentum * m).add(V, alpha=1 - self.momentum) for m, V in zip(old, new, strict=True)]

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        return torch.cat(checked_together(lambda: [self._step(U).flatten() for U in state.matrices]))

    def _step(self, U: Tensor) -> Tensor:
        polar = polar_factor(U) if self.polar_by == "exact" else newton_schulz(U, self.ns_steps)
        return polar if (scale := self._scale(*U.shape[1:])) == 1 else scale * polar

    def _scale(self, M: int, D: int) -> float:
        match self.scale:
            case "original":
                return max(1.0, M / D) ** 0.5
            case "match_rms_adamw":
                return 0.2 * max(M, D) ** 0.5
            case "none":
                return 1.0

    def operator(self, state: State) -> BlockDiagonal:
        weight = 1 - self.momentum ** (state.taken + self.nesterov)  # of all gradients in U
        return BlockDiagonal([_one_sided(U / weight, state.terms) for U in state.matrices])


def _one_sided(U: Tensor, terms: int) -> Kronecker:
    """The projection of N vec(U) vec(U)^T on X (x) I, or on I (x) X for M > D."""
    G, M, D = U.shape
    if M > D:
        return Kronecker.batched(U.new_ones(G, M), (terms / M) * (U.mT @ U))
    return Kronecker.batched((terms / D) * (U @ U.mT), U.new_ones(G, D))

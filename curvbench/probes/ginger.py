"""Ginger: a running average of batch-gradient outer products, truncated to rank ``rank`` at every step.

The batch gradient is Eq. 8, with labels drawn from the model. ``update_form`` ``direct`` is the recursion on the
eigenvalues themselves; ``fix_a`` and ``fix_b`` are Eqs. 15 to 18 repaired in the variables of the paper and of its
public code, equal to ``direct`` in exact arithmetic; ``printed`` is Algorithm 1 as it stands, which is no running
average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench.fisher.stochastic import Statistic, batch_gradient
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, LowRank, Operator
from curvbench.parts import brand
from curvbench.parts.ranges import at_least_one, finite, fraction
from curvbench.spec import About, Probe, StepRule

Scope = Literal["joint", "per_tensor"]


class State(NamedTuple):
    """``blocks``: per block an orthonormal basis (P, K) and its values (K,), K at most the rank. ``taken``: updates."""

    blocks: list[brand.Eigen]
    taken: int


@dataclass(frozen=True)
class Ginger(Probe):
    """A rank-tau running average of batch-gradient outer products, in one block or one per layer.

    ``rank``: the rank of every block. ``decay``: the weight of the old average, which starts at zero. ``scope``: what a
    block spans. ``per_tensor`` keeps one block per layer's matrix [W | b]. ``update_form``: the recursion. ``direct``
    acts on the eigenvalues; ``fix_a`` and ``fix_b`` act through the inverse, each repaired in its own way; ``printed``
    is Algorithm 1 as it stands. ``bc``: whether the average is divided by 1 - decay^t. ``seed``: the seed of the label
    draws. ``damping``: the damping, which is added outside the average.
    """

    rank: int = 16
    decay: float = 0.99
    scope: Scope = "joint"
    update_form: brand.Form = "direct"
    bc: bool = False
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0
    damping: float = 1e-3

    statistic: ClassVar[Statistic] = "bg"  # type: ignore[misc]
    rule = StepRule(momentum="average", clip=1.0)

    about = About(
        represents="U diag(sigma) U^T: a running average of d d^T, d the batch gradient, cut to rank at every update",
        damping="(damping I + U diag(sigma) U^T)^-1, outside the average",
        cost={
            "statistics": "P rank (rank + 1) + 3 P rank",
            "invert": "0",
            "precondition": "2 P rank",
            "memory": "P rank + rank^2",
        },
        source="Ginger (TMLR submission): Eqs. 7, 8, 14 to 18, Algorithm 1; the rank-one update: Brand 2006",
        notes=(
            "Trained, every entry of (damping I + U diag(sigma) U^T)^-1 m is cut to [-1, 1], as in the public code; "
            "the paper has no clip. Of an entry that is cut the sign alone is left: about half of them after 60 steps "
            "with damping=0.001 on the digits MLP, none with 0.1. Directions are measured without the clip.",
        ),
        errata=("E-G",),
        family="low rank",
        color="sky",
        formulas=(
            r"\hat F_t = \mathcal{T}_K\left(\alpha \hat F_{t-1} + (1 - \alpha)\, d_t d_t^\top\right)",
            r"\hat F_0 = 0",
            r"d = \sqrt{N}\,\bar g(\hat y)",
            r"\mathcal{T}_K(X) = \mathrm{arg}\,\min_{\mathrm{rank}\,Y \le K} \|X - Y\|_F",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rank", "updates", "batch_size")
        fraction(self, "decay")
        finite(self, "damping", zero=self.update_form == "direct")

    def unsupported(self, instance: Instance) -> str | None:
        if self.rank <= instance.size:
            return None
        return f"rank {self.rank} is more than the {instance.size} parameters"

    def init(self, instance: Instance) -> State:
        sizes = [layer.size for layer in instance.layers] if self.scope == "per_tensor" else [instance.size]
        empty = torch.zeros(0, dtype=instance.dtype, device=instance.device)
        return State([(empty.new_zeros(size, 0), empty) for size in sizes], 0)

    def update(self, state: State, batch: Instance) -> State:
        gradient = batch_gradient(batch, self.statistic, self.seed, state.taken)
        parts = gradient.split([len(basis) for basis, _ in state.blocks])
        return State([self._updated(*b, part) for b, part in zip(state.blocks, parts, strict=True)], state.taken + 1)

    def _updated(self, basis: Tensor, values: Tensor, vector: Tensor) -> brand.Eigen:
        if self.update_form == "direct":
            return brand.ema(basis, values, vector, self.decay, self.rank)
        return brand.ema_by_inverse(basis, values, vector, self.decay, self.rank, self.damping, self.update_form)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        if self.damping == 0:
            return self.operator(state).solve(gradient, 0.0)
        parts = gradient.split([len(basis) for basis, _ in state.blocks])
        pairs = zip(state.blocks, parts, strict=True)
        return torch.cat(
            [brand.damped_inverse(b, self._weights(v, state.taken), part, self.damping) for (b, v), part in pairs]
        )

    def operator(self, state: State) -> Operator:
        blocks = [LowRank(basis, self._weights(values, state.taken)) for basis, values in state.blocks]
        return blocks[0] if len(blocks) == 1 else BlockDiagonal(blocks)

    def _weights(self, values: Tensor, count: int) -> Tensor:
        """Eigenvalues as the operator uses them: negative values, from ``printed`` or from rounding, are set to 0."""
        return values.clamp_min(0) / (1 - self.decay**count if self.bc and count else 1.0)

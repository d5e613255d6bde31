"""THOR: K-FAC whose factors are cut to diagonal blocks (Chen et al. 2021).

Each block is damped by sqrt(damping) and inverted on its own. The 128 rows and the square root follow the public code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Dense, Diagonal, Operator
from curvbench.parts.cotangents import add_all
from curvbench.parts.cut import Cut, CutMoment, cut_inputs, nearest_cut
from curvbench.parts.factors import LARGEST_SIDE, Block, KroneckerDamping, is_cut
from curvbench.parts.others import NOTE, Other, OtherMoment, Others, damped_inverse
from curvbench.parts.roles import of_roles
from curvbench.spec import About, FisherProbe, Layer
from curvbench.states.ranks import shared_map


class State(NamedTuple):
    """Per layer the cut factors (of a tied block those of each role) or a vector's block, and their damped inverses."""

    factors: list[Cut | tuple[Cut, ...] | Other]
    inverses: Sequence[Cut | Other] = ()


@dataclass(frozen=True)
class Thor(FisherProbe):
    """K-FAC with factors cut to diagonal blocks.

    ``split``: the number of rows of a block. With one block the matrix is K-FAC's. ``others``: what a vector has (a
    norm's scale and shift, positions, and any other parameter without a product). ``diagonal`` is its exact diagonal,
    ``unit`` an exact block per channel (of scale and shift), ``block`` its whole exact block.
    """

    split: int = 128
    others: Others = "diagonal"

    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True

    about = About(
        represents="B (x) A per layer with A and B of K-FAC (expand) cut to diagonal blocks of split rows",
        damping="sqrt(damping) I is added to both factors, each block inverted on its own",
        cost={
            "statistics": "G S (N D min(D, split) + N R M min(M, split))",
            "invert": "G (D min(D, split)^2 + M min(M, split)^2) / 2",
            "precondition": "G M D (min(M, split) + min(D, split))",
            "memory": "2 G (D min(D, split) + M min(M, split))",
        },
        source="Chen et al. 2021; block size and damping follow the public code",
        notes=(
            NOTE,
            "The paper refreshes a layer where the trace of its damped matrix has changed by more than a share, and "
            "leaves it alone for good below another one; neither threshold is known here. THOR does not do so here: a "
            "training refreshes every layer each refresh_every steps, and its seconds are those of that.",
        ),
        family="smaller factors",
        color="red",
        formulas=(
            r"\hat F_\ell = \mathrm{bd}_m(B) \otimes \mathrm{bd}_m(A)",
            r"\mathrm{bd}_m(X) = \bigoplus_k X_{kk}",
            r"X_{kk} \in \mathbb{R}^{m \times m}",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split < 1 or is_cut(self.split):
            raise ValueError(f"split must lie between 1 and {LARGEST_SIDE}, got {self.split}")

    def update(self, state: State | None, batch: Instance) -> State:
        tape = batch.tape()
        sums = {name: self._sum(role) for name, role in tape.roles.items()}
        add_all(sums, batch, tape, self.fisher_type, self.mc_samples, self.seed)
        made: dict[str, Any] = {name: moment.mean(batch.terms) for name, moment in sums.items()}
        for name, role in tape.roles.items():
            if role.kind != "vector":
                made[name] = Cut(made[name], cut_inputs(role, tape.inputs[name], self.split, batch.dtype))
        return State([of_roles(layer, made, Cut.turned) for layer in batch.layers])

    def _sum(self, role: Layer) -> OtherMoment | CutMoment:
        return OtherMoment(role, self.others) if role.kind == "vector" else CutMoment(role, self.split)

    def refresh(self, state: State) -> State:
        return state._replace(inverses=shared_map(self._inverse, _represented(state)))

    def _inverse(self, block: Cut | Other) -> Cut | Other:
        return block.inverse(self.damping**0.5) if isinstance(block, Cut) else damped_inverse(block, self.damping)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([_size(block) for block in state.inverses])
        return torch.cat([_applied(block, part) for block, part in zip(state.inverses, parts, strict=True)])

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(_blocks(state))

    def damped(self, state: State) -> Operator:
        return KroneckerDamping(self.damping, "factored").damped(_blocks(state))


def _represented(state: State) -> list[Cut | Other]:
    """The represented block of every layer, of several roles the product nearest to their sum."""
    return [part if isinstance(part, Cut | Diagonal | Dense) else nearest_cut(part) for part in state.factors]


def _blocks(state: State) -> list[Block]:
    """The represented blocks, with zeros outside the blocks of the factors."""
    return [block.whole() if isinstance(block, Cut) else block for block in _represented(state)]


def _size(block: Cut | Other) -> int:
    return math.prod(block.layout) if isinstance(block, Cut) else block.size


def _applied(block: Cut | Other, part: Tensor) -> Tensor:
    return block.apply(part) if isinstance(block, Cut) else block.matvec(part)

"""SKFAC: K-FAC of the current batch whose factors are never formed (Tang et al. 2021).

A factor is U U^T with one column per sample, because inputs and gradients are reduced over the positions of a layer.
Its damped inverse is (I - U (s I + U^T U)^-1 U^T) / s with s = sqrt(damping), by Sherman-Morrison-Woodbury. Only the
paper's abstract is known here. It reduces a convolution by "Spatial Subsampling" or "Reduce Sum"; our reading is that
inputs are averaged and gradients summed, as in K-FAC's ``reduce``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.numerics import checked_together
from curvbench.operators import BlockDiagonal, Operator
from curvbench.parts.factors import Block, KroneckerDamping, has_diagonal_inputs, is_cut
from curvbench.parts.others import NOTE, Other, OtherMoment, Others, damped_inverse
from curvbench.parts.patch_sums import mean_patch
from curvbench.parts.roles import of_roles
from curvbench.parts.roots import Root, Roots, RootsInverse, nearest_roots, root_of
from curvbench.spec import About, FisherProbe, Layer


class State(NamedTuple):
    """Per layer the roots of both factors, or a vector's block, and their damped inverses."""

    layers: list[Roots | Other]
    inverses: Sequence[RootsInverse | Other] = ()


@dataclass(frozen=True)
class Skfac(FisherProbe):
    """K-FAC with reduced positions and factored damping, inverted through the samples of the batch.

    ``others``: what a vector has (a norm's scale and shift, positions, and any other parameter without a product).
    ``diagonal`` is its exact diagonal, ``unit`` an exact block per channel (of scale and shift), ``block`` its whole
    exact block.
    """

    others: Others = "diagonal"

    is_layerwise = True
    about = About(
        represents="B (x) A per layer as in K-FAC with reduced positions; the step never forms B and A",
        damping="sqrt(damping) I is added to both factors, each inverted by Woodbury; damping must be above zero",
        cost={
            "statistics": "G S (N D + N R M)",
            "invert": "G (N^2 D + (N R)^2 M + (N^3 + (N R)^3) / 6)",
            "precondition": "G (2 (N + N R) M D + N^2 M + (N R)^2 D)",
            "memory": "G (N D + N R M + N^2 + (N R)^2)",
        },
        source="Tang et al. 2021; the reduction of positions is how it is understood here, not read in the paper",
        notes=(NOTE,),
        family="smaller factors",
        color="sky",
        formulas=(
            r"\hat F_\ell = B \otimes A",
            r"A = \frac{1}{N} \sum_n \bar a_n \bar a_n^\top",
            r"B = \frac{1}{N} \sum_{n,r} \tilde g_{nr} \tilde g_{nr}^\top",
            r"\bar a_n = \frac{1}{S} \sum_s a_{ns}",
            r"\tilde g_{nr} = \sum_s g_{nsr}",
        ),
    )

    def update(self, state: State | None, batch: Instance) -> State:
        tape = batch.tape()
        sums = {name: self._sum(role) for name, role in tape.roles.items()}
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for name, B_NGMS in slopes.items():
                sums[name].add(B_NGMS)
        made: dict[str, Any] = {name: moment.mean(batch.terms) for name, moment in sums.items()}
        for name, role in tape.roles.items():
            if role.kind != "vector":
                means = mean_patch(role, tape.inputs[name]).to(batch.dtype)
                made[name] = Roots(made[name], root_of(means, batch.samples, has_diagonal_inputs(role)))
        held = [of_roles(layer, made, Roots.turned) for layer in batch.layers]
        return State([nearest_roots(part) if isinstance(part, tuple) else part for part in held])

    def _sum(self, role: Layer) -> OtherMoment | OutputRows:
        return OtherMoment(role, self.others) if role.kind == "vector" else OutputRows(is_cut(role.outputs))

    def refresh(self, state: State) -> State:
        if not self.damping > 0:
            raise ValueError("a factor with fewer samples than entries is singular: give a damping above zero")
        return state._replace(inverses=checked_together(lambda: [self._inverse(block) for block in state.layers]))

    def _inverse(self, block: Roots | Other) -> RootsInverse | Other:
        return block.inverse(self.damping**0.5) if isinstance(block, Roots) else damped_inverse(block, self.damping)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([block.size for block in state.inverses])
        return torch.cat([block.matvec(part) for block, part in zip(state.inverses, parts, strict=True)])

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(_blocks(state))

    def damped(self, state: State) -> Operator:
        return KroneckerDamping(self.damping, "factored").damped(_blocks(state))


def _blocks(state: State) -> list[Block]:
    """The represented blocks, with factors formed."""
    return [block.product() if isinstance(block, Roots) else block for block in state.layers]


class OutputRows:
    """The root of a role's output factor from the slopes g of one cotangent after the other, summed over positions.

    ``is_diagonal``: the factor is too large for a matrix, so that it is its diagonal.
    """

    def __init__(self, is_diagonal: bool) -> None:
        self._is_diagonal, self._rows = is_diagonal, list[Tensor]()

    def add(self, B_NGMS: Tensor) -> None:
        """Add the slopes of one more cotangent."""
        self._rows.append(B_NGMS.sum(-1))

    def mean(self, terms: int) -> Root:
        """The root for a batch of ``terms`` loss terms."""
        return root_of(torch.cat(self._rows), terms, self._is_diagonal)

"""TKFAC: the Kronecker product with the block's own partial traces (Gao et al. 2021, the trace restriction).

Positions of a shared layer count as independent samples (``expand``): the trace is exact where the cross terms of
positions vanish. A layer that is applied once has no cross terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.instance import layers as geometry
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.operators import BlockDiagonal, Kronecker, Operator
from curvbench.parts.cotangents import add_all
from curvbench.parts.factors import Factored, KroneckerDamping, MomentSum, second_moment
from curvbench.parts.others import NOTE, OtherMoment, Others
from curvbench.parts.patch_sums import index_sums
from curvbench.parts.polar import COST, TakesPolar
from curvbench.parts.roles import of_roles, trace_scaled
from curvbench.spec import About, FisherProbe, Layer

TkfacDamping = Literal["factored", "exact"]


@dataclass(frozen=True)
class Tkfac(TakesPolar, FisherProbe):
    """A Kronecker product per layer with the partial traces of the exact block: K-FAC that keeps the trace.

    With t = E |a|^2 |g|^2 the factors are E[|a|^2 g g^T] / sqrt(t) and E[|g|^2 a a^T] / sqrt(t). ``damping_rule``: how
    the damping enters the solve. ``factored`` adds sqrt(damping) to both factors, ``exact`` is (B (x) A + damping
    I)^-1. ``others``: what a vector has (a norm's scale and shift, positions, and any other parameter without a
    product). ``diagonal`` is its exact diagonal, ``unit`` an exact block per channel (of scale and shift), ``block``
    its whole exact block.
    """

    damping_rule: TkfacDamping = "factored"
    others: Others = "diagonal"

    supports_ema: ClassVar[bool] = True
    is_layerwise = True
    combines_by: ClassVar[Literal["mean"]] = "mean"

    about = About(
        represents="t Psi (x) Phi per layer: Psi and Phi of trace 1, t the block's trace with positions as samples",
        damping="sqrt(damping) I is added to each of the factors sqrt(t) Psi and sqrt(t) Phi; exact: to their product",
        cost={
            "statistics": "G S (N D^2 + N R M^2 + N D + N R M)",
            "invert": "G (D^3 + M^3) ([damping_rule = exact] 9 + [damping_rule != exact] + [polar = whitened] 10) / 2",
            "precondition": f"([damping_rule = exact] + 1) G M D (M + D){COST}",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Gao et al. 2021",
        notes=(NOTE,),
        family="Kronecker",
        color="red",
        formulas=(
            r"\hat F_\ell = t\, \Psi \otimes \Phi",
            r"t = \frac{1}{N} \sum_{n,s,r} \|a_{ns}\|^2 \|g_{nsr}\|^2",
            r"\Psi = \frac{1}{t N} \sum_{n,s,r} \|a_{ns}\|^2 g_{nsr} g_{nsr}^\top",
            r"\Phi = \frac{1}{t N} \sum_{n,s,r} \|g_{nsr}\|^2 a_{ns} a_{ns}^\top",
        ),
    )

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        tape = batch.tape()
        sums = {name: self._sum(role, tape.inputs[name]) for name, role in tape.roles.items()}
        add_all(sums, batch, tape, self.fisher_type, self.mc_samples, self.seed)
        made = {name: partial.mean(batch.terms) for name, partial in sums.items()}
        return Factored([of_roles(layer, made) for layer in batch.layers])

    def _sum(self, role: Layer, inputs: Tensor) -> OtherMoment | PartialTraces:
        return OtherMoment(role, self.others) if role.kind == "vector" else PartialTraces(role, inputs)

    @property
    def _solver(self) -> KroneckerDamping:
        return KroneckerDamping(self.damping, self.damping_rule, self.polar)

    def refresh(self, state: Factored) -> Factored:
        return state._replace(inverses=self._solver.refresh(Factored(trace_scaled(state.factors))).inverses)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return self._solver.precondition(state, gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(trace_scaled(state.factors))

    def damped(self, state: Factored) -> Operator | None:
        return None if self.sets_lengths else self._solver.damped(trace_scaled(state.factors))


class PartialTraces:
    """The partial traces of a role's block from the slopes g of one cotangent after the other.

    They are means over the batch, so that running averages and ranks can combine them.
    """

    def __init__(self, role: Layer, inputs: Tensor) -> None:
        self._role, self._inputs = role, inputs
        self._patches = None if role.kind == "lookup" else geometry.patches(role, inputs)
        self._roots = _lengths(inputs) if self._patches is None else _norms(self._patches)
        self._outputs, self._weights = MomentSum(), torch.zeros((), device=inputs.device)

    def add(self, B_NGMS: Tensor) -> None:
        """Add the slopes of some more cotangents, one after the other."""
        B_RNGMS = B_NGMS.unflatten(0, (-1, len(self._roots)))
        self._outputs.add((B_RNGMS * self._roots.to(B_NGMS.dtype)).flatten(0, 1))
        self._weights = B_RNGMS.square().sum((0, 3))[:, :, None] + self._weights.to(B_NGMS.dtype)

    def add_hessians(self, hessians: Hessians, positions: int) -> None:
        """Add all cotangents of a last layer that is applied at ``positions``, each of which has a loss term."""
        self._outputs.add_hessians(hessians.weighted(self._roots.flatten().square()))
        self._weights = hessians.diagonals().sum(1).reshape(-1, 1, 1, positions)

    def mean(self, terms: int) -> Kronecker:
        """E[|a|^2 g g^T] (x) E[|g|^2 a a^T] for a batch of ``terms`` loss terms."""
        if self._patches is None:
            inputs = index_sums(self._role, self._inputs, self._weights[:, 0, 0]).sum(0)
        else:
            inputs = second_moment(self._patches * self._weights.sqrt())
        return Kronecker.batched(self._outputs.total() / terms, inputs / terms)


def _norms(X_NGDS: Tensor) -> Tensor:
    """The lengths of patches, (N, G, 1, S)."""
    return X_NGDS.square().sum(2, keepdim=True).sqrt()


def _lengths(indices: Tensor) -> Tensor:
    """The lengths of one-hot inputs: 1 for an index, 0 for none, (N, 1, 1, S)."""
    return (indices >= 0)[:, None, None]

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
from curvbench.operators import BlockDiagonal, Kronecker, Operator, sides
from curvbench.parts.factors import Factored, KroneckerDamping, MomentSum, second_moment
from curvbench.spec import About, FisherProbe

TkfacDamping = Literal["factored", "exact"]


@dataclass(frozen=True)
class Tkfac(FisherProbe):
    """A Kronecker product per layer with the partial traces of the exact block: K-FAC that keeps the trace.

    With t = E |a|^2 |g|^2 the factors are E[|a|^2 g g^T] / sqrt(t) and E[|g|^2 a a^T] / sqrt(t). ``damping_rule``: how
    the damping enters the solve. ``factored`` adds sqrt(damping) to both factors, ``exact`` is (B (x) A + damping
    I)^-1.
    """

    damping_rule: TkfacDamping = "factored"

    supports_ema: ClassVar[bool] = True
    is_layerwise = True
    combines_by: ClassVar[Literal["mean"]] = "mean"

    about = About(
        represents="t Psi (x) Phi per layer: Psi and Phi of trace 1, t the block's trace with positions as samples",
        damping="sqrt(damping) I is added to each of the factors sqrt(t) Psi and sqrt(t) Phi; exact: to their product",
        cost={
            "statistics": "G S (N D^2 + N R M^2 + N D + N R M)",
            "invert": "G (D^3 + M^3) ([damping_rule = exact] 9 + [damping_rule != exact]) / 2",
            "precondition": "([damping_rule = exact] + 1) G M D (M + D)",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Gao et al. 2021",
        family="Kronecker",
        color="red",
    )

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        tape = batch.tape()
        X_LNGDS = [geometry.patches(layer, tape.inputs[layer.name]) for layer in batch.layers]
        roots = [X.square().sum(2, keepdim=True).sqrt() for X in X_LNGDS]
        outputs, weights = [MomentSum() for _ in roots], [torch.zeros_like(root) for root in roots]
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for B_NGMS, root, moment, weight in zip(slopes.values(), roots, outputs, weights, strict=True):
                moment.add(B_NGMS * root)
                weight += B_NGMS.square().sum(2, keepdim=True)
        triples = zip(X_LNGDS, outputs, weights, strict=True)
        return Factored([_traces(X, moment.total(), weight, batch.terms) for X, moment, weight in triples])

    @property
    def _solver(self) -> KroneckerDamping:
        return KroneckerDamping(self.damping, self.damping_rule)

    def refresh(self, state: Factored) -> Factored:
        return state._replace(inverses=self._solver.refresh(_scaled(state)).inverses)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return self._solver.precondition(state, gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(_scaled(state).factors)

    def damped(self, state: Factored) -> Operator:
        return self._solver.damped(_scaled(state).factors)


def _traces(X_NGDS: Tensor, outputs: Tensor, weights_NG1S: Tensor, terms: int) -> Kronecker:
    """The partial traces as means over the batch, so that running averages and ranks can combine them."""
    return Kronecker.batched(outputs / terms, second_moment(X_NGDS * weights_NG1S.sqrt()) / terms)


def _scaled(state: Factored) -> Factored:
    """The partial traces over sqrt(t), t the block's trace, so that their product has the trace t; zero stays zero."""
    return state._replace(factors=[_over_root(factor) for factor in state.factors])


def _over_root(factor: Kronecker) -> Kronecker:
    trace = sides.main_diagonal(factor.left).sum(-1)
    root = torch.where(trace > 0, trace, 1.0).sqrt()
    return Kronecker.batched(*(side / sides.per_group(root, side) for side in (factor.left, factor.right)))

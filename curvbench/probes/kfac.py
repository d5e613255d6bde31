"""K-FAC: one Kronecker product per layer (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions).

``expand`` treats the positions of a layer as independent samples (KFC), ``reduce`` averages inputs and sums
gradients over them (Eschenhagen et al. 2023). ``forward-only`` replaces the gradient factor by the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from curvbench import layers as geometry
from curvbench import numerics
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker, RotatedDiagonal
from curvbench.spec import FisherProbe, FisherType, LayerSize
from curvbench.tape import Tape

KfacApprox = Literal["expand", "reduce"]
DampingRule = Literal["exact", "factored", "pi"]


class State(NamedTuple):
    """Per layer B (x) A, and what the damped solve needs of it: its eigenbasis, or its two inverses."""

    factors: list[Kronecker]
    rotated: Sequence[RotatedDiagonal] = ()
    inverses: Sequence[Kronecker] = ()


@dataclass(frozen=True)
class Kfac(FisherProbe):
    """A Kronecker product B (x) A per layer of output-gradient and input covariances.

    ``damping_rule``: ``exact`` is (B (x) A + damping I)^-1 by eigendecompositions; ``factored`` adds
    sqrt(damping) to both factors, ``pi`` balances the two by their mean eigenvalues.
    """

    kfac_approx: KfacApprox = "expand"
    damping_rule: DampingRule = "exact"

    fisher_types: ClassVar[tuple[FisherType, ...]] = get_args(FisherType)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("kfac_approx", get_args(KfacApprox)), ("damping_rule", get_args(DampingRule))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def update(self, state: State | None, batch: Instance) -> State:
        tape = batch.tape()
        inputs = [self._input_factor(geometry.patches(la, tape.inputs[la.name])) / batch.samples for la in batch.layers]
        if self.fisher_type == "forward-only":
            outputs = [_identities(layer.groups, layer.outputs, batch) for layer in batch.layers]
        else:
            outputs = list(self._output_factors(tape, batch))
        return State([Kronecker(B, A) for B, A in zip(outputs, inputs, strict=True)])

    def _input_factor(self, X_NGDS: Tensor) -> Tensor:
        if self.kfac_approx == "reduce":
            X_NGDS = X_NGDS.mean(-1, keepdim=True)
        return _second_moment(X_NGDS)

    def _output_factors(self, tape: Tape, batch: Instance) -> Iterator[Tensor]:
        totals: dict[str, Tensor] = {}
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for name, B_NGMS in slopes.items():
                moment = self._output_factor(B_NGMS)
                totals[name] = totals[name] + moment if name in totals else moment
        return (totals[layer.name] / batch.terms for layer in batch.layers)

    def _output_factor(self, B_NGMS: Tensor) -> Tensor:
        if self.kfac_approx == "reduce":
            return _second_moment(B_NGMS.sum(-1, keepdim=True))
        return _second_moment(B_NGMS) / B_NGMS.shape[-1]

    def refresh(self, state: State) -> State:
        if self.damping_rule == "exact":
            return state._replace(rotated=[factor.rotated for factor in state.factors])
        return state._replace(inverses=[self._inverse(factor) for factor in state.factors])

    def _inverse(self, factor: Kronecker) -> Kronecker:
        pi = _trace_balance(factor) if self.damping_rule == "pi" else 1.0
        root = self.damping**0.5
        left = numerics.damped_inverse(factor.left, root / pi)
        return Kronecker(left, numerics.damped_inverse(factor.right, root * pi))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([factor.size for factor in state.factors])
        if self.damping_rule == "exact":
            return torch.cat([r.solve(part, self.damping) for r, part in zip(state.rotated, parts, strict=True)])
        return torch.cat([inverse.matvec(part) for inverse, part in zip(state.inverses, parts, strict=True)])

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal(state.factors)

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        b = samples * columns
        rounds, factorizations = (2, 9) if self.damping_rule == "exact" else (1, 1)
        cost = {"statistics": 0.0, "invert": 0.0, "precondition": 0.0}
        for G, M, D, S in sizes:
            products = samples * D**2 + b * M**2
            reduced = products + S * (samples * D + b * M)
            cost["statistics"] += G * (S * products if self.kfac_approx == "expand" else reduced)
            cost["invert"] += G * factorizations * (D**3 + M**3)
            cost["precondition"] += G * rounds * M * D * (M + D)
        return cost


def _second_moment(T: Tensor) -> Tensor:
    """Sum over samples and positions of t t^T, (N, G, n, S) -> (G, n, n)."""
    rows = T.permute(1, 2, 0, 3).flatten(2)
    return rows @ rows.mT


def _identities(groups: int, order: int, batch: Instance) -> Tensor:
    return torch.eye(order, dtype=batch.dtype, device=batch.device).expand(groups, order, order)


def _trace_balance(factor: Kronecker) -> Tensor:
    """Pi = sqrt of (tr A / D) / (tr B / M) per group, (G,); 1 where a trace vanishes (a dead layer)."""
    right, left = (f.diagonal(dim1=-2, dim2=-1).mean(-1) for f in (factor.right, factor.left))
    return torch.where((right > 0) & (left > 0), right / left, torch.ones_like(left)).sqrt()

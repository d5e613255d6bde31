"""K-FAC: one Kronecker product per layer (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions).

``expand`` treats the positions of a layer as independent samples (KFC), ``reduce`` averages inputs and sums
gradients over them (Eschenhagen et al. 2023). ``forward-only`` replaces the gradient factor by the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, get_args

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.instance.tape import Tape
from curvbench.operators import BlockDiagonal, Kronecker, Operator
from curvbench.parts.factors import (
    DampingRule,
    Factored,
    KfacApprox,
    KroneckerDamping,
    OutputFactor,
    input_factor,
    is_cut,
)
from curvbench.spec import About, FisherProbe, FisherType


@dataclass(frozen=True)
class Kfac(FisherProbe):
    """A Kronecker product B (x) A per layer of output-gradient and input covariances.

    ``kfac_approx``: how the positions of a shared layer enter. ``expand`` takes positions as samples, ``reduce`` takes
    their mean input and summed gradient. ``damping_rule``: how the damping enters the solve. ``exact`` is (B (x) A +
    damping I)^-1 by eigendecompositions; ``factored`` adds sqrt(damping) to both factors; ``pi`` balances these two
    dampings by the mean eigenvalues of the factors.
    """

    kfac_approx: KfacApprox = "expand"
    damping_rule: DampingRule = "exact"

    fisher_types: ClassVar[tuple[FisherType, ...]] = get_args(FisherType)
    supports_ema: ClassVar[bool] = True
    combines_by = "mean"
    is_layerwise = True

    about = About(
        represents="B (x) A per layer: A = E[a a^T] summed over positions, B = E[g g^T] averaged over them",
        damping="(B (x) A + damping I)^-1 in the eigenbasis; factored and pi damp both factors by its root instead",
        cost={
            "statistics": "G (N D^2 + N R M^2) ([kfac_approx = expand] S + [kfac_approx = reduce])"
            " + [kfac_approx = reduce] G S (N D + N R M)",
            "invert": "G (D^3 + M^3) ([damping_rule = exact] 9 + [damping_rule != exact]) / 2",
            "precondition": "([damping_rule = exact] + 1) G M D (M + D)",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Martens and Grosse 2015; convolutions: Grosse and Martens 2016; reduce: Eschenhagen et al. 2023",
        errata=("E-C8",),
        family="Kronecker",
        color="blue",
    )

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        tape = batch.tape()
        inputs = [input_factor(layer, tape.inputs[layer.name], self.kfac_approx) for layer in batch.layers]
        outputs = self._output_factors(tape, batch)
        return Factored([Kronecker.batched(B, A) for B, A in zip(outputs, inputs, strict=True)])

    def _output_factors(self, tape: Tape, batch: Instance) -> list[Tensor]:
        if self.fisher_type == "forward-only":
            make = partial(torch.ones, dtype=batch.dtype, device=batch.device)
            ones = [make(la.outputs) if is_cut(la.outputs) else make(la.outputs).diag() for la in batch.layers]
            return [one.expand(la.groups, *one.shape) for one, la in zip(ones, batch.layers, strict=True)]
        factors = {layer.name: OutputFactor(self.kfac_approx) for layer in batch.layers}
        for slopes in batch.slopes(tape, self.fisher_type, self.mc_samples, self.seed):
            for name, B_NGMS in slopes.items():
                factors[name].add(B_NGMS)
        return [factor.mean(batch.terms) for factor in factors.values()]

    @property
    def _solver(self) -> KroneckerDamping:
        return KroneckerDamping(self.damping, self.damping_rule)

    def refresh(self, state: Factored) -> Factored:
        return self._solver.refresh(state)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return self._solver.precondition(state, gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(state.factors)

    def damped(self, state: Factored) -> Operator:
        return self._solver.damped(state.factors)

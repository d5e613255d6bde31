"""K-FAC: one Kronecker product per layer (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions).

``expand`` treats the positions of a layer as independent samples (KFC), ``reduce`` averages inputs and sums
gradients over them (Eschenhagen et al. 2023). ``forward-only`` replaces the gradient factor by the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.instance.tape import Tape
from curvbench.operators import BlockDiagonal, Diagonal, Operator
from curvbench.parts.cotangents import add_all
from curvbench.parts.factors import (
    DampingRule,
    Factored,
    KfacApprox,
    KroneckerDamping,
    OutputFactor,
    input_factor,
    is_cut,
    product,
)
from curvbench.parts.others import NOTE, OtherMoment, Others
from curvbench.parts.polar import COST, TakesPolar
from curvbench.parts.roles import of_roles, represented
from curvbench.spec import About, FisherProbe, FisherType, Layer


@dataclass(frozen=True)
class Kfac(TakesPolar, FisherProbe):
    """A Kronecker product B (x) A per layer of output-gradient and input covariances.

    ``kfac_approx``: how the positions of a shared layer enter. ``expand`` takes positions as samples, ``reduce`` takes
    their mean input and summed gradient. ``damping_rule``: how the damping enters the solve. ``exact`` is (B (x) A +
    damping I)^-1 by eigendecompositions; ``factored`` adds sqrt(damping) to both factors; ``pi`` balances these two
    dampings by the mean eigenvalues of the factors. ``others``: what a vector has (a norm's scale and shift, positions,
    and any other parameter without a product). ``diagonal`` is its exact diagonal, ``unit`` an exact block per channel
    (of scale and shift), ``block`` its whole exact block.
    """

    kfac_approx: KfacApprox = "expand"
    damping_rule: DampingRule = "exact"
    others: Others = "diagonal"

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
            "invert": "G (D^3 + M^3) ([damping_rule = exact] 9 + [damping_rule != exact] + [polar = whitened] 10) / 2",
            "precondition": f"([damping_rule = exact] + 1) G M D (M + D){COST}",
            "memory": "2 G (M^2 + D^2)",
        },
        source="Martens and Grosse 2015; convolutions: Grosse and Martens 2016; reduce: Eschenhagen et al. 2023",
        notes=(
            f"{NOTE} With fisher_type=forward-only a vector has the identity.",
            "kfac[fisher_type=forward-only,polar=after] is Newton-Muon (arXiv 2604.01472), polar(V (A + damping I)^-1) "
            "with A = E[a a^T]; in training momentum=0.95 and ema=0.95 give its averages, but the momentum averages V "
            "before the solve, which is the same while A stands still.",
        ),
        errata=("E-C8",),
        family="Kronecker",
        color="blue",
        formulas=(
            r"\hat F_\ell = B \otimes A",
            r"A = \frac{1}{N} \sum_{n,s} a_{ns} a_{ns}^\top",
            r"B = \frac{1}{N S} \sum_{n,s,r} g_{nsr} g_{nsr}^\top",
        ),
    )

    def update(self, state: Factored | None, batch: Instance) -> Factored:
        tape = batch.tape()
        made = self._outputs(tape, batch)
        for name, role in tape.roles.items():
            if role.kind != "vector":
                made[name] = product(made[name], input_factor(role, tape.inputs[name], self.kfac_approx))
        return Factored([of_roles(layer, made) for layer in batch.layers])

    def _outputs(self, tape: Tape, batch: Instance) -> dict[str, Any]:
        """Per role its output factor (G, M, M), or (G, M) if it is cut; of a vector its block."""
        if self.fisher_type == "forward-only":
            return {name: _one(role, batch) for name, role in tape.roles.items()}
        sums = {name: self._sum(role) for name, role in tape.roles.items()}
        add_all(sums, batch, tape, self.fisher_type, self.mc_samples, self.seed)
        return {name: moment.mean(batch.terms) for name, moment in sums.items()}

    def _sum(self, role: Layer) -> OtherMoment | OutputFactor:
        return OtherMoment(role, self.others) if role.kind == "vector" else OutputFactor(self.kfac_approx)

    @property
    def _solver(self) -> KroneckerDamping:
        return KroneckerDamping(self.damping, self.damping_rule, self.polar)

    def refresh(self, state: Factored) -> Factored:
        return state._replace(inverses=self._solver.refresh(Factored(represented(state.factors))).inverses)

    def precondition(self, state: Factored, gradient: Tensor) -> Tensor:
        return self._solver.precondition(state, gradient)

    def operator(self, state: Factored) -> BlockDiagonal:
        return BlockDiagonal(represented(state.factors))

    def damped(self, state: Factored) -> Operator | None:
        return None if self.sets_lengths else self._solver.damped(represented(state.factors))


def _one(role: Layer, batch: Instance) -> Tensor | Diagonal:
    """The identity in place of an output factor, or of a vector's block."""
    groups, outputs, _ = role.shape
    if role.kind == "vector":
        return Diagonal(torch.ones(role.size, dtype=batch.dtype, device=batch.device))
    ones = torch.ones(outputs, dtype=batch.dtype, device=batch.device)
    one = ones if is_cut(outputs) else ones.diag()
    return one.expand(groups, *one.shape)

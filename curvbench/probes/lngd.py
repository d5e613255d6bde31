"""LNGD: layer-wise natural gradient from local activations (Liu, Li, Gao, Wang, NeurIPS 2024).

The Fisher ``lg`` takes for the gradient at a layer's output J^T e, with e ~ N(0, I) and J the Jacobian of the next
layer's input in this layer's output; for the output layer J = I, or ``output=likelihood`` the type-2 Fisher. Only
squares of J^T e are used, whose expectation is known. Positions count as samples, ignored tokens included. Corrected:
Eq. 13 is a mean of squares, Eq. 14 weighs the old value. The whole method has the rate of each step's batch (Alg. 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import states
from curvbench.fisher import ExactFisher, collect
from curvbench.instance import Instance
from curvbench.operators import BlockDiagonal, Kronecker
from curvbench.parts import local_factors as local
from curvbench.parts.jacobian import energies, mixed_layer
from curvbench.parts.ranges import at_least_one
from curvbench.spec import About, Follows, Probe
from curvbench.spec.geometry import canonical_type

LocalFisher = Literal["lg", "lg_mc", "mc", "empirical", "type-2"]


class State(NamedTuple):
    """Per layer Phi (G, D, D) and psi (G, M), and what the step needs of them.

    ``inverses``: of the damped Phi. ``scales``: 1 / the damped psi. ``scores``: the step's scores of the data's labels,
    for the layer rate. ``terms``: their loss terms. Where the paper is silent, zeros (G, D) and (G, M) stand for a
    block, whose step is the plain gradient.
    """

    phis: list[Tensor]
    psis: list[Tensor]
    terms: int
    inverses: Sequence[Tensor] = ()
    scales: Sequence[Tensor] = ()
    scores: Sequence[ExactFisher] = ()


@dataclass(frozen=True)
class Lngd(Follows, Probe):
    """A Kronecker product diag(psi) (x) Phi per layer from local derivatives, without labels (``lg``).

    ``fisher_type``: the gradients at a layer's output. ``lg`` takes local ones in closed form, ``lg_mc`` draws them;
    the other types take back-propagated ones. ``mc_samples``: the number of label or noise draws per sample. ``seed``:
    the seed of the draws. ``phi``: how the local Jacobian is squared. ``elementwise`` takes one local product and
    demands that an output feeds one input at most; ``local_vjp`` takes more products where an output feeds several.
    ``draws``: the largest number of these products. ``output``: the curvature at the network's outputs, the
    ``identity`` or the type-2 Fisher of the ``likelihood``. ``positions``: the weights |g|^2 of a sample's positions in
    Phi: their own (``exact``) or their ``mean``, which needs no patches. ``nu1``: the smallest damping of a factor.
    ``nu2``: the largest damping of a factor. ``ema``: the weight of the old factors. ``ema_rule``: the factors that
    ``ema`` weighs. ``printed`` weighs the new ones, as Eq. 14 has it. ``layer_rate``: whether each layer has a rate by
    Eq. 12, with Eq. 13 ``corrected`` or as ``printed``. ``mu``: a number added to that rate's denominator; where the
    sum is 0 the rate is 0.
    """

    fisher_type: LocalFisher = "lg"
    mc_samples: int = 1
    seed: int = 0
    phi: Literal["local_vjp", "elementwise"] = "local_vjp"
    draws: int = 32
    output: Literal["identity", "likelihood"] = "identity"
    positions: local.Positions = "exact"
    nu1: float = 1e-5
    nu2: float = 1e-2
    ema: float = 0.95
    ema_rule: Literal["corrected", "printed"] = "corrected"
    layer_rate: Literal["none", "corrected", "printed"] = "none"
    mu: float = 1e-8

    is_layerwise = True
    about = About(
        represents="diag(psi) (x) Phi per layer: Phi = (1/N) sum |g|^2 a a^T, psi ~ sum |a|^2 g^2 with sum 1",
        damping="per factor: its mean eigenvalue within nu1 and nu2 is added to Phi and to psi, whose mean is 1/M",
        cost={
            "statistics": "G S N (D^2 + E M)",
            "invert": "G (D^3 / 2 + M)",
            "precondition": "G M D (D + 1 + [layer_rate = corrected] N S)",
            "memory": "G (2 D^2 + M)",
        },
        where={"E": "R + ([fisher_type = lg] + [fisher_type = lg_mc]) (1 - R)"},
        source="Liu, Li, Gao, Wang 2024: Eqs. 3 to 5; layer rate Eqs. 12, 13; averages Eq. 14; damping Sec. 3.3",
        notes=(
            "The row lngd of a table is the paper's method without its layer-wise rate, its LNGD-sample. The whole "
            "method is lngd[layer_rate=corrected]; with fisher_type=type-2 besides it is the paper's LNGD-lr.",
            "The rate <p, g> / (p^T F p + mu) makes a layer's step independent of the scale of p, and so of Phi's "
            "scale, which is unrelated to F's. It bounds step times gradient by 1, not the step: small gradients take "
            "the longest steps, because p^T F p falls with their square. mu, which would bound them, is not reported; "
            "its default 1e-8 is a choice made here. On the surrogate of the paper's ablation (docs/claims.md) the "
            "method needs no more epochs without the rate than with it, and less time.",
            "The paper has Linear and convolutional layers, also those that are called several times, transposed or in "
            "three dimensions; a lookup is the Linear of one-hot inputs here. A norm's scale and shift, any other "
            "vector, and a weight that is tied in two orientations take the plain gradient, without a rate, and the "
            "represented matrix is zero there. Local maps go through norms and end at the next product, in a recurrent "
            "layer at its first step that they reach.",
            "positions=mean takes one weight per sample, as KFC's assumption of spatial homogeneity has it; the paper "
            "does not mention positions. It changes Phi alone, in Frobenius norm by 5 % (median over the layers; at "
            "most 26 %) on a ResNet-20 for digits at its initialization, by 7 % (11 %) after two epochs, and by 8 % "
            "(87 %) on a vision Transformer after two. Layers without positions stay as they are.",
        ),
        errata=("E-L",),
        family="rescaled layers",
        color="green",
        formulas=(
            r"\hat F_\ell = \mathrm{diag}(\psi) \otimes \Phi",
            r"\Phi = \frac{1}{N} \sum_{n,s,i} h_{nsi}\, a_{ns} a_{ns}^\top",
            r"\psi_i = \frac{\sum_{n,s} \|a_{ns}\|^2\, h_{nsi}}{\sum_{n,s,j} \|a_{ns}\|^2\, h_{nsj}}",
            r"h_{nsi} = \langle (J_{ns}^\top \varepsilon)_i^2 \rangle = (J_{ns}^\top J_{ns})_{ii}",
            r"\varepsilon \sim \mathcal{N}(0, I)",
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "fisher_type", canonical_type(self.fisher_type))
        super().__post_init__()
        at_least_one(self, "mc_samples", "draws")
        if not 0 < self.nu1 <= self.nu2 < float("inf"):
            raise ValueError(f"nu1 and nu2 must satisfy 0 < nu1 <= nu2 and be finite, got {self.nu1} and {self.nu2}")
        if not 0 <= self.ema < 1 or not 0 <= self.mu < float("inf"):
            raise ValueError(f"ema must lie in [0, 1) and mu must be finite and >= 0, got {self.ema} and {self.mu}")

    @property
    def needs_every_batch(self) -> bool:
        return self.layer_rate == "corrected"

    def unsupported(self, instance: Instance) -> str | None:
        mixed = mixed_layer(instance.tape()) if self.phi == "elementwise" and self.fisher_type == "lg" else None
        return mixed and f"phi=elementwise: an output of layer {mixed!r} feeds several inputs of the next one"

    def update(self, state: State | None, batch: Instance) -> State:
        tape = batch.tape()
        draws, at_ends = self.draws if self.phi == "local_vjp" else None, self.output == "likelihood"
        squares = energies(batch, tape, self.fisher_type, self.mc_samples, self.seed, draws, at_ends)
        make = partial(local.local_factors, tape=tape, terms=batch.terms, positions=self.positions)
        phis, psis = map(list, zip(*(make(la, energy=squares.get(la.name)) for la in batch.layers), strict=True))
        if state is not None:
            weight = self.ema if self.ema_rule == "corrected" else 1 - self.ema
            phis, psis = states.blend([state.phis, state.psis], [phis, psis], weight)
        return self.follow(State(phis, psis, batch.terms), batch)

    def follow(self, state: State, batch: Instance) -> State:
        columns = collect(batch, "empirical") if self.needs_every_batch else ()
        return state._replace(scores=[ExactFisher((c,), batch.terms) for c in columns], terms=batch.terms)

    def refresh(self, state: State) -> State:
        pairs = map(partial(local.damped_inverses, least=self.nu1, most=self.nu2), state.phis, state.psis)
        inverses, scales = zip(*pairs, strict=True)
        return state._replace(inverses=list(inverses), scales=list(scales))

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        parts = gradient.split([psi.numel() * phi.shape[-1] for phi, psi in zip(state.phis, state.psis, strict=True)])
        steps = list(map(local.scaled_step, parts, state.inverses, state.scales))
        if self.layer_rate != "none":
            steps = local.rated(state.psis, steps, parts, state.scores, state.terms, self.mu)
        return torch.cat(steps)

    def operator(self, state: State) -> BlockDiagonal:
        return BlockDiagonal([Kronecker.batched(psi, phi) for psi, phi in zip(state.psis, state.phis, strict=True)])

    def damped(self, state: State) -> BlockDiagonal | None:
        products = map(partial(local.damped_product, least=self.nu1, most=self.nu2), state.psis, state.phis)
        return BlockDiagonal(list(products)) if self.layer_rate == "none" else None

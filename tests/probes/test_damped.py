"""The matrix that a probe calls its damped one, against what its step does to a gradient."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from cases import instance_of
from torch import Tensor

import curvbench as cb
from curvbench import registry
from curvbench.operators import BlockDiagonal, Shifted
from curvbench.parts.factors import Factored
from curvbench.spec import Probe

RULES = (
    "damping_rule",
    "scale_mode",
    "scaling",
    "score_scale",
    "exponent",
    "recursion",
    "floor",
    "stage",
    "layer_rate",
    "criterion",
)
"""Fields that decide what a step inverts."""

OWN = {"kfac", "tkfac", "thor", "skfac", "eva", "hylo", "lngd", "fngd", "shampoo", "identity", "lbfgs", "qng"}
OWN |= {"klkron", "psgd", "kronsum", "tnt", "ingd", "ngplus"}
"""Probes that say themselves what their step inverts."""


def choices(annotation: Any) -> tuple[Any, ...]:
    return (False, True) if annotation is bool else get_args(annotation) if get_origin(annotation) is Literal else ()


def variants() -> list[Probe]:
    """Every registered probe with every combination of its declared rules."""
    probes = []
    for name, kind in sorted(registry.probes().items()):
        hints = get_type_hints(kind)
        declared = {field: choices(hints[field]) for field in RULES if field in cb.probe(name).hyperparameters}
        few = {"updates": 3} if "updates" in cb.probe(name).hyperparameters else {}
        for values in itertools.product(*declared.values()):
            probes.append(cb.probe(name, **few, **dict(zip(declared, values, strict=True))))
    return probes


MORE = [
    *(cb.probe("lngd", nu2=10.0), cb.probe("thor", split=2), cb.probe("ginger", updates=3, scope="per_tensor")),
    *(cb.probe("shampoo", updates=3, **of) for of in ({"exponent": 0.5}, {"root_every": 2}, {"root_every": 4})),
    *(cb.probe("shampoo", updates=3, **of) for of in ({"block": 3}, {"graft": "sgd"})),
    cb.probe("adafactor", source="gradients", updates=3),
]
"""A layer's factors with two different dampings; several blocks per factor; several blocks per step; stale roots, none
yet, several blocks, and lengths of another method; a bounded step."""

VARIANTS = [*variants(), *MORE]
NETWORKS = ("mlp_tanh", "nasty_cnn")


def has_matrix(probe: Probe) -> bool:
    """Whether the step is the product of a symmetric matrix with the gradient."""
    given = probe.hyperparameters
    own = probe.has_own_momentum or (probe.name, given.get("source")) == ("adafactor", "gradients")
    is_fixed = given.get("stage") != "shared" and given.get("layer_rate", "none") == "none"
    is_linear = given.get("graft", "none") == "none" and given.get("damping_rule") != "gram" and probe.name != "cg"
    return is_fixed and is_linear and not own


@cache
def refreshed(probe: Probe, name: str) -> Any:
    return probe.refresh(probe.fit(instance_of(name)))


def directions(size: int) -> Tensor:
    return torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", [p for p in VARIANTS if has_matrix(p)], ids=lambda probe: probe.label)
def test_the_step_is_the_inverse_of_the_damped_matrix(probe: Probe, name: str) -> None:
    state = refreshed(probe, name)
    damped = probe.damped(state)
    assert damped is not None
    dense = damped.to_dense()
    assert torch.allclose(dense, dense.T, rtol=0, atol=1e-14 * float(dense.abs().max()))
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert float(eigenvalues[0]) > 0
    rounding = len(dense) * torch.finfo(dense.dtype).eps * float(eigenvalues[-1] / eigenvalues[0])
    assert rounding < 1e-3, "a test of nothing"
    for vector in directions(len(dense)):
        step = probe.precondition(state, vector)
        assert float((dense @ step - vector).norm()) <= rounding * float(vector.norm())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", [p for p in VARIANTS if not has_matrix(p)], ids=lambda probe: probe.label)
def test_a_step_of_no_symmetric_matrix_has_no_damped_one(probe: Probe, name: str) -> None:
    state = refreshed(probe, name)
    assert probe.damped(state) is None
    v, w = instance_of(name).gradient(), directions(instance_of(name).size)[0]
    v = v * w.norm() / v.norm()  # of the batch itself, which some of these steps treat apart
    p, q, both = (probe.precondition(state, u) for u in (v, w, v + w))
    asymmetric = abs(float(w @ p - v @ q)) > 1e-9 * float(w.norm() * p.norm() + v.norm() * q.norm())
    assert asymmetric or not torch.allclose(p + q, both)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", VARIANTS, ids=lambda probe: probe.label)
def test_what_is_shifted_is_the_represented_matrix(probe: Probe, name: str) -> None:
    """F^ + damping I by default; a method of another kind says F^ plus a multiple of I by the same type only."""
    state = refreshed(probe, name)
    damped, represented = probe.damped(state), probe.operator(state).to_dense()
    assert isinstance(damped, Shifted) or probe.name in OWN or damped is None
    if isinstance(damped, Shifted):
        shift = 0.0 if probe.damping is None else probe.damping
        assert torch.equal(damped.to_dense(), represented + shift * torch.eye(len(represented)).double())


@pytest.mark.parametrize("rule", ["factored", "pi"])
def test_factors_take_dampings_whose_product_is_the_damping(rule: str) -> None:
    """From the printed formula: pi balances the mean eigenvalues of A and B."""
    probe = cb.probe("kfac", damping_rule=rule, damping=0.04)
    state: Factored = refreshed(probe, "mlp_tanh")
    damped = probe.damped(state)
    assert isinstance(damped, BlockDiagonal)
    for found, factor in zip(damped.blocks, state.factors, strict=True):
        B, A = factor.left[0], factor.right[0]
        pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt() if rule == "pi" else torch.tensor(1.0).double()
        left, right = B + 0.2 / pi * torch.eye(len(B)).double(), A + 0.2 * pi * torch.eye(len(A)).double()
        assert torch.allclose(found.to_dense(), torch.kron(left, right), rtol=1e-13)


def test_a_layer_without_scores_is_not_damped_by_fngd() -> None:
    """Its step is its gradient."""
    for mode in ("normalized", "natural"):
        probe = cb.probe("fngd", scale_mode=mode)
        instance = instance_of("one_hot")
        state = probe.refresh(probe.fit(instance))
        vector = directions(instance.size)[0]
        damped = probe.damped(state)
        assert damped is not None
        assert torch.allclose(damped.matvec(probe.precondition(state, vector)), vector)


def test_single_precision_has_a_damped_matrix_of_its_own() -> None:
    instance = instance_of("nasty_cnn").to(torch.float32)
    for probe in VARIANTS:
        damped = probe.damped(probe.refresh(probe.fit(instance)))
        assert damped is None or damped.to_dense().dtype == torch.float32

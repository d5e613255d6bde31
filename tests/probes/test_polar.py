"""Steps by polar factors of every method with a Kronecker product per layer, against dense roots and SVDs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, instance_of
from kinds import kind
from streams import relative
from torch import Tensor, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench import registry
from curvbench.operators import Kronecker
from curvbench.optim import NaturalGradient
from curvbench.spec import Probe


def polar(U: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(U, full_matrices=False)
    return left @ torch.diag((values > 1e-10 * values[0]).to(values)) @ right


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, basis = torch.linalg.eigh(matrix)
    return basis @ torch.diag(values**exponent) @ basis.T


def small(samples: int = 12) -> cb.Instance:
    """Regression, so that no slopes sum to zero; the first matrix is wide, the second high."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 5)).double()
    return cb.Instance(model, torch.randn(samples, 4).double(), torch.randn(samples, 5).double(), loss="gaussian")


def stepped(probe: Probe, instance: cb.Instance, gradient: Tensor | None = None) -> Tensor:
    state = probe.refresh(probe.fit(instance))
    return probe.precondition(state, instance.gradient() if gradient is None else gradient)


def matrices(vector: Tensor, instance: cb.Instance) -> list[Tensor]:
    return [vector[layer.slice].reshape(layer.shape)[0] for layer in instance.layers]


def damped_pairs(probe: Probe, instance: cb.Instance) -> Iterator[tuple[Tensor, Tensor]]:
    """B and A of every layer as the probe without polar factors says them."""
    plain = dataclasses.replace(probe, polar="none")
    for block in plain.damped(plain.refresh(plain.fit(instance))).blocks:
        assert isinstance(block, Kronecker)
        yield block.left[0], block.right[0]


SOLVED = ["kfac", "kfac[damping_rule=pi]", "tkfac", "kpsvd", "shampoo", "shampoo[exponent=0.5]"]
WHITENED = ["kfac[damping_rule=pi]", "kfac[damping_rule=factored]", "tkfac", "shampoo", "shampoo[exponent=0.5]"]


def with_polar(label: str, how: str, **options: Any) -> Probe:
    return dataclasses.replace(registry.parse_probe(label), polar=how, **options)


@pytest.mark.parametrize("label", SOLVED)
def test_after_takes_the_polar_factor_of_the_method_s_own_step(label: str) -> None:
    instance = small()
    own = matrices(stepped(registry.parse_probe(label), instance), instance)
    found = matrices(stepped(with_polar(label, "after"), instance), instance)
    for step, solved in zip(found, own, strict=True):
        assert relative(step, polar(solved)) <= 1e-9
        cosine = float(torch.cosine_similarity(step.flatten(), solved.flatten(), dim=0))
        assert cosine > 0.98 if label == "shampoo" else cosine < 0.9  # after one gradient Shampoo's is nearly one


@pytest.mark.parametrize("label", WHITENED)
def test_whitened_is_the_best_step_of_its_spectral_norm(label: str) -> None:
    """The dual norm: <V, p> over |B^(1/2) p A^(1/2)| is the nuclear norm of B^(-1/2) V A^(-1/2)."""
    instance, probe = small(), with_polar(label, "whitened")
    V = matrices(instance.gradient(), instance)
    for (B, A), G, p in zip(
        damped_pairs(probe, instance), V, matrices(stepped(probe, instance), instance), strict=True
    ):
        white = power(B, -0.5) @ G @ power(A, -0.5)
        expected = power(B, -0.5) @ polar(white) @ power(A, -0.5)
        assert relative(p, expected * polar(white).norm() / expected.norm()) <= 1e-9
        best = float((G * p).sum() / torch.linalg.matrix_norm(power(B, 0.5) @ p @ power(A, 0.5), 2))
        assert best == pytest.approx(float(torch.linalg.matrix_norm(white, "nuc")), rel=1e-9)
        others = p + p.norm() * torch.randn(200, *p.shape, generator=torch.Generator().manual_seed(1)).double() / 5
        sizes = torch.linalg.matrix_norm(power(B, 0.5) @ others @ power(A, 0.5), 2)
        assert float(((others * G).sum((1, 2)) / sizes).max()) < best


def transformed() -> tuple[cb.Instance, cb.Instance, Tensor]:
    """A network, and the same function of transformed inputs."""
    first = small()
    omega = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).double()
    model = copy.deepcopy(first.model)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ torch.linalg.inv(omega))
    return first, cb.Instance(model, first.inputs @ omega.T, first.targets, loss="gaussian"), omega


@pytest.mark.parametrize(("how", "is_equivariant"), [("whitened", True), ("after", False)])
def test_whitened_steps_move_with_the_inputs(how: str, is_equivariant: bool) -> None:
    """Undamped, inputs times Omega give p Omega^-1 of one length or another; ``after`` is the negative control."""
    probe = with_polar("kfac[damping_rule=factored,damping=0]", how)
    first, second, omega = transformed()
    p, moved = (matrices(stepped(probe, instance), instance)[0] for instance in (first, second))
    cosine = float(torch.cosine_similarity((moved @ omega).flatten(), p.flatten(), dim=0))
    assert cosine >= 1 - 1e-9 if is_equivariant else cosine < 0.99


@pytest.mark.parametrize("label", ["kfac[polar=after]", "kfac[polar=whitened,damping_rule=pi]"])
@pytest.mark.parametrize("multiple", [-2.0, 1e-6])
def test_steps_keep_their_length(label: str, multiple: float) -> None:
    """Whatever that of the gradient, and that of factors and damping together."""
    probe, instance = registry.parse_probe(label), small()
    state, g = probe.fit(instance), instance.gradient()
    step = probe.precondition(probe.refresh(state), g)
    scaled = probe.precondition(probe.refresh(state), multiple * g)
    assert relative(scaled, step if multiple > 0 else -step) <= 1e-9
    larger = state._replace(factors=[Kronecker(9 * f.left, f.right) for f in state.factors])
    nine = dataclasses.replace(probe, damping=9 * probe.damping)
    assert relative(nine.precondition(nine.refresh(larger), g), step) <= 1e-9
    assert probe.damped(state) is None and probe.sets_lengths
    for matrix in matrices(step, instance):
        assert float(matrix.norm()) == pytest.approx(min(matrix.shape) ** 0.5, rel=1e-9)


def test_newton_muon_is_a_label() -> None:
    """polar(V (A + gamma I)^-1) with A = E[a a^T], the bias being a last input 1."""
    instance, gamma = small(), 0.01
    probe = registry.parse_probe(f"kfac[fisher_type=forward-only,damping={gamma},polar=after]")
    hidden = torch.tanh(instance.inputs @ instance.model[0].weight.T).detach()
    inputs = [instance.inputs, torch.cat([hidden, torch.ones(12, 1).double()], 1)]
    V = matrices(instance.gradient(), instance)
    for x, G, step in zip(inputs, V, matrices(stepped(probe, instance), instance), strict=True):
        A = x.T @ x / len(x) + gamma * torch.eye(x.shape[1]).double()
        assert relative(step, polar(G @ torch.linalg.inv(A))) <= 1e-9


def test_mousse_is_a_label() -> None:
    """Eighth roots of Shampoo's moments around the polar factor, with the polar factor's length."""
    instance, epsilon = small(), 1e-3
    probe = registry.parse_probe(f"shampoo[polar=whitened,epsilon={epsilon},updates=2]")
    step = matrices(stepped(probe, instance), instance)
    for G, p in zip(matrices(instance.gradient(), instance), step, strict=True):
        L, R = (power(2 * m + epsilon * torch.eye(len(m)).double(), -1 / 8) for m in (G @ G.T, G.T @ G))
        factor = polar(L @ G @ R)
        expected = L @ factor @ R
        assert relative(p, expected * factor.norm() / expected.norm()) <= 1e-8


def test_a_vector_without_factors_keeps_its_solve() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    instance = cb.Instance(model, torch.randn(9, 3).double(), torch.arange(9) % 3)
    own, found = (stepped(cb.probe("kfac", polar=how), instance) for how in ("none", "after"))
    for layer in instance.layers:
        assert (relative(found[layer.slice], own[layer.slice]) <= 1e-12) is (layer.kind == "vector")


def test_momentum_comes_before_the_polar_factor_and_adamw_takes_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()
    judge, probe = copy.deepcopy(model), cb.probe("kfac", polar="after", damping=0.1)
    assert probe.rule.others == "adamw" and cb.probe("kfac").rule.others == "method"
    optimizer = NaturalGradient(model, probe, 0.1, momentum=0.8, others_lr=0.01)
    adamw = torch.optim.AdamW(judge[1].parameters(), 0.01, weight_decay=0.0)
    m: Tensor | float = 0.0
    for seed in range(3):
        x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(seed)).double(), torch.arange(9) % 3
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        instance = cb.Instance(copy.deepcopy(judge), x, y, parameters="weights")
        m = 0.8 * m + instance.gradient()
        step = instance.unpack(stepped(probe, instance, m))
        judge.zero_grad()
        F.cross_entropy(judge(x), y).backward()
        with torch.no_grad():
            for name, part in step.items():
                judge.get_parameter(name).sub_(0.1 * part)
        adamw.step()
    for p, q in zip(model.parameters(), judge.parameters(), strict=True):
        assert float((p - q).detach().abs().max()) <= 1e-8


@pytest.mark.parametrize("label", ["kfac", "kpsvd", "tkfac[damping_rule=exact]"])
def test_whitening_needs_two_damped_factors(label: str) -> None:
    with pytest.raises(
        ValueError, match="polar=whitened takes roots of two damped factors, and exact damping"
    ) as caught:
        with_polar(label, "whitened")
    assert "\n" not in str(caught.value)


def test_an_undamped_singular_factor_has_no_root() -> None:
    probe = with_polar("kfac[damping_rule=factored,damping=0]", "whitened")
    with pytest.raises(ValueError, match="singular"):
        stepped(probe, small(samples=2))


@pytest.mark.parametrize("label", ["kfac[polar=after]", "tkfac[polar=whitened]", "shampoo[polar=whitened]", "muon"])
@pytest.mark.parametrize("case", ["nasty_cnn", "tied", "embedded", "recurrent", "transposed"])
def test_every_kind_of_matrix_has_a_polar_factor(label: str, case: str) -> None:
    """Singular values of a group of a convolution, of a tied and a looked up matrix are equal, or zero."""
    instance = instance_of(case) if case in CASES else kind(case)[3]
    probe = registry.parse_probe(label)
    step = stepped(probe, instance)
    assert bool(step.isfinite().all()) and float(step @ instance.gradient()) > 0
    if "whitened" not in label:
        for layer in (la for la in instance.layers if la.kind != "vector"):
            for values in torch.linalg.svdvals(step[layer.slice].reshape(layer.shape)):
                kept = values[values > 1e-6 * values[0]]
                assert float(kept[-1]) == pytest.approx(float(kept[0]), rel=1e-4)

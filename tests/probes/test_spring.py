"""SPRING against its closed form in the Fisher's eigenbasis, and against the projection from which it comes."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import CASES, instance_of, truth, weights_of
from judging import near
from torch import Tensor

import curvbench as cb

DAMPING = 0.05


def step(probe: cb.Probe, state: Any, instance: cb.Instance) -> Tensor:
    return probe.precondition(probe.refresh(state), instance.gradient())


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.99])
@pytest.mark.parametrize("updates", [1, 12])
@pytest.mark.parametrize("name", ["mlp_tanh", "tokens"])
def test_after_some_updates_it_is_the_closed_form(name: str, updates: int, momentum: float) -> None:
    """In the eigenbasis: (1 - (lambda mu / (s + lambda))^t) / (s + lambda (1 - mu)) g."""
    s, Q = torch.linalg.eigh(truth(name).fisher())
    s = s.clamp_min(0)
    decayed = (DAMPING * momentum / (s + DAMPING)) ** updates
    expected = Q @ ((1 - decayed) / (s + DAMPING * (1 - momentum)) * (Q.T @ truth(name).gradient))
    probe = cb.probe("spring", momentum=momentum, updates=updates, damping=DAMPING)
    assert near(step(probe, probe.fit(instance_of(name)), instance_of(name)), expected, 1e-9)


def test_the_fixed_point_is_the_natural_gradient_of_a_smaller_damping() -> None:
    fisher, gradient = truth("mlp_tanh").fisher(), truth("mlp_tanh").gradient
    probe = cb.probe("spring", momentum=0.6, updates=50, damping=DAMPING)
    found = step(probe, probe.fit(instance_of("mlp_tanh")), instance_of("mlp_tanh"))
    assert near(found, oracles.natural_gradient(fisher, gradient, 0.4 * DAMPING), 1e-9)
    assert oracles.relative(oracles.natural_gradient(fisher, gradient, DAMPING), found) > 0.1


@pytest.mark.parametrize("kind", ["type-2", "empirical", "mc"])
def test_another_batch_begins_at_the_last_step(kind: str) -> None:
    """mu p + V (V^T V + lambda)^-1 (a - mu V^T p), with the coefficients a of the gradient V a."""
    model, x, y = CASES["mlp_tanh"].build()
    one, two = (weights_of(model, x[part], y[part]) for part in (slice(0, 4), slice(4, 7)))
    probe = cb.probe("spring", momentum=0.8, damping=DAMPING, fisher_type=kind, seed=3)
    first = probe.refresh(probe.update(probe.init(one), one))
    found = step(probe, probe.update(first, two), two)
    eye = torch.eye(one.size).double()
    fishers = [cb.exact_fisher(batch, fisher_type=kind, seed=3).to_dense() for batch in (one, two)]
    p = torch.linalg.solve(fishers[0] + DAMPING * eye, one.gradient())
    expected = torch.linalg.solve(fishers[1] + DAMPING * eye, two.gradient() + 0.8 * DAMPING * p)
    assert near(found, expected, 1e-9)
    if kind == "empirical":
        loss = CASES["mlp_tanh"].loss
        V = torch.stack([oracles.score(t, t.target, loss) for t in truth("mlp_tanh").terms[4:]], 1) / 3**0.5
        a = torch.full((3,), 3**-0.5, dtype=torch.float64)
        small = torch.linalg.solve(V.T @ V + DAMPING * torch.eye(3).double(), a - 0.8 * V.T @ p)
        assert near(found, 0.8 * p + V @ small, 1e-9)
    assert oracles.relative(torch.linalg.solve(fishers[1] + DAMPING * eye, two.gradient()), found) > 0.05


def test_without_momentum_it_is_the_step_of_full() -> None:
    instance = instance_of("mlp_gaussian")
    spring, full = cb.probe("spring", momentum=0.0, damping=DAMPING), cb.probe("full", damping=DAMPING)
    found = step(spring, spring.fit(instance), instance)
    assert near(found, full.precondition(full.refresh(full.fit(instance)), instance.gradient()), 1e-12)


def test_what_is_no_momentum_is_refused_in_one_line() -> None:
    for options in ({"momentum": 1.0}, {"momentum": -0.1}, {"damping": 0.0}, {"updates": 0}):
        with pytest.raises(ValueError, match=next(iter(options))) as caught:
            cb.probe("spring", **options)
        assert "\n" not in str(caught.value)

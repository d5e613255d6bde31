"""Sophia-G against its formulas, and its expectation over drawn labels against the dense diagonal."""

from __future__ import annotations

import pytest
import torch
from cases import instance_of, truth
from streams import relative
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient


def drawn(name: str, number: int) -> Tensor:
    """The mean gradient with the labels of a draw."""
    return batch_gradient(instance_of(name), "bg", 5, number) / len(truth(name).terms) ** 0.5


@pytest.mark.parametrize("name", ["mlp_tanh", "tokens"])
def test_curvature_is_the_corrected_average_of_the_draws(name: str) -> None:
    """Draws at updates 0, 2 and 4 of five."""
    probe = cb.probe("sophia", updates=5, draw_every=2, beta2=0.7, seed=5)
    weights = [0.3 * 0.7 ** (2 - k) for k in range(3)]
    average = sum(w * drawn(name, 2 * k).square() for k, w in enumerate(weights)) / sum(weights)
    assert relative(cb.fit(probe, instance_of(name)).diagonal(), len(truth(name).terms) * average) < 1e-13


@pytest.mark.parametrize("rho", [0.04, 1e3])
def test_the_step_is_that_of_the_public_formula(rho: float) -> None:
    """Entry by entry: with a small rho most are bounded, with a large one none."""
    probe, instance = cb.probe("sophia", updates=3, draw_every=2, beta1=0.9, rho=rho, seed=5), instance_of("mlp_tanh")
    step = probe.precondition(probe.fit(instance), instance.gradient())
    g, terms = truth("mlp_tanh").gradient, len(truth("mlp_tanh").terms)
    m = sum(0.1 * 0.9**k * g for k in range(3))
    h = 0.99 * 0.01 * drawn("mlp_tanh", 0).square() + 0.01 * drawn("mlp_tanh", 2).square()
    expected = [
        float(torch.sign(a)) * min(abs(float(a)) / (rho * terms * float(b) + 1e-15), 1.0)
        for a, b in zip(m, h, strict=True)
    ]
    assert relative(step, torch.tensor(expected, dtype=torch.float64)) < 1e-11
    bounded = int((step.abs() == 1).sum())
    assert bounded > len(step) // 2 if rho < 1 else bounded < len(step) // 10
    assert probe.damped(probe.fit(instance)) is None


def tiny() -> cb.Instance:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    return cb.Instance(model, 2 * torch.randn(4, 2).double(), torch.tensor([0, 1, 2, 0]))


def test_its_mean_over_draws_is_the_diagonal_and_with_data_labels_it_is_not() -> None:
    """Within five standard errors in every entry; the average weighs all draws almost alike."""
    instance, count = tiny(), 150
    draws = torch.stack([batch_gradient(instance, "bg", 0, t).square() for t in range(count)])
    exact, error = cb.exact_fisher(instance).to_dense().diagonal(), draws.std(0) / count**0.5
    found = cb.fit(cb.probe("sophia", draw_every=1, updates=count, beta2=1 - 1e-4), instance).diagonal()
    assert relative(found, draws.mean(0)) < 0.02
    assert bool(((found - exact).abs() <= 5 * error).all())
    of_data = cb.fit(cb.probe("adam"), instance).diagonal()
    assert bool(((of_data - exact).abs() > 5 * error).any())
    assert 1 < float((draws.var(0) / exact.square()).median()) < 3


def test_the_batch_size_counts_in_the_step() -> None:
    """The negative control for the unit: entries below the bound halve when the batch is twice as large."""
    probe, name = cb.probe("sophia", updates=1, rho=1e12, seed=5), "mlp_tanh"
    state, g = probe.fit(instance_of(name)), instance_of(name).gradient()
    larger = state._replace(terms=2 * state.terms)
    assert relative(probe.precondition(larger, g), probe.precondition(state, g) / 2) < 1e-9

"""The improved empirical Fisher against scores of dense Jacobians, each divided by the norm of its residual."""

from __future__ import annotations

import oracles
import pytest
import torch
from cases import CASES, instance_of, mlp, normal, truth, weights_of
from judging import near, rescaled
from torch import Tensor

import curvbench as cb

NAMES = ("mlp_tanh", "mlp_gaussian", "nasty_cnn", "tokens", "tokens_gaussian", "dead_unit")
DAMPING = 1e-2


def residual(term: oracles.Term, loss: str) -> Tensor:
    if loss == "gaussian":
        return term.output - term.target
    return term.output.softmax(0) - torch.eye(len(term.output)).double()[int(term.target)]


def scores(name: str) -> tuple[Tensor, Tensor]:
    """The scores (N, P) of all loss terms, and s = |r|^2 (N,)."""
    loss, terms = CASES[name].loss, truth(name).terms
    rows = torch.stack([oracles.score(term, term.target, loss) for term in terms])
    return rows, torch.stack([residual(term, loss).square().sum() for term in terms])


def step(instance: cb.Instance, **options: object) -> Tensor:
    probe = cb.probe("ief", **options)
    return probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_mean_of_scores_over_the_squares_of_their_residuals(name: str) -> None:
    J, s = scores(name)
    found = cb.fit(cb.probe("ief"), instance_of(name)).to_dense()
    assert near(found, J.T @ (J / s[:, None]) / len(s), 1e-9)
    assert oracles.relative(truth(name).fisher("empirical"), found) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_it_lies_below_the_mean_of_the_jacobians_squares(name: str) -> None:
    jacobians = torch.cat([term.jacobian for term in truth(name).terms])
    bound = jacobians.T @ jacobians / len(truth(name).terms)
    gap = torch.linalg.eigvalsh(bound - cb.fit(cb.probe("ief"), instance_of(name)).to_dense())
    assert float(gap[0]) >= -1e-12 * float(gap[-1])


@pytest.mark.parametrize("name", NAMES)
def test_both_rules_solve_in_the_scores(name: str) -> None:
    """The public code's rule is another step where residuals differ."""
    J, s = scores(name)
    exact = J.T @ torch.linalg.solve(J @ J.T + len(s) * DAMPING * s.diag(), s)
    public = J.T @ torch.linalg.solve(J @ J.T + len(s) * DAMPING * torch.eye(len(s)).double(), s)
    assert near(step(instance_of(name), damping=DAMPING), exact, 1e-9)
    assert near(step(instance_of(name), damping=DAMPING, damping_rule="gram"), public, 1e-9)
    assert oracles.relative(public, exact) > 1e-3


def test_the_public_rule_takes_any_other_gradient_through_the_empirical_fisher() -> None:
    """What is orthogonal to the batch's own gradient."""
    instance, own = instance_of("mlp_tanh"), truth("mlp_tanh").gradient
    probe = cb.probe("ief", damping=DAMPING, damping_rule="gram")
    other = torch.randn(len(own), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = other - (other @ own) / (own @ own) * own
    expected = oracles.natural_gradient(truth("mlp_tanh").fisher("empirical"), other, DAMPING)
    assert near(probe.precondition(probe.refresh(probe.fit(instance)), other), expected, 1e-9)


def test_undamped_every_loss_falls_by_the_square_of_its_residual() -> None:
    J, s = scores("mlp_tanh")
    assert near(J @ step(instance_of("mlp_tanh"), damping=1e-11), s, 1e-6)
    plain = cb.probe("full", fisher_type="empirical", damping=1e-11)
    moved = plain.precondition(plain.refresh(plain.fit(instance_of("mlp_tanh"))), truth("mlp_tanh").gradient)
    assert near(J @ moved, torch.ones_like(s), 1e-6), "the empirical Fisher lets all losses fall by the same"


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_of_one_gaussian_output_it_is_the_fisher(size: float) -> None:
    """Whatever the residuals are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, y = mlp(4, 5, 1).double(), normal(6, 4)().double(), size * normal(6, 1)().double()
    instance = weights_of(model, x, y, "gaussian")
    fisher = oracles.type2_fisher(oracles.loss_terms(model, x, y, "gaussian"), "gaussian")
    assert near(cb.fit(cb.probe("ief"), instance).to_dense(), fisher, 1e-12)
    assert oracles.relative(cb.fit(cb.probe("full", fisher_type="empirical"), instance).to_dense(), fisher) > 0.1


def test_a_multiple_of_the_residuals_changes_nothing() -> None:
    one, four = (cb.fit(cb.probe("ief"), rescaled("mlp_gaussian", factor)).to_dense() for factor in (1.0, 4.0))
    assert near(four, one, 1e-12)


def test_a_term_without_a_residual_is_dropped() -> None:
    model, x, y = CASES["mlp_gaussian"].build()
    targets = y.clone()
    targets[2] = model(x)[2].detach()
    whole = cb.fit(cb.probe("ief"), weights_of(model, x, targets, "gaussian")).to_dense()
    rest = torch.tensor([0, 1, 3, 4, 5])
    part = cb.fit(cb.probe("ief"), weights_of(model, x[rest], y[rest], "gaussian")).to_dense()
    assert near(whole, 5 / 6 * part, 1e-12)


def test_without_damping_it_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="damping must be finite and above zero, got 0") as caught:
        cb.probe("ief", damping=0.0)
    assert "\n" not in str(caught.value)

"""The batch gradient: its outer product is the Fisher in the mean, and the draws are independent."""

from __future__ import annotations

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from streams import relative
from torch import Tensor

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient


def test_with_data_labels_it_is_the_gradient(judge: Truth, instance: cb.Instance) -> None:
    statistic = batch_gradient(instance, "bg_data")
    assert (statistic - len(judge.terms) ** 0.5 * judge.gradient).norm() <= 1e-10 * statistic.norm() + 1e-300


def test_of_one_sample_it_is_a_score_of_the_model() -> None:
    judge = truth("one_sample")
    scores = [oracles.score(judge.terms[0], y, "cross_entropy") for y in range(3)]
    gradients = [batch_gradient(instance_of("one_sample"), "bg", 0, t) for t in range(60)]
    drawn = [min(range(3), key=lambda y: float((d - scores[y]).norm())) for d in gradients]
    assert all((d - scores[y]).norm() <= 1e-12 * d.norm() for d, y in zip(gradients, drawn, strict=True))
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize("name", ["mlp_tanh", "mlp_gaussian", "tokens"])
def test_its_outer_product_is_the_fisher_in_the_mean(name: str) -> None:
    """E[d d^T] = F: scores of different terms are independent with mean zero."""
    instance = instance_of(name)
    draws = torch.stack([batch_gradient(instance, "bg", 3, t) for t in range(1000)])

    def error(rows: Tensor) -> float:
        return relative(rows.T @ rows / len(rows), truth(name).fisher())

    few = sum(error(part) for part in draws[:250].split(25)) / 10
    assert few / error(draws) > 4


def test_with_data_labels_it_is_not() -> None:
    d = batch_gradient(instance_of("mlp_many_samples"), "bg_data")
    assert relative(torch.outer(d, d), truth("mlp_many_samples").fisher("empirical")) > 0.5


def test_draws_of_different_updates_and_seeds_differ() -> None:
    instance = instance_of("mlp_gaussian")
    gradients = [batch_gradient(instance, "bg", seed, t) for seed in range(3) for t in range(4)]
    assert torch.equal(gradients[1], batch_gradient(instance, "bg", 0, 1))
    assert not any(torch.equal(a, b) for i, a in enumerate(gradients) for b in gradients[:i])


def test_ignored_terms_are_no_terms(case: Case) -> None:
    """Targets decide which terms there are, and nothing else about drawn labels."""
    if case.loss == "gaussian":
        pytest.skip("every term counts")
    model, inputs, targets = case.build()
    other = torch.where(targets == oracles.IGNORED, targets, torch.zeros_like(targets))
    statistic, expected = (batch_gradient(cb.Instance(model, inputs, y), "bg") for y in (other, targets))
    assert torch.equal(statistic, expected)

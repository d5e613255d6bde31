"""The exact Fisher of every kind of network that is shipped, narrow, against dense float64 derivatives."""

from __future__ import annotations

import oracles
import pytest
import torch

import curvbench as cb
from curvbench import training
from curvbench.spec import Problem

TINY = [
    cb.problem("mlp", hidden=4, depth=1, samples=3),
    cb.problem("resnet", depth=8, width=2, samples=3),
    cb.problem("resnet", depth=8, width=2, outputs=12, samples=2),
    cb.problem("resnet", depth=18, width=1, samples=2),
    cb.problem("resnet", depth=50, width=1, samples=2),
    cb.problem("vgg", width=1, samples=3),
    cb.problem("vgg", width=1, batchnorm=False, samples=3),
    cb.problem("transformer", width=4, hidden=6, length=3, samples=2),
    cb.problem("transformer", width=4, hidden=6, depth=2, length=2, samples=2),
]


@pytest.fixture(params=TINY, ids=lambda problem: problem.label)
def problem(request: pytest.FixtureRequest) -> Problem:
    return request.param


def test_exact_fisher_is_that_of_dense_derivatives(problem: Problem) -> None:
    model = training.snapshot(problem, 0, None, dtype=torch.float64)
    inputs, targets = training.batch(problem, problem.data(None), 0, dtype=torch.float64)
    instance = cb.Instance(model, inputs, targets)
    fisher = cb.exact_fisher(instance)
    terms = oracles.loss_terms(model, inputs, targets, problem.loss)
    rows = torch.cat([oracles.type2_rows(term, problem.loss) for term in terms])
    v = torch.randn(instance.size, dtype=torch.float64)
    expected = rows.T @ (rows @ v) / len(terms)
    assert instance.terms == len(terms)
    assert oracles.relative(fisher.matvec(v), expected) <= 1e-10
    assert oracles.relative(fisher.diagonal(), rows.square().sum(0) / len(terms)) <= 1e-10
    assert fisher.frobenius_norm() == pytest.approx(float((rows @ rows.T).norm()) / len(terms), rel=1e-10)
    assert oracles.relative(instance.gradient(), oracles.mean_gradient(terms, problem.loss)) <= 1e-10

"""The condition number that a damped matrix leaves, against dense eigenvalues."""

from __future__ import annotations

from functools import cache

import oracles
import pytest
import torch
from cases import fisher_of, instance_of, truth
from torch import Tensor

import curvbench as cb
from curvbench import operators
from curvbench.meters import conditioning
from curvbench.meters.conditioning import NO_MATRIX, condition, condition_rows
from curvbench.operators import Operator
from curvbench.spec import METERS, PROBED, Status

DAMPING = 0.02
NAMES = ("kfac", "diag", "layer", "unit", "ginger", "qng", "shampoo", "identity")
NETWORKS = ("mlp_tanh", "nasty_cnn")


@cache
def damped_of(probe: str, name: str) -> Operator:
    instance = instance_of(name)
    made = cb.probe(probe) if cb.probe(probe).damping is None else cb.probe(probe, damping=DAMPING)
    damped = made.damped(made.refresh(made.fit(instance)))
    assert damped is not None
    return damped


@cache
def exact(name: str) -> Tensor:
    dense = truth(name).fisher()
    return dense + DAMPING * torch.eye(len(dense), dtype=torch.float64)


def dense_condition(damped: Tensor, C: Tensor) -> float:
    root = torch.linalg.cholesky(damped)
    halfway = torch.linalg.solve_triangular(root, C, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, halfway.T, upper=False))
    return float(values[-1] / values[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", NAMES)
def test_against_dense_eigenvalues(probe: str, name: str) -> None:
    """From below, because no vector has a larger quotient than the largest eigenvalue."""
    damped, expected = damped_of(probe, name), dense_condition(damped_of(probe, name).to_dense(), exact(name))
    found = condition(damped, fisher_of(name), DAMPING)
    assert expected > 2, "a test of nothing"
    assert expected * (1 - 2 * conditioning.TOLERANCE) <= found <= expected * (1 + 1e-9)


@pytest.mark.parametrize("probe", ["kfac", "unit"])
def test_the_iteration_has_all_digits(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "TOLERANCE", 1e-10)
    expected = dense_condition(damped_of(probe, "mlp_tanh").to_dense(), exact("mlp_tanh"))
    assert condition(damped_of(probe, "mlp_tanh"), fisher_of("mlp_tanh"), DAMPING) == pytest.approx(expected, rel=1e-9)


def test_a_multiple_leaves_the_same_and_the_exact_matrix_leaves_nothing() -> None:
    fisher, damped = fisher_of("mlp_tanh"), damped_of("kfac", "mlp_tanh")
    multiple = operators.Dense(1e3 * damped.to_dense())
    assert condition(multiple, fisher, DAMPING) == pytest.approx(condition(damped, fisher, DAMPING), rel=1e-4)
    assert condition(fisher.damped(DAMPING), fisher, DAMPING) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probe", NAMES)
def test_no_step_is_worse_than_the_condition_number_allows(probe: str, name: str) -> None:
    """Kantorovich's inequality, for the gradient and for the worst vector, which reaches the bound."""
    C, matrix = exact(name), damped_of(probe, name).to_dense()
    kappa = condition(damped_of(probe, name), fisher_of(name), DAMPING)
    bound = 4 * kappa / (1 + kappa) ** 2
    root = torch.linalg.cholesky(C)
    halfway = torch.linalg.solve_triangular(root, matrix, upper=False)
    _, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, halfway.T, upper=False))
    worst = root @ (vectors[:, 0] + vectors[:, -1] * _balance(C, matrix))
    qualities = [_quality(C, matrix, g) for g in (truth(name).gradient, worst)]
    assert min(qualities) >= bound * (1 - 3 * conditioning.TOLERANCE)
    assert qualities[1] == pytest.approx(bound, rel=3 * conditioning.TOLERANCE)


def _balance(C: Tensor, matrix: Tensor) -> float:
    """The root of the condition number, which weighs both ends of the worst vector."""
    return dense_condition(matrix, C) ** 0.5


def _quality(C: Tensor, matrix: Tensor, g: Tensor) -> float:
    step = torch.linalg.solve(matrix, g)
    return float((g @ step) ** 2 / (step @ C @ step) / (g @ oracles.natural_gradient(C, g, 0.0)))


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, of the network, and a reason where there is no number."""
    fisher, damped = fisher_of("mlp_tanh"), damped_of("kfac", "mlp_tanh")
    (row,) = condition_rows(damped, fisher, DAMPING, "own damping")
    assert (row.metric, row.scope, row.method) == ("error.condition", "network", "damping 0.02, own damping")
    assert row.value is not None and row.value > 2
    monkeypatch.setattr(conditioning, "ROUNDS", 2)
    (row,) = condition_rows(damped, fisher, DAMPING)
    assert row.status is Status.SKIPPED and row.reason.startswith("2 rounds of Lanczos iteration")
    (row,) = condition_rows(None, fisher, DAMPING)
    assert row.status is Status.SKIPPED and row.reason == NO_MATRIX


def test_the_meter_runs_only_where_it_is_named() -> None:
    assert "condition" not in METERS and "condition" in PROBED
